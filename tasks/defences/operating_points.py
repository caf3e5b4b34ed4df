"""Choice of the operating points of a target: biases on its logits, from validation images."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tasks.records.operating_points import OperatingPoint
from tasks.records.vocabulary import AS_TRAINED, FIXED_SENSITIVITY, RECALIBRATED

MIN_EFFECTIVE_GROUPS = 5.0
"""As in ``tasks/statistics/groups.py``, which attacks must not import: a change of statistics would repeat them."""
N_RESAMPLES = 500
"""Bootstrap resamples of the intervals of the biases."""
Choice = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Takes logits ``(N, K)`` and true classes ``(N,)``, returns the biases of the logits ``(K,)``."""

MAX_PASSES = 20
"""Maximum number of passes over the classes; with two classes the first pass is exact."""


@dataclass(frozen=True)
class ChosenBiases:
    """Biases on the logits, and their uncertainty."""

    biases: np.ndarray
    """float64 ``(K,)``; the first is 0."""
    low: np.ndarray
    """Lower bounds of the 95 % intervals of the biases, ``(K,)``; NaN if no resample has every class."""
    high: np.ndarray
    """Upper bounds, ``(K,)``."""


def choose_operating_points(
    logits: np.ndarray, labels: np.ndarray, groups: np.ndarray, positive: int, sensitivity: float, seed: int
) -> list[OperatingPoint]:
    """Return the operating points of a target, from its logits of the validation images.

    ``as_trained`` has no bias. ``recalibrated`` has the highest balanced accuracy. ``fixed_sensitivity``, for two
    classes, has a given sensitivity and otherwise the highest specificity. Without a validation image of every class,
    only ``as_trained`` is possible. The biases have no interval if a class has too few groups, or where the validation
    images do not determine them: a range of biases is best in nearly every resample, such as that between two separated
    classes.

    Args:
        logits: of the validation images, ``(N, K)``.
        labels: true classes, int ``(N,)``.
        groups: group of each image, int ``(N,)``.
        positive: label of the positive class.
        sensitivity: of ``fixed_sensitivity``, in (0, 1].
        seed: of the bootstrap.
    """
    n_classes = logits.shape[1]
    points = [OperatingPoint(AS_TRAINED, (0.0,) * n_classes)]
    if len(np.unique(labels)) < n_classes:
        return points
    sizes = [np.unique(groups[labels == label], return_counts=True)[1] for label in range(n_classes)]
    has_few_groups = any(of.sum() ** 2 / np.square(of).sum() < MIN_EFFECTIVE_GROUPS for of in sizes)
    choices: dict[str, Choice] = {RECALIBRATED: balanced_biases}
    if n_classes == 2:
        choices[FIXED_SENSITIVITY] = lambda of, true: sensitivity_biases(of, true, positive, sensitivity)
    for name, choice in choices.items():
        chosen = choose_biases(choice, logits, labels, groups, N_RESAMPLES, seed)
        low, high = (tuple(map(float, of)) for of in (chosen.low, chosen.high))
        # without a width, the same bias is among the best in most resamples, and their range is not known
        is_determined = not np.isnan(chosen.low).any() and (chosen.low < chosen.high)[1:].all()
        bounds = (low, high) if is_determined and not has_few_groups else (None, None)
        points.append(OperatingPoint(name, tuple(map(float, chosen.biases)), *bounds))
    return points


def choose_biases(
    choice: Choice, logits: np.ndarray, labels: np.ndarray, groups: np.ndarray, n_resamples: int, seed: int
) -> ChosenBiases:
    """Choose biases on validation images, with percentile intervals of a bootstrap by group.

    Args:
        choice: :func:`balanced_biases`, or :func:`sensitivity_biases` with bound parameters.
        logits: of the validation images, ``(N, K)``.
        labels: true classes, int ``(N,)``.
        groups: group of each image, int ``(N,)``.
        n_resamples: number of resamples; those that lack a class are left out.
        seed: of the resamples.
    """
    rng, names = np.random.default_rng(seed), np.unique(groups)
    rows_of = [np.flatnonzero(groups == name) for name in names]
    n_classes, resampled = len(np.unique(labels)), []
    for _ in range(n_resamples):
        rows = np.concatenate([rows_of[i] for i in rng.integers(len(names), size=len(names))])
        if len(np.unique(labels[rows])) == n_classes:
            resampled.append(choice(logits[rows], labels[rows]))
    biases = choice(logits, labels)
    low, high = np.quantile(resampled or [np.full_like(biases, np.nan)], [0.025, 0.975], axis=0)
    return ChosenBiases(biases, low, high)


def balanced_biases(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the biases with the highest balanced accuracy, the mean of the recalls of the classes, float64 ``(K,)``.

    Each bias in turn is set to its best value for the present other biases, until none changes. Of equal values, the
    one nearest to the present value is taken. With two classes, no biases have a higher balanced accuracy. With more it
    is a local maximum: no change of one bias is better. The bias of the first class is changed, too, by the opposite
    change of all others. Without this, the balanced accuracy of 10 of 30 simulated targets with three classes was below
    the highest one, by up to 22 points; with it that of 1 of 30, by 3 points.

    Args:
        logits: ``(N, K)``.
        labels: true classes, int ``(N,)``; every class occurs.
    """
    n_classes = logits.shape[1]
    weights = (1 / np.bincount(labels, minlength=n_classes))[labels]
    biases = np.zeros(n_classes)
    for _ in range(MAX_PASSES):
        before = biases.copy()
        for k in range(1, n_classes) if n_classes == 2 else (*range(1, n_classes), 0):
            others = np.delete(logits + biases, k, axis=1)
            other_classes = np.delete(np.arange(n_classes), k)
            # class k is predicted where its bias is above this
            needed = others.max(axis=1) - logits[:, k]
            is_k, other_correct = labels == k, other_classes[others.argmax(axis=1)] == labels
            biases[k] = _best_threshold(needed, weights * is_k - weights * (~is_k & other_correct), biases[k])
        biases = biases - biases[0]
        if np.array_equal(before, biases):
            break
    return biases


def sensitivity_biases(logits: np.ndarray, labels: np.ndarray, positive: int, sensitivity: float) -> np.ndarray:
    """Return the biases of two classes with a given sensitivity and otherwise the highest specificity, ``(2,)``.

    Args:
        logits: ``(N, 2)``.
        labels: true classes, int ``(N,)``.
        positive: label of the positive class, which occurs.
        sensitivity: minimum fraction of the positive images that are predicted positive, in (0, 1].
    """
    assert logits.shape[1] == 2
    scores = logits[:, positive].astype(np.float64) - logits[:, 1 - positive]
    of_positive = np.sort(scores[labels == positive])[::-1]
    n_needed = int(np.ceil(sensitivity * len(of_positive) - 1e-9))
    lowest = of_positive[n_needed - 1]
    below = scores[scores < lowest]
    # halfway to the next lower score, so that no image lies on the boundary
    threshold = (lowest + below.max()) / 2 if len(below) else lowest - 1
    # the bias of the first class is 0
    return np.array([0.0, -threshold if positive == 1 else threshold])


def _best_threshold(needed: np.ndarray, gains: np.ndarray, current: float) -> float:
    """Threshold with the largest sum of the gains of all images below it; of equal ones the nearest to ``current``.

    Args:
        needed: value of each image, ``(N,)``.
        gains: gain if the image is below the threshold, ``(N,)``.
        current: the threshold at present.
    """
    values, position = np.unique(needed, return_inverse=True)
    total = np.concatenate([[0.0], np.bincount(position, weights=gains).cumsum()])
    # `current` itself is a candidate, and has the total of the interval that it lies in
    thresholds = np.concatenate([[values[0] - 1], (values[:-1] + values[1:]) / 2, [values[-1] + 1], [current]])
    total = np.append(total, total[np.searchsorted(values, current)])
    best = thresholds[total >= total.max() - 1e-12]
    return float(best[np.abs(best - current).argmin()])
