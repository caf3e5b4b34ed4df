"""Balanced accuracy, the mean of the recalls of the classes, with intervals and paired comparisons by group."""

import numpy as np

from tasks.statistics.groups import group_sums, rate_deviations, too_few_groups
from tasks.statistics.intervals import RATE, UNBOUNDED, Estimate, jackknife_interval
from tasks.statistics.paired import PairedComparison, count_only_one, detectable_differences, p_value_by_group
from tasks.statistics.rates import combination_interval, rate_intervals, share_bounds

SumsByClass = list[tuple[np.ndarray, np.ndarray]]
"""Sums of values of each group, and its numbers of images, for each class."""


def balanced_accuracies(correct: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> list[Estimate]:
    """Return K balanced accuracies on the same images, with 95 % intervals by group.

    Args:
        correct: whether each image is classified correctly, bool ``(K, N)``.
        labels: true classes, int ``(N,)``.
        groups: group of each image, int ``(N,)``.
    """
    by_class = _sums_by_class(correct.astype(np.float64), labels, groups)
    values = np.mean([sums.sum(axis=1) / sizes.sum(axis=1) for sums, sizes in by_class], axis=0)
    return [Estimate(*map(float, row)) for row in zip(values, *balanced_intervals(by_class), strict=True)]


def balanced_intervals(by_class: SumsByClass) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % intervals of K balanced accuracies, float64 ``(K,)`` each; NaN for too few groups of a class.

    Args:
        by_class: numbers of correct images and of images of each group, ``(K, G)`` each, for each class.
    """
    parts = []
    for sums, sizes in by_class:
        parts.append((sums.sum(axis=1) / sizes.sum(axis=1), *rate_intervals(sums, sizes), rate_deviations(sums, sizes)))
    rates, low, high, deviations = (np.stack(part) for part in zip(*parts, strict=True))
    return combination_interval(np.full(len(rates), 1 / len(rates)), rates, low, high, deviations)


def compare_balanced(
    first: np.ndarray, second: np.ndarray, labels: np.ndarray, groups: np.ndarray, n_comparisons: int = 1
) -> PairedComparison:
    """Compare the balanced accuracies of two classifiers on the same images.

    In the test, each image is weighted by the inverse size of its class. If a class has too few groups, there is
    neither an interval nor a test: bounds, p-value and detectable difference are NaN.

    Args:
        first: whether the first classifier is correct on each image, bool ``(N,)``.
        second: the same of the second classifier.
        labels: true classes, int ``(N,)``.
        groups: group of each image, int ``(N,)``.
        n_comparisons: number of comparisons of the family, for the detectable difference.
    """
    differences = first.astype(np.float64) - second
    # gains (only the first classifier is correct) and losses (only the second is)
    parts = np.stack([np.maximum(differences, 0), np.maximum(-differences, 0)])
    of_both = [(sums[:, None], sizes[:1]) for sums, sizes in _sums_by_class(parts, labels, groups)]
    low, high = difference_intervals(of_both)
    # weights with a mean of 1, under which every class counts the same
    sizes = np.bincount(labels)
    weights = len(labels) / (np.count_nonzero(sizes) * sizes[labels])
    weighted, n_images = group_sums(np.stack([weights * differences, np.ones(len(labels))]), groups)
    is_undefined = _too_few_groups(of_both)[0]
    return PairedComparison(
        difference=Estimate(float((weights * differences).mean()), float(low[0]), float(high[0])),
        p_value=float("nan") if is_undefined else p_value_by_group(weighted),
        n_only_first=count_only_one(first, second),
        n_only_second=count_only_one(second, first),
        detectable_difference=float(
            "nan" if is_undefined else detectable_differences(weighted[None], n_images[None], n_comparisons)[0]
        ),
    )


def difference_intervals(by_class: SumsByClass) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % intervals of K differences of balanced accuracies, float64 ``(K,)`` each; NaN for too few groups.

    The balanced rates of gains and of losses have an interval by the jackknife. Their upper bound is at most the mean
    of Clopper and Pearson's bounds of the share of groups with a gain or a loss, as in
    :func:`tasks.statistics.rates.rate_intervals`.

    Args:
        by_class: sums of gains and of losses, ``(2, K, G)``, and numbers of images, ``(K, G)``, of each class.
    """
    rates = np.mean([sums.sum(axis=2) / sizes.sum(axis=1) for sums, sizes in by_class], axis=0)
    deviations = np.mean([[rate_deviations(part, sizes) for part in sums] for sums, sizes in by_class], axis=0)
    n_groups = np.min([(sizes > 0).sum(axis=1) for _, sizes in by_class], axis=0)
    low, high = jackknife_interval(rates, np.moveaxis(deviations, 2, 0), RATE, np.maximum(n_groups, 1))
    bounds = [[share_bounds(part, sizes)[0] for part in sums] for sums, sizes in by_class]
    high = np.where(_too_few_groups(by_class), np.nan, np.minimum(high, np.mean(bounds, axis=0)))
    return combination_interval(np.array([1.0, -1.0]), rates, low, high, deviations)


def _too_few_groups(by_class: SumsByClass) -> np.ndarray:
    """Return whether a class has too few groups for an interval, bool ``(K,)``."""
    few: np.ndarray = np.any([too_few_groups(sizes) for _, sizes in by_class], axis=0)
    return few


def _sums_by_class(values: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> SumsByClass:
    """Sums of the values of each group, ``(K, G)``, and its numbers of images, ``(K, G)``, for each class.

    Args:
        values: ``(K, N)``.
        labels: true classes, int ``(N,)``.
        groups: group of each image, int ``(N,)``.
    """
    sides = [labels == label for label in np.unique(labels)]
    return [(group_sums(values * side, groups), group_sums(np.ones_like(values) * side, groups)) for side in sides]


def balanced_ratio(numerator: np.ndarray, denominator: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> Estimate:
    """Return the ratio of two sums in which every class counts the same, with its 95 % interval by group.

    Args:
        numerator: term of each image in the first sum, ``(N,)``.
        denominator: term of each image in the second sum, ``(N,)``. The ratio is NaN if the sum is 0.
        labels: true classes, int ``(N,)``.
        groups: group of each image, int ``(N,)``.
    """
    numerator = numerator.astype(np.float64)
    rest = denominator - numerator
    parts = np.stack([np.maximum(each, 0) for each in (numerator, -numerator, rest, -rest)])
    by_class = [(sums[:, None], sizes[:1]) for sums, sizes in _sums_by_class(parts, labels, groups)]
    value, low, high = ratio_estimates(by_class)
    return Estimate(float(value[0]), float(low[0]), float(high[0]))


def ratio_estimates(by_class: SumsByClass) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return K ratios of two balanced means, and their 95 % intervals, float64 ``(K,)`` each.

    The interval is that of the jackknife. Near 1 and 0 it is too narrow, because a sample can lack the few groups that
    make the ratio differ from 1 or 0. So above a ratio of 0.5, the lower bound is at most that of an unchanged
    denominator and the interval of the rest, denominator minus numerator. Below 0.5, the upper bound is at least that
    of the interval of the numerator. These are the intervals of :func:`difference_intervals`.

    A ratio is NaN if its denominator is not positive. The interval is NaN if that holds without one of the groups, or
    if a class has too few groups.

    Args:
        by_class: positive and negative part of the numerator and of the rest, ``(4, K, G)``, and numbers of images,
            ``(K, G)``, of each class.
    """
    terms = [(sums[::2] - sums[1::2], sizes) for sums, sizes in by_class]
    means = np.mean([sums.sum(axis=2) / sizes.sum(axis=1) for sums, sizes in terms], axis=0)
    deviations = np.mean([[rate_deviations(part, sizes) for part in sums] for sums, sizes in terms], axis=0)
    # of all groups, then without each group, (K, 1 + G)
    numerators, rests = np.concatenate([means[..., None], means[..., None] + deviations], axis=2)
    denominators = numerators + rests
    undefined = np.full(numerators.shape, np.nan)
    ratios = np.divide(numerators, denominators, out=undefined, where=denominators > 1e-12)
    n_groups = np.maximum(np.min([(sizes > 0).sum(axis=1) for _, sizes in by_class], axis=0), 1)
    low, high = jackknife_interval(ratios[:, 0], (ratios[:, 1:] - ratios[:, :1]).T, UNBOUNDED, n_groups)
    _, of_numerator = difference_intervals([(sums[:2], sizes) for sums, sizes in by_class])
    _, of_rest = difference_intervals([(sums[2:], sizes) for sums, sizes in by_class])
    value, denominator = ratios[:, 0], np.where(denominators[:, 0] > 1e-12, denominators[:, 0], np.nan)
    low = np.where(value > 0.5, np.minimum(low, 1 - of_rest / denominator), low)
    high = np.where(value > 0.5, high, np.maximum(high, of_numerator / denominator))
    few = _too_few_groups(by_class)
    return value, np.where(few, np.nan, low), np.where(few, np.nan, high)
