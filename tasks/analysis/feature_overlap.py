"""Do clean and adversarial features overlap? Numbers in the original feature space, not in a plot of it.

Everything here is a function of inner products, so features of any length are read once, by :func:`gram`.
"""

from functools import partial
from itertools import combinations

import numpy as np
import scipy.linalg
from sklearn.metrics import silhouette_samples

from tasks.statistics.intervals import Estimate, bootstrap, resampled_mean

N_FOLDS = 5
"""Folds of the cross-validation; fewer where there are fewer groups."""

N_NEIGHBOURS = 15
"""Neighbours that the k-NN classifier asks; fewer where the other folds hold fewer."""

N_PERMUTATIONS = 1000
"""Permutations behind a p-value, which is therefore at least 1 / 1001."""

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge penalties to choose from, in units of the mean squared length of a feature vector with its constant."""

UNDEFINED = Estimate(float("nan"), float("nan"), float("nan"))


def overlap(
    clean: np.ndarray, adversarial: np.ndarray, labels: np.ndarray, groups: np.ndarray, counts: np.ndarray, seed: int
) -> dict[str, Estimate]:
    """How well clean and adversarial features can be told apart, and the classes before and after.

    - ``probe_auroc``, ``knn_auroc``: a linear probe and k-NN that tell adversarial from clean, cross-validated. 0.5:
      they overlap, 1: they are told apart.
    - ``silhouette``: mean silhouette (Rousseeuw 1987) of the origin, in [-1, 1]; 0: they overlap.
    - ``mmd``, ``mmd_p_value``: see :func:`mmd`; no interval.
    - ``class_auroc_clean``, ``class_auroc_adversarial``: a linear probe for the class, fitted to clean features and
      scored on both versions of the images held out; one-vs-rest, macro-averaged over the classes.
    - ``class_silhouette_clean``, ``class_silhouette_adversarial``: mean silhouette of the class.

    Folds keep the images of a group together, and both versions of an image: the clean twin of a held-out image, if it
    were learnt from, would tell the answer. k-NN asks one version of each image of the other folds, half of them clean.
    An AUROC is the share of pairs in the right order (ties count as half) among the pairs within folds: scores of
    different fits are never compared, so they need no normalisation. Intervals: 95 %, bootstrap over images, both
    versions drawn together, of the scores of one cross-validation.

    NaN: AUROCs and the p-value with fewer than two groups, whatever is about classes with one class, everything with
    one image.

    Args:
        clean: features of the clean images, float32 ``(N, D)``.
        adversarial: of their adversarial versions, in the same order, float32 ``(N, D)``.
        labels: classes, int ``(N,)``.
        groups: images of one patient share a number, int ``(N,)``.
        counts: of :func:`tasks.statistics.intervals.bootstrap_counts`, ``(R, N)``.
        seed: of folds and permutations.

    Raises:
        ValueError: features are not finite, or their shapes differ.
    """
    kernel = gram(clean, adversarial)
    n = len(labels)
    squared = squared_distances(kernel)
    distances = np.sqrt(squared)
    n_groups, n_classes = len(np.unique(groups)), len(np.unique(labels))
    origin = np.repeat([0, 1], n)
    figures = dict.fromkeys(("probe_auroc", "knn_auroc"), UNDEFINED)
    figures["silhouette"] = _silhouette(distances, origin, counts)
    distance, p_value = mmd(squared, groups, seed)
    figures["mmd"] = UNDEFINED._replace(value=distance)
    figures["mmd_p_value"] = UNDEFINED._replace(value=p_value)
    figures |= dict.fromkeys(("class_auroc_clean", "class_auroc_adversarial"), UNDEFINED)
    figures["class_silhouette_clean"] = _silhouette(distances[:n, :n], labels, counts)
    figures["class_silhouette_adversarial"] = _silhouette(distances[n:, n:], labels, counts)
    if n_groups < 2:
        return figures

    folds = group_folds(labels, groups, seed)
    same_fold = folds[:, None] == folds
    # an image and its own twin are no two draws, and a resample that draws it twice would count their pair four times
    others = same_fold & ~np.eye(n, dtype=bool)
    # a constant feature, as long as the others together: the probes' intercept
    kernel = kernel + kernel.diagonal().mean()
    scores = {
        "probe_auroc": _origin_scores(kernel, np.tile(folds, 2), origin),
        "knn_auroc": _neighbour_scores(squared, np.tile(folds, 2), origin, seed),
    }
    for name, of_both in scores.items():
        figures[name] = bootstrap(partial(_auroc, of_both[n:], of_both[:n], [others]), counts)
    if n_classes > 1:
        one_hot = labels[:, None] == np.unique(labels)
        comparable = [same_fold & member[:, None] & ~member for member in one_hot.T]
        weights = _probe_weights(kernel[:n, :n], 2.0 * one_hot - 1, folds)
        for name, block in (("clean", kernel[:n, :n]), ("adversarial", kernel[n:, :n])):
            by_class = _held_out_scores(block, weights, folds)
            figures[f"class_auroc_{name}"] = bootstrap(partial(_auroc, by_class, by_class, comparable), counts)
    return figures


def gram(clean: np.ndarray, adversarial: np.ndarray) -> np.ndarray:
    """Inner products of all features, clean ones first, after their common mean is taken off; float64 ``(2N, 2N)``.

    They are put together from those of the pairs' midpoints and half differences: a perturbation far smaller than the
    features then keeps its digits in float32, and equal features get equal rows.

    Args:
        clean: float32 ``(N, D)``.
        adversarial: float32 ``(N, D)``, row i the other version of row i of ``clean``.

    Raises:
        ValueError: features are not finite, or their shapes differ.
    """
    if clean.ndim != 2 or clean.shape != adversarial.shape or not len(clean):
        raise ValueError(f"features must be two (N, D) arrays of one shape, not {clean.shape} and {adversarial.shape}")
    if not (np.isfinite(clean).all() and np.isfinite(adversarial).all()):
        raise ValueError("features must be finite: there are NaN or infinite ones")
    n = len(clean)
    parts = np.concatenate([(clean + adversarial) / 2, (adversarial - clean) / 2])
    parts[:n] -= parts[:n].mean(axis=0, dtype=np.float64)
    products = (parts @ parts.T).astype(np.float64)
    middle, half, mixed = products[:n, :n], products[n:, n:], products[:n, n:]
    across = middle - half + mixed - mixed.T
    of_clean, of_adversarial = middle + half - (mixed + mixed.T), middle + half + (mixed + mixed.T)
    return np.block([[of_clean, across], [across.T, of_adversarial]])


def squared_distances(kernel: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances, float64 ``(M, M)``, at least 0, from inner products ``(M, M)``."""
    lengths = kernel.diagonal()
    squared: np.ndarray = np.maximum(lengths[:, None] + lengths - 2 * kernel, 0)
    np.fill_diagonal(squared, 0)
    return squared


def group_folds(labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Fold of each image, int ``(N,)`` in [0, F), F = 5 or the number of groups if that is smaller.

    Groups are dealt out class by class, in random order, so that folds hold alike shares of each class.

    Args:
        labels: int ``(N,)``; a group belongs to the class of its first image.
        groups: int ``(N,)``.
        seed: of the order.
    """
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    dealt = np.random.default_rng(seed).permutation(len(first))
    dealt = dealt[np.argsort(labels[first][dealt], kind="stable")]
    fold_of = np.empty(len(first), dtype=np.int64)
    fold_of[dealt] = np.arange(len(first)) % N_FOLDS
    folds: np.ndarray = fold_of[group]
    return folds


def mmd(squared: np.ndarray, groups: np.ndarray, seed: int) -> tuple[float, float]:
    """Squared maximum mean discrepancy of clean and adversarial features, and its permutation p-value.

    The unbiased estimate of Gretton et al. 2012 ("A kernel two-sample test", JMLR 13, 723-773), equation 4: the mean
    over i != j of H_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j), about 0 (also below it) for equal
    distributions. It leaves out the twins, k(x_i, y_i), which are no independent draws. k is the Gaussian kernel, its
    width the median distance.

    Permutations swap clean and adversarial within pairs. A swap of pair i flips the sign of row and column i of H, so
    all permutations are one matrix product s'Hs. The pairs of a group are swapped together: perturbations of one
    patient's slices are alike, and swapped one by one they would pass for independent witnesses. p = (1 + number of
    permutations that reach the estimate) / (1 + their number).

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
    # rounding must not turn a permutation that changes nothing into a smaller one
    n_reached = (permuted >= total - 1e-9 * np.abs(by_group).sum()).sum()
    p_value = (1 + n_reached) / (1 + N_PERMUTATIONS) if len(names) > 1 else float("nan")
    return float(total / (n * (n - 1))), float(p_value)


def _silhouette(distances: np.ndarray, clusters: np.ndarray, counts: np.ndarray) -> Estimate:
    if not 2 <= len(np.unique(clusters)) < len(clusters):
        return UNDEFINED
    values = silhouette_samples(distances, clusters, metric="precomputed")
    of_images = values.reshape(-1, counts.shape[1]).mean(axis=0)
    return bootstrap(partial(resampled_mean, of_images), counts)


def _origin_scores(kernel: np.ndarray, folds: np.ndarray, origin: np.ndarray) -> np.ndarray:
    weights = _probe_weights(kernel, 2.0 * origin[:, None] - 1, folds)
    return _held_out_scores(kernel, weights, folds)


def _neighbour_scores(squared: np.ndarray, folds: np.ndarray, origin: np.ndarray, seed: int) -> np.ndarray:
    """Share of adversarial features among the nearest of other folds, float64 ``(2N, 1)``."""
    n = len(folds) // 2
    # each image is a neighbour in one version: of twins side by side the nearer one is a neighbour more often, which
    # would tell clean from adversarial images even where both are mixed everywhere
    is_adversarial = np.random.default_rng(seed).permutation(n) % 2
    asked = np.tile(is_adversarial, 2) == origin
    shares = np.empty((2 * n, 1))
    for fold in np.unique(folds):
        held, known = folds == fold, asked & (folds != fold)
        distances = squared[np.ix_(held, known)]
        k = min(N_NEIGHBOURS, distances.shape[1])
        nearest = np.argpartition(distances, k - 1, axis=1)[:, :k]
        shares[held, 0] = origin[known][nearest].mean(axis=1)
    return shares


def _probe_weights(kernel: np.ndarray, targets: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Dual weights of a ridge classifier fitted without each fold, float64 ``(F, M, C)``, zero within it.

    Ridge regression on -1 and 1 finds the direction of a regularised linear discriminant and needs no iterations.
    With C = (K + penalty)^-1 of all samples and the weights a = C y, the fit without the samples H has the weights
    a - C_H (C_HH)^-1 a_H and the held-out residuals (C_HH)^-1 a_H (predicted residual sum of squares, by blocks): one
    inverse for a penalty serves every fold. The penalty of a fold is the one with the smallest squared error in a
    cross-validation over the other folds; with two folds there is none to be had, and the middle one is taken.

    Args:
        kernel: inner products ``(M, M)``.
        targets: -1 or 1 for each classifier, ``(M, C)``.
        folds: int ``(M,)`` in [0, F).
    """
    n_folds = int(folds.max()) + 1
    penalties = PENALTIES if n_folds > 2 else PENALTIES[2:3]
    unit = np.eye(len(kernel)) * (kernel.diagonal().mean() or 1.0)
    errors = np.zeros((len(penalties), n_folds))
    weights = np.zeros((len(penalties), n_folds, *targets.shape))
    for candidate, penalty in enumerate(penalties):
        inverse = scipy.linalg.inv(kernel + penalty * unit, assume_a="pos", check_finite=False)
        full = inverse @ targets
        for fold in range(n_folds):
            held = folds == fold
            without = full - inverse[:, held] @ _held_out_residuals(inverse, full, held)
            weights[candidate, fold] = np.where(held[:, None], 0, without)
        for one, other in combinations(range(n_folds), 2):
            held = (folds == one) | (folds == other)
            error = (_held_out_residuals(inverse, full, held) ** 2).sum(axis=1)
            errors[candidate, one] += error[folds[held] == other].sum()
            errors[candidate, other] += error[folds[held] == one].sum()
    chosen: np.ndarray = weights[errors.argmin(axis=0), np.arange(n_folds)]
    return chosen


def _held_out_residuals(inverse: np.ndarray, full: np.ndarray, held: np.ndarray) -> np.ndarray:
    block = inverse[np.ix_(held, held)]
    residuals: np.ndarray = scipy.linalg.solve(block, full[held], assume_a="pos", check_finite=False)
    return residuals


def _held_out_scores(kernel: np.ndarray, weights: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Score of each sample by the fit without its fold, float64 ``(N, C)``; kernel rows are the samples ``(N, M)``."""
    # targets are -1 and 1, so digits beyond these are rounding, which must not order equal features
    scores: np.ndarray = (kernel @ weights)[folds, np.arange(len(kernel))].round(9)
    return scores


def _auroc(high: np.ndarray, low: np.ndarray, comparable: list[np.ndarray], counts: np.ndarray) -> np.ndarray:
    """Share of comparable pairs in which ``high`` is the higher one, mean over classifiers, float64 ``(R,)``.

    Args:
        high: scores that should be high, ``(N, C)``.
        low: scores that should be low, ``(N, C)``.
        comparable: C masks ``(N, N)`` of the pairs (image of ``high``, image of ``low``) that are compared.
        counts: ``(R, N)``.

    Returns:
        NaN in resamples that hold no pair of some classifier.
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
