from functools import partial
from itertools import product

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import kstest
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score, silhouette_score
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut
from sklearn.neighbors import KNeighborsClassifier

from tasks.analysis import feature_overlap as module
from tasks.analysis.feature_overlap import PENALTIES, group_folds, mmd, overlap, probe
from tasks.analysis.inner_products import gram, squared_distances
from tasks.statistics.groups import GroupJackknife
from tasks.statistics.intervals import RATE

N, D = 121, 40
LABELS = np.arange(N) % 2
ALONE = np.arange(N)
SHARE = 1 - 0.025 ** (1 / N)
"""Largest share of groups that a sample of N groups may miss, with a confidence of 97.5 %."""


def draw(n: int = N, d: int = D, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def values_of(clean: np.ndarray, adversarial: np.ndarray, groups: np.ndarray = ALONE) -> dict[str, float]:
    return {name: each.value for name, each in overlap(clean, adversarial, LABELS, groups, seed=1).items()}


def p_value_of(clean: np.ndarray, adversarial: np.ndarray, groups: np.ndarray, seed: int) -> float:
    return mmd(squared_distances(gram(clean, adversarial)), groups, seed)[1]


def test_independent_samples_of_one_distribution_overlap() -> None:
    estimates = overlap(draw(seed=0), draw(seed=1), LABELS, ALONE, seed=1)
    for name in ("linear_probe_auroc", "knn_auroc"):
        assert estimates[name].low < 0.5 < estimates[name].high
        assert estimates[name].value == pytest.approx(0.5, abs=0.1)
    assert estimates["silhouette"].value == pytest.approx(0, abs=0.01)
    assert estimates["mmd"].value == pytest.approx(0, abs=0.005)
    assert estimates["mmd_p_value"].value > 0.05


def test_equal_features_give_ties_in_every_metric() -> None:
    estimates = overlap(draw(), draw(), LABELS, ALONE, seed=1)
    # the probe gives every image the same score; 0.5 would look like a measured overlap
    assert np.isnan(estimates["linear_probe_auroc"]).all()
    # neighbours differ from image to image, so this 0.5 is measured
    assert estimates["knn_auroc"].low < estimates["knn_auroc"].value == 0.5 < estimates["knn_auroc"].high
    assert estimates["mmd"].value == 0
    assert estimates["mmd_p_value"].value == 1
    assert estimates["silhouette"].value == pytest.approx(0, abs=0.02)
    assert estimates["class_auroc_adversarial"] == estimates["class_auroc_clean"]
    assert estimates["class_silhouette_adversarial"] == estimates["class_silhouette_clean"]


def test_identical_features_of_all_images_give_no_auroc() -> None:
    """0.5 would look like a measured overlap."""
    values = values_of(np.ones((N, D), dtype=np.float32), np.ones((N, D), dtype=np.float32))
    assert np.isnan([values[name] for name in ("linear_probe_auroc", "knn_auroc", "class_auroc_clean")]).all()
    assert [values[name] for name in ("silhouette", "mmd", "mmd_p_value")] == [0, 0, 1]


def test_every_metric_detects_a_large_shift() -> None:
    estimates = overlap(draw(), draw(seed=1) + 5, LABELS, ALONE, seed=1)
    assert estimates["linear_probe_auroc"] == estimates["knn_auroc"] == pytest.approx((1, 1 - SHARE, 1))
    assert estimates["silhouette"].value > 0.6
    assert estimates["mmd"].value > 0.5
    assert estimates["mmd_p_value"].value == 1 / 1001


@pytest.mark.parametrize("noise", [1e-6, 1e-3, 1e-1])
def test_the_other_version_of_a_held_out_image_does_not_leak(noise: float) -> None:
    values = values_of(draw(), draw() + noise * draw(seed=1))
    assert values["linear_probe_auroc"] == pytest.approx(0.5, abs=0.1)
    assert values["knn_auroc"] == pytest.approx(0.5, abs=0.06)


def test_other_images_of_the_group_do_not_leak() -> None:
    # the perturbations of a group have one direction, which leaks if its images are in the training set
    groups = np.arange(N) // 12
    directions = 3 * draw(n=groups.max() + 1, seed=1)[groups]
    by_group = values_of(draw() * 0.1, draw() * 0.1 + directions, groups)
    by_image = values_of(draw() * 0.1, draw() * 0.1 + directions)
    for name in ("linear_probe_auroc", "knn_auroc"):
        assert by_image[name] > 0.9
        # undefined if all images of a fold have the same score
        assert np.isnan(by_group[name]) or by_group[name] < 0.75


def test_the_probe_detects_a_small_consistent_shift_that_nearest_neighbours_miss() -> None:
    clean = draw(d=200) * np.repeat([10, 0.1], [20, 180]).astype(np.float32)
    shift = np.repeat([0, 0.1], [20, 180]).astype(np.float32)
    values = values_of(clean, clean + shift)
    assert values["linear_probe_auroc"] > 0.95
    assert values["knn_auroc"] < 0.65
    assert values["mmd_p_value"] == 1 / 1001


def test_swapped_classes_are_separable_before_the_attack_and_reversed_after_it() -> None:
    away = 3 * (2 * LABELS[:, None] - 1).astype(np.float32)
    estimates = overlap(draw() + away, draw() - away, LABELS, ALONE, seed=1)
    # 60 images of the smaller class
    share = 1 - 0.025 ** (1 / 60)
    assert estimates["class_auroc_clean"] == pytest.approx((1, 1 - share, 1))
    assert estimates["class_auroc_adversarial"] == pytest.approx((0, 0, share))
    assert estimates["class_silhouette_clean"].value > 0.5
    collapsed = overlap(draw() + away, draw(seed=1), LABELS, ALONE, seed=1)
    assert collapsed["class_auroc_adversarial"].value == pytest.approx(0.5, abs=0.15)
    assert collapsed["class_silhouette_adversarial"].value == pytest.approx(0, abs=0.02)


def reference_auroc(scores: np.ndarray, positive: np.ndarray, folds: np.ndarray) -> float:
    """Share of ordered pairs over the pairs within folds."""
    ordered = pairs = 0.0
    for fold in np.unique(folds):
        held = folds == fold
        n_pairs = positive[held].sum() * (~positive[held]).sum()
        ordered, pairs = ordered + n_pairs * roc_auc_score(positive[held], scores[held]), pairs + n_pairs
    return ordered / pairs


def test_probes_equal_explicit_ridge_regressions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PENALTIES", (0.1,))
    labels, groups = np.arange(N) % 3, np.arange(N) // 2
    clean = draw() + 0.5 * (labels == 2)[:, None].astype(np.float32)
    adversarial = draw(seed=1) + np.float32(0.2)
    estimates = overlap(clean, adversarial, labels, groups, seed=3)
    folds = group_folds(labels, groups, seed=3)

    both = np.concatenate([clean, adversarial]).astype(np.float64)
    both -= both.mean(axis=0)
    # the intercept: a constant feature whose square is the mean squared length of the others
    both = np.hstack([both, np.full((2 * N, 1), np.sqrt((both**2).sum(axis=1).mean()))])

    def fit_and_score(x: np.ndarray, y: np.ndarray, of: np.ndarray, at: np.ndarray) -> np.ndarray:
        scores = np.empty(y.shape)
        alpha = 0.1 * (x**2).sum(axis=1).mean()
        for fold in np.unique(of):
            weights = Ridge(alpha, fit_intercept=False).fit(x[of != fold], y[of != fold]).coef_
            scores[of == fold] = at[of == fold] @ np.atleast_2d(weights).T
        return scores

    origin, of_both = np.repeat([False, True], N), np.tile(folds, 2)
    scores = fit_and_score(both, 2.0 * origin[:, None] - 1, of_both, both)
    assert estimates["linear_probe_auroc"].value == pytest.approx(
        reference_auroc(scores[:, 0], origin, of_both), abs=1e-3
    )
    one_hot = labels[:, None] == np.arange(3)
    for name, at in (("clean", both[:N]), ("adversarial", both[N:])):
        scores = fit_and_score(both[:N], 2.0 * one_hot - 1, folds, at)
        macro = np.mean([reference_auroc(scores[:, c], one_hot[:, c], folds) for c in range(3)])
        assert estimates[f"class_auroc_{name}"].value == pytest.approx(macro, abs=1e-3)


def test_probe_scores_equal_nested_cross_validation_of_scikit_learn() -> None:
    labels, groups = np.arange(N) % 3, np.arange(N) // 2
    clean = draw() + 0.5 * (labels == 2)[:, None].astype(np.float32)
    kernel = gram(clean, draw(seed=1) + np.float32(0.2)) + 7.0
    folds = np.tile(group_folds(labels, groups, seed=3), 2)
    targets = 2.0 * np.repeat([False, True], N)[:, None] - 1
    unit = kernel.diagonal().mean()
    expected = np.empty(targets.shape)
    for fold in range(5):
        held = folds == fold
        search = GridSearchCV(
            KernelRidge(kernel="precomputed"),
            {"alpha": [penalty * unit for penalty in PENALTIES]},
            scoring="neg_mean_squared_error",
            cv=LeaveOneGroupOut(),
        )
        search.fit(kernel[np.ix_(~held, ~held)], targets[~held], groups=folds[~held])
        expected[held] = search.predict(kernel[np.ix_(held, ~held)]).reshape(-1, 1)
    (found,) = probe(kernel, targets, folds, [kernel])
    # scores are rounded to nine digits
    assert found == pytest.approx(expected, abs=1.5e-9)


def test_nearest_neighbours_and_silhouettes_equal_scikit_learn() -> None:
    clean, adversarial = draw(d=3), draw(d=3, seed=1) + np.float32(0.5)
    values = values_of(clean, adversarial)
    folds = np.tile(group_folds(LABELS, ALONE, seed=1), 2)
    both, origin = np.concatenate([clean, adversarial]), np.repeat([0, 1], N)
    # every image is a candidate in one version
    candidates = np.tile(np.random.default_rng(1).permutation(N) % 2, 2) == origin
    scores = np.empty(2 * N)
    for fold in range(5):
        held, known = folds == fold, candidates & (folds != fold)
        model = KNeighborsClassifier(15, algorithm="brute").fit(both[known].astype(np.float64), origin[known])
        scores[held] = model.predict_proba(both[held])[:, 1]
    assert values["knn_auroc"] == pytest.approx(reference_auroc(scores, origin == 1, folds), abs=1e-3)
    assert values["silhouette"] == pytest.approx(silhouette_score(both, origin), abs=1e-5)
    assert values["class_silhouette_adversarial"] == pytest.approx(silhouette_score(adversarial, LABELS), abs=1e-5)


def test_inner_products_equal_those_of_centred_features() -> None:
    clean, adversarial = draw() + 3, draw(seed=1)
    both = np.concatenate([clean, adversarial]).astype(np.float64)
    both -= both.mean(axis=0)
    assert gram(clean, adversarial) == pytest.approx(both @ both.T, abs=1e-3)
    assert squared_distances(gram(clean, adversarial)) == pytest.approx(cdist(both, both) ** 2, rel=1e-4)


def test_the_length_of_a_perturbation_much_smaller_than_the_features_is_exact() -> None:
    clean = 100 * draw()
    adversarial = clean + np.float32(1e-3)
    between_versions = squared_distances(gram(clean, adversarial)).diagonal(N)
    # the perturbation after rounding to float32
    added = ((adversarial.astype(np.float64) - clean) ** 2).sum(axis=1)
    assert between_versions == pytest.approx(added, rel=1e-3)


def test_mmd_equals_the_unbiased_estimate_of_gretton() -> None:
    x, y = draw(n=7, d=2).astype(np.float64), draw(n=7, d=2, seed=1) + 1.0
    points = np.concatenate([x, y])
    squared = cdist(points, points) ** 2
    median = np.median(squared[np.triu_indices(14, 1)])

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a - b) ** 2).sum() / (2 * median)))

    h = [
        k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(y[i], x[j]) for i, j in product(range(7), repeat=2) if i != j
    ]
    assert mmd(squared, np.arange(7), seed=0)[0] == pytest.approx(np.mean(h))


@pytest.mark.parametrize("n_of_group", [1, 4])
def test_p_values_are_uniform_under_the_null_hypothesis(n_of_group: int) -> None:
    # perturbations of one group are similar; permutations of single images would give too small p-values
    groups = np.repeat(np.arange(20), n_of_group)
    p_values = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        of_group = rng.standard_normal((20, 3))[groups]
        between = 0.3 * rng.standard_normal((20, 3))[groups] + 0.1 * rng.standard_normal((len(groups), 3))
        clean, adversarial = (of_group + sign * between for sign in (-1, 1))
        p_values.append(p_value_of(clean.astype(np.float32), adversarial.astype(np.float32), groups, seed))
    assert kstest(p_values, "uniform").pvalue > 0.01
    assert np.mean(np.array(p_values) <= 0.05) == pytest.approx(0.05, abs=0.035)


def test_a_shift_gives_the_smallest_p_value_that_the_permutations_allow() -> None:
    for seed in range(5):
        clean = draw(n=30, d=3, seed=seed)
        assert p_value_of(clean, clean + np.float32(0.5), np.arange(30), seed) == 1 / 1001


def test_folds_do_not_split_groups_and_are_stratified_by_class() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(100, 160, size=300)
    labels = groups % 2
    folds = group_folds(labels, groups, seed=0)
    assert all(len(np.unique(folds[groups == group])) == 1 for group in np.unique(groups))
    for label in (0, 1):
        of_class = np.unique(groups[labels == label])
        n_groups = np.bincount([folds[groups == group][0] for group in of_class], minlength=5)
        assert n_groups.max() - n_groups.min() <= 1
    assert (folds == group_folds(labels, groups, seed=0)).all()
    assert (folds != group_folds(labels, groups, seed=1)).any()


def test_two_or_three_groups_give_two_or_three_folds() -> None:
    for n_groups in (2, 3):
        groups = np.arange(N) % n_groups
        assert np.unique(group_folds(LABELS, groups, seed=0)).tolist() == list(range(n_groups))
        values = values_of(draw(), draw(seed=1) + 5, groups)
        assert values["linear_probe_auroc"] == values["knn_auroc"] == 1


def test_metrics_that_need_folds_are_undefined_for_one_group() -> None:
    values = values_of(draw(), draw(seed=1) + 5, np.zeros(N, dtype=int))
    undefined = {name for name, value in values.items() if np.isnan(value)}
    assert undefined == {
        "linear_probe_auroc",
        "knn_auroc",
        "linear_probe_auroc_successful",
        "knn_auroc_successful",
        "mmd_p_value",
        "class_auroc_clean",
        "class_auroc_adversarial",
    }


def test_a_shift_of_the_successful_images_alone_is_measured_on_them() -> None:
    success = np.arange(N) < N // 4
    clean = draw()
    adversarial = clean + 0.1 * draw(seed=1)
    adversarial[success] += 5
    estimates = overlap(clean, adversarial, LABELS, ALONE, 1, success)
    assert estimates["linear_probe_auroc"].value < 0.8
    assert estimates["linear_probe_auroc_successful"].value > 0.95
    none = overlap(clean, adversarial, LABELS, ALONE, 1, np.zeros(N, dtype=bool))
    assert np.isnan(none["linear_probe_auroc_successful"]).all()


def test_class_metrics_are_undefined_for_one_class() -> None:
    estimates = overlap(draw(), draw(seed=1), np.zeros(N, dtype=int), ALONE, seed=1)
    undefined = {name for name, figure in estimates.items() if np.isnan(figure.value)}
    assert undefined == {name for name in estimates if name.startswith("class_")}


def test_all_metrics_are_undefined_for_one_image() -> None:
    one = overlap(draw(n=1), draw(n=1, seed=1), np.zeros(1, dtype=int), np.zeros(1, dtype=int), seed=0)
    assert np.isnan(list(one.values())).all()


def test_intervals_contain_their_value_and_mmd_has_none() -> None:
    labels = np.arange(N) % 3
    estimates = overlap(draw(), draw(seed=1) + np.float32(0.1), labels, ALONE, seed=1)
    for name, (value, low, high) in estimates.items():
        if name.startswith("mmd"):
            assert np.isnan([low, high]).all()
        else:
            assert low < value < high


def test_at_chance_the_interval_of_a_linear_probe_is_wider_since_each_pair_of_folds_counts_twice() -> None:
    """Without a difference, the fit of fold A that is tested on fold B and that of B on A see the same noise."""
    n = 60
    groups = np.arange(n)
    folds, jackknife = group_folds(np.zeros(n, dtype=int), groups, 1), GroupJackknife(groups)
    ratios = {}
    for shift in (0.0, 3.0):
        clean, adversarial = draw(n, 8), draw(n, 8, seed=1) + shift * np.eye(8, dtype=np.float32)[0]
        kernel = gram(clean, adversarial)
        kernel += kernel.diagonal().mean()
        targets = np.repeat([-1.0, 1.0], n)[:, None]
        (scores,) = probe(kernel, targets, np.tile(folds, 2), [kernel])
        pairs = (folds[:, None] == folds) & ~np.eye(n, dtype=bool)
        order = partial(module._ordered_fraction, scores[n:], scores[:n], [pairs])
        given = jackknife.estimate(order, RATE)
        found = overlap(clean, adversarial, np.zeros(n, dtype=int), groups, 1)["linear_probe_auroc"]
        assert found.value == given.value
        ratios[shift] = (found.high - found.low) / (given.high - given.low)
    assert ratios == {0.0: pytest.approx(2**0.5, rel=0.05), 3.0: 1}


def test_the_same_arguments_give_the_same_estimates() -> None:
    first, second = (overlap(draw(), draw(seed=1), LABELS, ALONE, seed=4) for _ in range(2))
    assert first == second or str(first) == str(second)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_raise_an_error(value: float) -> None:
    broken = draw()
    broken[3, 4] = value
    for pair in ((broken, draw()), (draw(), broken)):
        with pytest.raises(ValueError, match="features contain NaN or infinite values"):
            overlap(*pair, LABELS, ALONE, seed=0)


def test_features_of_different_shapes_raise_an_error() -> None:
    with pytest.raises(ValueError, match=r"the shapes \(121, 40\) and \(121, 39\)"):
        gram(draw(), draw(d=39))


@pytest.mark.parametrize("n", [9, 12, 16])
def test_few_images_with_the_same_neighbours_give_no_auroc(n: int) -> None:
    """All other images are neighbours, so every image of a fold has the same score."""
    rng = np.random.default_rng(0)
    clean, adversarial = rng.normal(size=(2, n, 4)).astype(np.float32)
    estimates = overlap(clean, adversarial + 3, np.arange(n) % 2, np.arange(n), seed=0)
    assert np.isnan(estimates["knn_auroc"]).all()
    # the probe separates them
    assert estimates["linear_probe_auroc"].low > 0.5
