import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc, roc_auc_score

from tasks.analysis.detection import detection_row, rejection_rows, roc_curve, threshold_at
from tasks.statistics.groups import GroupJackknife
from tasks.statistics.intervals import RATE
from tasks.statistics.rates import rate_estimate

SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=40).map(np.array)
NAN = float("nan")


def alone(n: int) -> GroupJackknife:
    """Every image is a group of its own."""
    return GroupJackknife(np.arange(n))


def labelled(clean: np.ndarray, adversarial: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.repeat([0, 1], [len(clean), len(adversarial)]), np.concatenate([clean, adversarial])


def auroc(clean: np.ndarray, adversarial: np.ndarray) -> float:
    return float(roc_auc_score(*labelled(clean, adversarial)))


@given(SCORES, SCORES)
def test_the_area_under_the_curve_is_the_auroc(clean: np.ndarray, adversarial: np.ndarray) -> None:
    assert auc(*roc_curve(clean, adversarial)) == pytest.approx(auroc(clean, adversarial))


def test_infinite_scores_have_a_curve() -> None:
    assert auc(*roc_curve(np.array([1.0, 2]), np.array([3, np.inf]))) == 1


@pytest.mark.parametrize("pair", [([1, NAN], [1]), ([1], [NAN]), ([], [1]), ([1], [])])
def test_a_nan_score_or_an_empty_side_gives_no_curve(pair: tuple[list[float], list[float]]) -> None:
    clean, adversarial = (np.array(side, dtype=float) for side in pair)
    assert [len(rates) for rates in roc_curve(clean, adversarial)] == [0, 0]


def test_curve_of_four_images() -> None:
    false, true = roc_curve(np.array([1.0, 3]), np.array([2.0, 4]))
    assert list(zip(false, true, strict=True)) == [(0, 0), (0, 0.5), (0.5, 0.5), (0.5, 1), (1, 1)]


def test_equal_scores_give_the_diagonal() -> None:
    assert [rates.tolist() for rates in roc_curve(np.ones(9), np.ones(5))] == [[0, 1], [0, 1]]


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_a_long_curve_is_reduced_to_points_of_the_exact_curve(shift: float) -> None:
    rng = np.random.default_rng(0)
    clean, adversarial = rng.standard_normal(1500), rng.standard_normal(1200) + shift
    false, true = roc_curve(clean, adversarial)
    assert len(false) <= 200
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert (np.diff(false) >= 0).all()
    assert (np.diff(true) >= 0).all()
    thresholds = np.unique(np.concatenate([clean, adversarial]))
    exact = np.array([[(clean >= each).mean(), (adversarial >= each).mean()] for each in thresholds])
    points = np.stack([false, true], axis=1)[1:]
    assert (np.abs(points[:, None] - exact).sum(axis=2).min(axis=1) < 1e-9).all()
    # no point of the exact curve is far from the reduced curve
    assert np.abs(np.interp(exact.sum(axis=1), false + true, false) - exact[:, 0]).max() < 0.0101
    assert auc(false, true) == pytest.approx(auroc(clean, adversarial), abs=0.005)


@given(SCORES, st.floats(0, 0.99))
def test_at_most_the_given_fraction_lies_above_the_threshold(clean: np.ndarray, rate: float) -> None:
    threshold = threshold_at(clean, rate)
    assert (clean > threshold).mean() <= rate + 1e-9
    # more than the fraction would be above the next smaller score
    if (smaller := clean[clean < threshold]).size:
        assert (clean > smaller.max()).mean() > rate


@pytest.mark.parametrize(("n", "rate", "n_above"), [(100, 0.05, 5), (100, 0.29, 29), (99, 0.05, 4), (10, 0.05, 0)])
def test_without_ties_the_whole_fraction_is_flagged(n: int, rate: float, n_above: int) -> None:
    scores = np.random.default_rng(0).permutation(n).astype(float)
    assert (scores > threshold_at(scores, rate)).sum() == n_above


def test_ties_at_the_threshold_are_not_flagged() -> None:
    scores = np.repeat([0.0, 1.0], [90, 10])
    assert threshold_at(scores, 0.05) == 1
    assert threshold_at(scores, 0.1) == 0


def test_a_nan_validation_score_gives_a_nan_threshold() -> None:
    assert np.isnan(threshold_at(np.array([1.0, NAN]), 0.05))


@pytest.mark.parametrize("rate", [-0.1, 1, NAN])
def test_false_positive_rates_outside_the_range_raise_an_error(rate: float) -> None:
    with pytest.raises(ValueError, match=r"false_positive_rate: .*\[0, 1\) is allowed"):
        threshold_at(np.ones(3), rate)


def test_a_threshold_without_validation_images_raises_an_error() -> None:
    with pytest.raises(ValueError, match="no validation images"):
        threshold_at(np.empty(0), 0.05)


def test_rates_and_areas_of_a_known_detector() -> None:
    clean, adversarial = np.arange(10.0), np.arange(10.0) + 5
    successful = np.arange(10) >= 4
    clean_correct = np.arange(10) >= 2
    row = detection_row(clean, adversarial, clean_correct, successful, 8.0, alone(10))
    # of the 8 images that are correct without an attack, all 6 successful attacks are flagged
    assert row["undetected_success_rate"] == 0
    above = detection_row(clean, adversarial, clean_correct, successful, 11.0, alone(10))
    assert above["undetected_success_rate"] == 3 / 8
    assert 0 < above["undetected_success_rate_low"] < 3 / 8 < above["undetected_success_rate_high"]
    assert (row["n"], row["n_successful"], row["threshold"]) == (10, 6, 8)
    # above 8: the clean score 9, and the adversarial scores 9 to 14, whose attacks are all successful
    for name, n_flagged, n in (
        ("false_positive_rate", 1, 10),
        ("detection_rate", 6, 10),
        ("detection_rate_successful", 6, 6),
    ):
        expected = rate_estimate(np.arange(n) < n_flagged, np.arange(n))
        assert (row[name], row[f"{name}_low"], row[f"{name}_high"]) == expected
        assert expected.value == n_flagged / n
    # 90 pairs of different images; an adversarial score ties with the clean score 5 above and exceeds the smaller ones
    assert row["auroc"] == pytest.approx((sum(min(i + 5, 10) for i in range(10)) - 10 + 0.5 * 5) / 90)
    assert row["auroc_successful"] == pytest.approx(14 / 15 + 1 / 15 * 0.5 + 0.5 / 30, abs=0.04)
    assert 0.5 < row["auroc_low"] < row["auroc"] < row["auroc_high"] <= 1


@settings(max_examples=20)
@given(st.data())
def test_the_auroc_is_the_share_of_correctly_ordered_pairs_of_different_images(data: st.DataObject) -> None:
    clean = data.draw(SCORES)
    adversarial = data.draw(st.lists(st.floats(-3, 3), min_size=len(clean), max_size=len(clean)).map(np.array))
    groups = np.array(data.draw(st.lists(st.integers(0, 9), min_size=len(clean), max_size=len(clean))))
    jackknife = GroupJackknife(groups)
    row = detection_row(clean, adversarial, *np.ones((2, len(clean)), dtype=bool), 0.0, jackknife)
    if np.ptp([clean, adversarial]) == 0:
        # equal scores would look like a measured overlap
        assert np.isnan([row["auroc"], row["auroc_low"], row["auroc_high"]]).all()
        return
    ordered = (np.sign(adversarial[:, None] - clean) + 1) / 2
    areas = []
    for weights in jackknife.counts:
        pairs = np.outer(weights, weights) * ~np.eye(len(clean), dtype=bool)
        areas.append((pairs * ordered).sum() / pairs.sum() if pairs.sum() else np.nan)
    assert row["auroc"] == pytest.approx(areas[0], nan_ok=True)
    bounds = [float(bound) for bound in jackknife.interval(np.array(areas), RATE)]
    assert [row["auroc_low"], row["auroc_high"]] == pytest.approx(bounds, nan_ok=True)


def test_a_tiny_change_of_all_scores_gives_an_auroc_of_one_half() -> None:
    # each adversarial score exceeds its clean version and the smaller scores
    clean = np.random.default_rng(0).standard_normal(100) * 10
    row = detection_row(clean, clean + 1e-9, *np.ones((2, 100), dtype=bool), 0.0, alone(100))
    # 100 groups may miss a share of 3.6 % with other scores
    half = (1 - 0.025 ** (1 / 100)) / 2
    assert [row[name] for name in ("auroc", "auroc_low", "auroc_high")] == pytest.approx([0.5, 0.5 - half, 0.5 + half])


def test_rates_of_successful_attacks_are_undefined_without_any() -> None:
    row = detection_row(np.zeros(4), np.ones(4), np.ones(4, dtype=bool), np.zeros(4, dtype=bool), 0.5, alone(4))
    names = ["detection_rate_successful", "detection_rate_successful_low", "detection_rate_successful_high"]
    assert np.isnan([row[name] for name in names]).all()
    assert (row["auroc"], row["detection_rate"], row["n_successful"]) == (1, 1, 0)


def test_a_nan_score_makes_only_its_own_metrics_undefined() -> None:
    adversarial = np.where(np.arange(9) == 4, NAN, 1.0)
    row = detection_row(np.zeros(9), adversarial, np.ones(9, dtype=bool), np.arange(9) != 4, 0.5, alone(9))
    undefined = {name for name, value in row.items() if np.isnan(value)}
    names = ("auroc", "detection_rate", "undetected_success_rate")
    assert undefined == {f"{name}{end}" for name in names for end in ("", "_low", "_high")}
    assert row["auroc_successful"] == row["detection_rate_successful"] == 1


def test_a_nan_threshold_leaves_areas_but_no_rates() -> None:
    row = detection_row(np.zeros(3), np.ones(3), *np.ones((2, 3), dtype=bool), NAN, alone(3))
    assert row["auroc"] == 1
    assert np.isnan([row["false_positive_rate"], row["detection_rate"], row["detection_rate_successful"]]).all()


def test_a_detector_rejects_images_above_the_threshold_of_the_validation_images() -> None:
    validation = np.arange(100.0)
    clean = np.array([10.0, 50.0, 97.0, 99.0])
    adversarial = np.array([20.0, 96.0, 98.0, 200.0])
    clean_correct, correct = np.array([True, True, False, True]), np.array([True, False, False, True])
    rows = rejection_rows(clean, adversarial, clean_correct, correct, validation, np.arange(4))
    rows = rows.set_index("nominal_false_positive_rate")
    without, behind = rows.loc[0.0], rows.loc[0.05]
    assert without[
        [
            "clean_rejection_rate",
            "adversarial_rejection_rate",
            "clean_accepted_accuracy",
            "accepted_accuracy",
            "undetected_error_rate",
        ]
    ].tolist() == [0, 0, 3 / 4, 2 / 4, 2 / 4]
    # 5 of the 100 validation images are above 94
    assert behind["threshold"] == 94
    assert behind[["clean_rejection_rate", "adversarial_rejection_rate", "n_accepted"]].tolist() == [2 / 4, 3 / 4, 1]
    assert behind[["clean_accepted_accuracy", "accepted_accuracy", "undetected_error_rate"]].tolist() == [1, 1, 0]
    assert (rows["adversarial_rejection_rate"].diff().dropna() >= 0).all()


def test_every_rate_behind_a_detector_has_an_interval_by_group() -> None:
    draws = np.random.default_rng(0)
    scores, correct = draws.normal(size=(3, 60)), draws.random((2, 60)) < 0.7
    rows = rejection_rows(scores[0], scores[1] + 1, *correct, scores[2], np.arange(60) // 2)
    rates = [name for name in rows if name.endswith(("_rate", "_accuracy")) and not name.startswith("nominal")]
    assert len(rates) == 5
    for name in rates:
        below, above = rows[name] - rows[f"{name}_low"], rows[f"{name}_high"] - rows[name]
        assert ((below >= 0) & (above >= 0) & (below + above > 0)).all()


def test_accuracy_is_undefined_behind_a_detector_that_rejects_all_images() -> None:
    everything = np.ones(3, dtype=bool)
    row = rejection_rows(np.ones(3), np.full(3, 9.0), everything, ~everything, np.arange(3.0), np.arange(3)).iloc[-1]
    assert row["n_accepted"] == 0
    assert np.isnan(row[["accepted_accuracy", "accepted_accuracy_low", "accepted_accuracy_high"]].astype(float)).all()
    assert row["undetected_error_rate"] == 0


def test_accuracy_behind_a_detector_has_the_interval_of_the_accepted_images_by_group() -> None:
    scores, groups = np.arange(60) % 3 / 2, np.repeat(np.arange(20), 3)
    correct = np.arange(60) % 4 > 0
    rows = rejection_rows(scores, scores, correct, correct, np.array([0.0, 0.5]), groups)
    behind, accepted = rows.iloc[1], scores <= 0.5
    assert behind["threshold"] == 0.5
    expected = rate_estimate(correct & accepted, groups, accepted)
    names = ["accepted_accuracy", "accepted_accuracy_low", "accepted_accuracy_high"]
    assert tuple(behind[names]) == expected
    assert 0 < expected.low < expected.value < expected.high < 1
