"""Balanced accuracy, the mean of the recalls of the classes, with intervals and paired comparisons by group."""

import numpy as np

from tasks.statistics.groups import GroupJackknife, group_sums, rate_deviations, too_few_groups
from tasks.statistics.intervals import RATE, UNBOUNDED, Estimate, jackknife_interval
from tasks.statistics.paired import PairedComparison, detectable_differences, p_value_by_group
from tasks.statistics.rates import combination_interval, rate_intervals, share_bounds


def balanced_accuracies(correct: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> list[Estimate]:
    """Return K balanced accuracies on the same images, with 95 % intervals by group.

    Args:
        correct: whether each image is classified correctly, bool ``(K, N)``.
        labels: true classes, int ``(N,)``.
        groups: group of each image, int ``(N,)``.
    """
    parts = []
    for sums, sizes in _sums_by_class(correct.astype(np.float64), labels, groups):
        parts.append((sums.sum(axis=1) / sizes.sum(axis=1), *rate_intervals(sums, sizes), rate_deviations(sums, sizes)))
    rates, *bounds_and_deviations = (np.stack(part) for part in zip(*parts, strict=True))
    low, high = combination_interval(np.full(len(rates), 1 / len(rates)), rates, *bounds_and_deviations)
    return [Estimate(*map(float, row)) for row in zip(rates.mean(axis=0), low, high, strict=True)]


def compare_balanced(first: np.ndarray, second: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> PairedComparison:
    """Compare the balanced accuracies of two classifiers on the same images.

    In the test, each image is weighted by the inverse size of its class.

    Args:
        first: whether the first classifier is correct on each image, bool ``(N,)``.
        second: the same of the second classifier.
        labels: true classes, int ``(N,)``.
        groups: group of each image, int ``(N,)``.
    """
    differences = first.astype(np.float64) - second
    # gains (only the first classifier is correct) and losses (only the second is)
    parts = np.stack([np.maximum(differences, 0), np.maximum(-differences, 0)])
    low, high = _difference_interval(_sums_by_class(parts, labels, groups))
    # weights with a mean of 1, under which every class counts the same
    sizes = np.bincount(labels)
    weights = len(labels) / (np.count_nonzero(sizes) * sizes[labels])
    weighted, n_images = group_sums(np.stack([weights * differences, np.ones(len(labels))]), groups)
    return PairedComparison(
        difference=Estimate(float((weights * differences).mean()), float(low[0]), float(high[0])),
        p_value=p_value_by_group(weighted),
        n_only_first=int((differences > 0).sum()),
        n_only_second=int((differences < 0).sum()),
        detectable_difference=float(detectable_differences(weighted[None], n_images[None])[0]),
    )


def _difference_interval(by_class: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % interval of a difference of balanced accuracies, float64 ``(1,)`` each; NaN for too few groups.

    The balanced rates of gains and of losses have an interval by the jackknife. Their upper bound is at most the mean
    of Clopper and Pearson's bounds of the share of groups with a gain or a loss, as in
    :func:`tasks.statistics.rates.rate_intervals`.

    Args:
        by_class: sums of gains and of losses, ``(2, G)``, and numbers of images, ``(2, G)``, of each class.
    """
    rates = np.mean([sums.sum(axis=1) / sizes.sum(axis=1) for sums, sizes in by_class], axis=0)
    deviations = np.mean([rate_deviations(sums, sizes) for sums, sizes in by_class], axis=0)
    n_groups = min(int((sizes[0] > 0).sum()) for _, sizes in by_class)
    low, high = jackknife_interval(rates, deviations.T, RATE, n_groups)
    high = np.minimum(high, np.mean([share_bounds(sums, sizes)[0] for sums, sizes in by_class], axis=0))
    if any(too_few_groups(sizes[0]) for _, sizes in by_class):
        high = np.full(2, np.nan)
    of_both = (each[:, None] for each in (rates, low, high, deviations))
    return combination_interval(np.array([1.0, -1.0]), *of_both)


def _sums_by_class(values: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sums of the values of each group, ``(K, G)``, and its numbers of images, ``(K, G)``, for each class.

    Args:
        values: ``(K, N)``.
        labels: true classes, int ``(N,)``.
        groups: group of each image, int ``(N,)``.
    """
    sides = _sides(labels)
    return [(group_sums(values * side, groups), group_sums(np.ones_like(values) * side, groups)) for side in sides]


def balanced_ratio(numerator: np.ndarray, denominator: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> Estimate:
    """Return the ratio of two sums in which every class counts the same, with its 95 % interval by group.

    Args:
        numerator: term of each image in the first sum, ``(N,)``.
        denominator: term of each image in the second sum, ``(N,)``. The ratio is NaN if the sum is 0.
        labels: true classes, int ``(N,)``.
        groups: group of each image, int ``(N,)``.
    """
    jackknife = GroupJackknife(groups)
    means = _balanced_means(np.stack([numerator, denominator]), labels, jackknife.counts)
    ratios = np.divide(means[:, 0], means[:, 1], out=np.full(len(means), np.nan), where=means[:, 1] > 0)
    low, high = jackknife.interval(ratios, UNBOUNDED, _sides(labels))
    return Estimate(float(ratios[0]), float(low), float(high))


def _balanced_means(values: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Means over the classes of the mean of each class, ``(R, K)``; NaN for a resample that lacks a class.

    Args:
        values: ``(K, N)``.
        labels: true classes, int ``(N,)``.
        counts: how often each resample contains each image, ``(R, N)``.
    """
    means = []
    for side in _sides(labels):
        n = counts @ side.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            means.append(np.where(n > 0, (counts @ (values * side).T).T / n, np.nan).T)
    mean: np.ndarray = np.mean(means, axis=0)
    return mean


def _sides(labels: np.ndarray) -> list[np.ndarray]:
    """Return which images belong to each class that occurs, bool ``(N,)`` each."""
    return [labels == label for label in np.unique(labels)]
