"""Overlap of clean and adversarial features, measured in the original feature space.

All metrics depend on the inner products of the features only.
"""

from functools import partial
from itertools import combinations

import numpy as np
import scipy.linalg
from sklearn.metrics import silhouette_samples
from sklearn.neighbors import KNeighborsRegressor

from tasks.analysis.inner_products import gram, squared_distances
from tasks.statistics.groups import GroupJackknife
from tasks.statistics.intervals import CORRELATION, RATE, UNDEFINED, Estimate
from tasks.statistics.resampled import resampled_mean

N_FOLDS = 5
"""Folds of the cross-validation; fewer if there are fewer groups."""

N_NEIGHBOURS = 15
"""Neighbours of the k-NN classifier; fewer if the training folds hold fewer."""

CHANCE_FACTOR = 2**0.5
"""Factor of the standard error of a linear probe's AUROC that does not differ from 0.5.

Without a difference of the classes, the direction of a probe is only the noise of its training folds. The AUROC is then
the sum, over ordered pairs of folds, of the product of the noise of a training fold and that of a test fold. Each
unordered pair is in this sum twice. The standard error for given probes counts it once, so the variance is half of the
true one.
"""

N_PERMUTATIONS = 1000
"""Permutations of the test; a p-value is therefore at least 1 / 1001."""

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Candidate penalties of the ridge regression, in units of the mean squared length of a feature vector."""


def overlap(
    clean: np.ndarray,
    adversarial: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    seed: int,
    success: np.ndarray | None = None,
) -> dict[str, Estimate]:
    """Metrics of the overlap of clean and adversarial features, and of the classes before and after the attack.

    - ``linear_probe_auroc``, ``knn_auroc``: AUROC of a linear probe and of k-NN that classify features as adversarial
      or clean, cross-validated. 0.5: the features overlap, 1: they are separable.
    - ``linear_probe_auroc_successful``, ``knn_auroc_successful``: the same scores, compared on the successful images.
    - ``silhouette``: mean silhouette (Rousseeuw 1987) of adversarial versus clean, in [-1, 1]; 0: they overlap.
    - ``mmd``, ``mmd_p_value``: see :func:`mmd`; without an interval.
    - ``class_auroc_clean``, ``class_auroc_adversarial``: AUROC of a linear probe for the class, which is fitted to
      clean features and tested on both versions of the held-out images; one versus rest, mean over the classes.
    - ``class_silhouette_clean``, ``class_silhouette_adversarial``: mean silhouette of the class.

    Both versions of an image and all images of a group are in the same fold. Otherwise the clean version of a held-out
    image would be in the training set. For k-NN, each training image is present in one version only, half of them
    clean. An AUROC is the share of correctly ordered pairs among the pairs within a fold, with ties as half, because
    scores of different fits are not comparable. The intervals are 95 % intervals by group; both versions of
    an image belong to its group. They are for the AUROC on new groups of the classifiers that were fitted here, as in
    Bayle, Bayle, Janson and Mackey 2020 ("Cross-validation confidence intervals for test error", NeurIPS 33), so the
    cross-validation is not repeated. Near 0.5, those of the linear probe are wider by ``CHANCE_FACTOR``.

    NaN: AUROCs and the p-value with fewer than two groups, AUROCs if the scores of all compared pairs are equal (for
    example if so few images all have the same neighbours), class metrics with one class, everything with one image.

    Args:
        clean: features of the clean images, float32 ``(N, D)``.
        adversarial: features of their adversarial versions, in the same order, float32 ``(N, D)``.
        labels: true classes, int ``(N,)``.
        groups: group of each image, int ``(N,)``.
        seed: of folds and permutations.
        success: whether the attack is successful, bool ``(N,)``; for all images by default.

    Raises:
        ValueError: features are not finite, or their shapes differ.
    """
    kernel = gram(clean, adversarial)
    n = len(labels)
    squared = squared_distances(kernel)
    distances = np.sqrt(squared)
    jackknife, n_classes = GroupJackknife(groups), len(np.unique(labels))
    members = [labels == label for label in np.unique(labels)]
    is_adversarial = np.repeat([0, 1], n)
    success = np.ones(n, dtype=bool) if success is None else success
    probes = ("linear_probe_auroc", "knn_auroc")
    estimates = dict.fromkeys((*probes, *(f"{name}_successful" for name in probes)), UNDEFINED)
    estimates["silhouette"] = _silhouette(distances, is_adversarial, jackknife, [])
    discrepancy, p_value = mmd(squared, groups, seed)
    estimates["mmd"] = UNDEFINED._replace(value=discrepancy)
    estimates["mmd_p_value"] = UNDEFINED._replace(value=p_value)
    estimates |= dict.fromkeys(("class_auroc_clean", "class_auroc_adversarial"), UNDEFINED)
    estimates["class_silhouette_clean"] = _silhouette(distances[:n, :n], labels, jackknife, members)
    estimates["class_silhouette_adversarial"] = _silhouette(distances[n:, n:], labels, jackknife, members)
    if jackknife.n_groups < 2:
        return estimates

    folds = group_folds(labels, groups, seed)
    same_fold = folds[:, None] == folds
    # the two versions of one image are not independent
    other_image = same_fold & ~np.eye(n, dtype=bool)
    # the intercept of the probes: a constant feature whose square is the mean squared length of the others
    kernel = kernel + kernel.diagonal().mean()
    (probe_scores,) = probe(kernel, 2.0 * is_adversarial[:, None] - 1, np.tile(folds, 2), [kernel])
    (neighbour_scores,) = count_neighbours(squared, np.tile(folds, 2), seed, [squared])
    both_successful = other_image & success[:, None] & success
    scores = {"linear_probe_auroc": (probe_scores, CHANCE_FACTOR), "knn_auroc": (neighbour_scores, 1.0)}
    for name, (values, factor) in scores.items():
        by_version = values[n:], values[:n]
        estimates[name] = _auroc(*by_version, [other_image], jackknife, [], factor)
        estimates[f"{name}_successful"] = _auroc(*by_version, [both_successful], jackknife, [success], factor)
    if n_classes > 1:
        one_hot = labels[:, None] == np.unique(labels)
        comparable = [same_fold & member[:, None] & ~member for member in one_hot.T]
        blocks = [kernel[:n, :n], kernel[n:, :n]]
        class_scores = probe(kernel[:n, :n], 2.0 * one_hot - 1, folds, blocks)
        for name, values in zip(("clean", "adversarial"), class_scores, strict=True):
            estimates[f"class_auroc_{name}"] = _auroc(values, values, comparable, jackknife, members, CHANCE_FACTOR)
    return estimates


def group_folds(labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Fold of each image, int ``(N,)`` in [0, F), where F is 5 or the number of groups if that is smaller.

    The groups are distributed class by class in random order, so that the classes have similar shares in every fold.

    Args:
        labels: int ``(N,)``; the class of a group is that of its first image.
        groups: int ``(N,)``.
        seed: of the order.
    """
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(first))
    order = order[np.argsort(labels[first][order], kind="stable")]
    fold_of_group = np.empty(len(first), dtype=np.int64)
    fold_of_group[order] = np.arange(len(first)) % N_FOLDS
    folds: np.ndarray = fold_of_group[group]
    return folds


def mmd(squared: np.ndarray, groups: np.ndarray, seed: int) -> tuple[float, float]:
    """Squared maximum mean discrepancy of clean and adversarial features, and its permutation p-value.

    This is the unbiased estimate of Gretton et al. 2012 ("A kernel two-sample test", JMLR 13, 723-773), equation 4:
    the mean over i != j of H_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j). It is about 0 for equal
    distributions and can be negative. The two versions of one image, k(x_i, y_i), are left out because they are not
    independent. k is the Gaussian kernel; its width is the median distance.

    A permutation swaps the clean and the adversarial version of all images of a group at once, because perturbations
    within a group are similar. Swapping pair i flips the sign of row and column i of H, so s'Hs gives all permutations
    in one matrix product. p = (1 + number of permutations that reach the estimate) / (1 + number of permutations).

    Args:
        squared: squared distances, clean features first, ``(2N, 2N)``.
        groups: int ``(N,)``.
        seed: of the permutations.

    Returns:
        The estimate, NaN for one image; the p-value, NaN for fewer than two groups.
    """
    n = len(groups)
    if n < 2:
        return float("nan"), float("nan")
    median = np.median(squared[np.triu_indices(2 * n, k=1)]) or 1.0
    similarity = np.exp(-squared / (2 * median))
    across = similarity[:n, n:]
    differences = similarity[:n, :n] + similarity[n:, n:] - across - across.T
    np.fill_diagonal(differences, 0)
    names, group = np.unique(groups, return_inverse=True)
    member = (group[:, None] == np.arange(len(names))).astype(np.float64)
    by_group = member.T @ differences @ member
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(N_PERMUTATIONS, len(names)))
    permuted = ((signs @ by_group) * signs).sum(axis=1)
    total = differences.sum()
    # the tolerance is for rounding: a permutation that swaps nothing must reach the estimate
    n_reached = (permuted >= total - 1e-9 * np.abs(by_group).sum()).sum()
    p_value = (1 + n_reached) / (1 + N_PERMUTATIONS) if len(names) > 1 else float("nan")
    return float(total / (n * (n - 1))), float(p_value)


def probe(kernel: np.ndarray, targets: np.ndarray, folds: np.ndarray, evaluated: list[np.ndarray]) -> list[np.ndarray]:
    """Cross-validated scores of a linear probe, float64 ``(N, C)`` for each evaluated kernel.

    The probe is a kernel ridge regression on -1 and 1. The penalty of a fold is the one with the smallest squared
    error in a cross-validation over the other folds. With two folds there is no such cross-validation, and the middle
    penalty is used.

    Args:
        kernel: inner products of the N samples, ``(N, N)``.
        targets: -1 or 1 for each of C classifiers, ``(N, C)``.
        folds: int ``(N,)`` in [0, F).
        evaluated: inner products of versions of the N samples with the N samples, ``(N, N)`` each; a version is scored
            by the fit without the fold of its sample.
    """
    n_folds = int(folds.max()) + 1
    penalties = np.array(PENALTIES if n_folds > 2 else PENALTIES[2:3])

    def fit(known: np.ndarray, penalty: float) -> np.ndarray:
        block = kernel[np.ix_(known, known)]
        block.flat[:: len(block) + 1] += penalty * (kernel.diagonal().mean() or 1.0)
        weights: np.ndarray = scipy.linalg.solve(
            block, targets[known], assume_a="pos", overwrite_a=True, check_finite=False
        )
        return weights

    errors = np.zeros((n_folds, len(penalties)))
    # the fit without two folds serves twice: either fold can be the one that is held out by the outer cross-validation
    for pair in combinations(range(n_folds), 2):
        held = np.isin(folds, pair)
        for column, penalty in enumerate(penalties):
            residuals = kernel[np.ix_(held, ~held)] @ fit(~held, penalty) - targets[held]
            squared = np.square(residuals).sum(axis=1)
            for outer, inner in (pair, pair[::-1]):
                errors[outer, column] += squared[folds[held] == inner].sum()
    scores = [np.empty(targets.shape) for _ in evaluated]
    for fold, penalty in enumerate(penalties[errors.argmin(axis=1)]):
        held = folds == fold
        weights = fit(~held, penalty)
        for values, block in zip(scores, evaluated, strict=True):
            values[held] = block[np.ix_(held, ~held)] @ weights
    # further digits are rounding errors, which must not order equal features
    return [values.round(9) for values in scores]


def count_neighbours(
    squared: np.ndarray, folds: np.ndarray, seed: int, evaluated: list[np.ndarray]
) -> list[np.ndarray]:
    """Share of adversarial features among the nearest neighbours in the other folds, float64 ``(2N, 1)`` each.

    Args:
        squared: squared distances of the features, clean features first, ``(2N, 2N)``.
        folds: int ``(2N,)``.
        seed: of the choice of one version of each image, whose feature can be a neighbour.
        evaluated: squared distances of versions of the features to the features, ``(2N, 2N)`` each; a version is scored
            by the neighbours outside the fold of its feature.
    """
    n = len(folds) // 2
    is_adversarial = np.repeat([0, 1], n)
    # With both versions of every image, the nearer version would be a neighbour more often. The AUROC would then
    # differ from 0.5 even if both kinds were perfectly mixed.
    chosen_version = np.random.default_rng(seed).permutation(n) % 2
    candidates = np.tile(chosen_version, 2) == is_adversarial
    scores = [np.empty((2 * n, 1)) for _ in evaluated]
    for fold in np.unique(folds):
        held, known = folds == fold, candidates & (folds != fold)
        model = KNeighborsRegressor(min(N_NEIGHBOURS, int(known.sum())), metric="precomputed")
        model.fit(squared[np.ix_(known, known)], is_adversarial[known])
        found = model.predict(np.concatenate([block[np.ix_(held, known)] for block in evaluated]))
        for values, of_block in zip(scores, np.split(found, len(evaluated)), strict=True):
            values[held, 0] = of_block
    return scores


def _silhouette(
    distances: np.ndarray, clusters: np.ndarray, jackknife: GroupJackknife, sides: list[np.ndarray]
) -> Estimate:
    if not 2 <= len(np.unique(clusters)) < len(clusters):
        return UNDEFINED
    values = silhouette_samples(distances, clusters, metric="precomputed")
    of_images = values.reshape(-1, len(jackknife.groups)).mean(axis=0)
    return jackknife.estimate(partial(resampled_mean, of_images), CORRELATION, sides)


def _auroc(
    high: np.ndarray,
    low: np.ndarray,
    comparable: list[np.ndarray],
    jackknife: GroupJackknife,
    sides: list[np.ndarray],
    chance_factor: float,
) -> Estimate:
    """AUROC as in :func:`_ordered_fraction`, with its interval; undefined if all compared pairs tie.

    If the interval whose standard error is ``chance_factor`` times larger contains 0.5, it is the interval.
    """
    is_tied = all(
        (above[:, None] == below)[pairs].all() for above, below, pairs in zip(high.T, low.T, comparable, strict=True)
    )
    if is_tied:
        return UNDEFINED
    values = _ordered_fraction(high, low, comparable, jackknife.counts)
    at_chance = jackknife.interval(values[0] + chance_factor * (values - values[0]), RATE, sides)
    lower, upper = at_chance if at_chance[0] <= 0.5 <= at_chance[1] else jackknife.interval(values, RATE, sides)
    return Estimate(float(values[0]), float(lower), float(upper))


def _ordered_fraction(
    high: np.ndarray, low: np.ndarray, comparable: list[np.ndarray], counts: np.ndarray
) -> np.ndarray:
    """Share of comparable pairs in which ``high`` exceeds ``low``, mean over C classifiers, float64 ``(R,)``.

    Args:
        high: scores that should be high, ``(N, C)``.
        low: scores that should be low, ``(N, C)``.
        comparable: C masks ``(N, N)`` of the pairs (image of ``high``, image of ``low``) to compare.
        counts: ``(R, N)``.

    Returns:
        NaN for resamples without a pair for one of the classifiers.
    """
    areas = np.empty((len(comparable), len(counts)))
    for area, above, below, pairs in zip(areas, high.T, low.T, comparable, strict=True):
        ordered = np.where(pairs, (np.sign(above[:, None] - below) + 1) / 2, 0).astype(np.float32)
        n_ordered, n_pairs = (
            np.einsum("ri,ri->r", counts @ of_pairs, counts, dtype=np.float64) for of_pairs in (ordered, pairs)
        )
        area[:] = np.divide(n_ordered, n_pairs, out=np.full(len(counts), np.nan), where=n_pairs > 0)
    means: np.ndarray = areas.mean(axis=0)
    return means
