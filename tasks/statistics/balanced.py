"""Balanced accuracy, the mean of the recalls of the classes, with intervals and paired comparisons by group."""

from dataclasses import dataclass

import numpy as np

from tasks.statistics.groups import GroupJackknife, group_sums
from tasks.statistics.intervals import RATE, Bounds, Estimate
from tasks.statistics.paired import detectable_differences, sign_flip_p_value

DIFFERENCE: Bounds = (-1.0, 1.0)
"""Range of a difference of two accuracies."""


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
    values = _balanced_means(differences[None], labels, jackknife.counts)[:, 0]
    low, high = jackknife.interval(values, DIFFERENCE, _sides(labels))
    # weights with a mean of 1, under which every class counts the same
    sizes = np.bincount(labels)
    weights = len(labels) / (np.count_nonzero(sizes) * sizes[labels])
    weighted, n_images = group_sums(np.stack([weights * differences, np.ones(len(labels))]), groups)
    return BalancedComparison(
        difference=Estimate(float(values[0]), float(low), float(high)),
        p_value=sign_flip_p_value(weighted),
        n_only_first=int((differences > 0).sum()),
        n_only_second=int((differences < 0).sum()),
        detectable_difference=float(detectable_differences(weighted[None], n_images[None])[0]),
    )


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
