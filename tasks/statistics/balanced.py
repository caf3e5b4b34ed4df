"""Balanced accuracy, the mean of the recalls of the classes, with intervals and paired comparisons by group."""

from dataclasses import dataclass

import numpy as np

from tasks.statistics.groups import GroupJackknife, group_sums
from tasks.statistics.intervals import RATE, UNBOUNDED, Bounds, Estimate
from tasks.statistics.paired import detectable_differences, difference_interval, sign_flip_p_value


@dataclass(frozen=True)
class BalancedComparison:
    """Balanced accuracies of two classifiers on the same images; differences are first minus second."""

    difference: Estimate
    """Difference of the balanced accuracies, with its 95 % interval by group."""
    p_value: float
    """Two-sided p-value of the sign-flip test by group, each image weighted by the inverse size of its class."""
    n_only_first: int
    """Images that only the first classifier classifies correctly."""
    n_only_second: int
    """Images that only the second classifier classifies correctly."""
    detectable_difference: float
    """Smallest difference that these images can show; see :func:`tasks.statistics.paired.detectable_differences`."""


def balanced_accuracies(correct: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> list[Estimate]:
    """Return K balanced accuracies on the same images, with 95 % intervals by group.

    Args:
        correct: whether each image is classified correctly, bool ``(K, N)``.
        labels: true classes, int ``(N,)``.
        groups: group of each image, int ``(N,)``.
    """
    jackknife = GroupJackknife(groups)
    values = _balanced_means(correct.astype(np.float64), labels, jackknife.counts)
    low, high = jackknife.interval(values, RATE, _sides(labels))
    return [Estimate(*map(float, row)) for row in zip(values[0], low, high, strict=True)]


def compare_balanced(
    first: np.ndarray, second: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> BalancedComparison:
    """Compare the balanced accuracies of two classifiers on the same images.

    Args:
        first: whether the first classifier is correct on each image, bool ``(N,)``.
        second: the same of the second classifier.
        labels: true classes, int ``(N,)``.
        groups: group of each image, int ``(N,)``.
    """
    differences, jackknife = first.astype(np.float64) - second, GroupJackknife(groups)
    # rates of gains (only the first classifier is correct) and of losses (only the second is)
    parts = np.stack([np.maximum(differences, 0), np.maximum(-differences, 0)])
    rates = _balanced_means(parts, labels, jackknife.counts)
    bounds = jackknife.interval(rates, RATE, _sides(labels))
    of_parts, low_of_parts, high_of_parts = (values[:, None] for values in (rates[0], *bounds))
    low, high = difference_interval(of_parts, low_of_parts, high_of_parts, (rates[1:] - rates[0]).T[:, None])
    # weights with a mean of 1, under which every class counts the same
    sizes = np.bincount(labels)
    weights = len(labels) / (np.count_nonzero(sizes) * sizes[labels])
    weighted, n_images = group_sums(np.stack([weights * differences, np.ones(len(labels))]), groups)
    return BalancedComparison(
        difference=Estimate(float(rates[0, 0] - rates[0, 1]), float(low[0]), float(high[0])),
        p_value=sign_flip_p_value(weighted),
        n_only_first=int((differences > 0).sum()),
        n_only_second=int((differences < 0).sum()),
        detectable_difference=float(detectable_differences(weighted[None], n_images[None])[0]),
    )


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
