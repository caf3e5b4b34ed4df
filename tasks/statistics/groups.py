"""Groups of images, the unit of every interval and test, and the minimum number of groups for a statement.

Images of one group (one patient) are similar. Intervals that treat them as independent are too narrow: in simulations a
95 % Wilson interval of the accuracy covers the true value in 30 to 67 % of the cases (docs/evidence/statistics.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tasks.statistics.intervals import Bounds, Estimate, jackknife_interval
from tasks.statistics.resampled import Statistic

MIN_EFFECTIVE_GROUPS = 5.0
"""Effective groups below which there are too few groups, and intervals are NaN.

With fewer, a few large groups decide the result, and the coverage of 95 % intervals falls to 88 %
(docs/evidence/statistics.md, few large groups).
"""
MIN_GROUPS_OF_TEST = 6
"""Minimum number of groups of a paired comparison: the p-value of a sign-flip test of n groups is at least 2 / 2^n,
which is not below 0.05 for five groups."""

MAX_BLOCKS = 250
"""Blocks of groups that the jackknife leaves out in turn. More groups share blocks, which limits memory and time."""


def effective_groups(sizes: np.ndarray) -> np.ndarray:
    """Return the effective number of groups, float64 ``(...)``: the number of equal groups with the same information.

    This is (sum m)^2 / sum m^2 for groups of m images (Kish 1965, "Survey Sampling"). It is the number of groups if all
    have the same size, and near 1 if one group holds most images. It is 0 without images.

    Args:
        sizes: images in each group, ``(..., G)``; groups without images do not count.
    """
    squares = np.square(sizes, dtype=np.float64).sum(axis=-1)
    effective: np.ndarray = sizes.sum(axis=-1, dtype=np.float64) ** 2 / np.where(squares > 0, squares, 1)
    return effective


def too_few_groups(sizes: np.ndarray) -> np.ndarray:
    """Return whether there are too few groups for an interval, bool ``(...)``.

    Args:
        sizes: images in each group, ``(..., G)``; groups without images do not count.
    """
    few: np.ndarray = effective_groups(sizes) < MIN_EFFECTIVE_GROUPS
    return few


def class_group_sizes(labels: np.ndarray, groups: np.ndarray, n_classes: int) -> list[np.ndarray]:
    """Return the number of images of each group of each class, one int64 array for each class.

    Args:
        labels: class of each image, int ``(N,)``.
        groups: group of each image, int ``(N,)``.
        n_classes: number of classes; one without images has an empty array.
    """
    return [np.unique(groups[labels == label], return_counts=True)[1] for label in range(n_classes)]


def group_sums(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the sums of the values of each group, float64 ``(K, G)``, in ascending order of the groups.

    Args:
        values: of at least one image, ``(K, N)``.
        groups: group of each image, int ``(N,)``.
    """
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=groups[order[0]] - 1))
    sums: np.ndarray = np.add.reduceat(values[:, order], starts, axis=1, dtype=np.float64)
    return sums


def rate_deviations(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the change of ``sums.sum() / sizes.sum()`` when a group is left out, float64 ``(K, G)``.

    Args:
        sums: sum of the values of each group, ``(K, G)``.
        sizes: weight of each group, ``(K, G)``, at least 0. The change is 0 if no other group has a weight.
    """
    others = sizes.sum(axis=1, keepdims=True) - sizes
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = sums.sum(axis=1, keepdims=True) / sizes.sum(axis=1, keepdims=True)
    deviations: np.ndarray = np.divide(rate * sizes - sums, others, out=np.zeros(others.shape), where=others > 0)
    return deviations


@dataclass(frozen=True)
class GroupJackknife:
    """Intervals of statistics from their change when one group is left out (the jackknife, Efron and Stein 1981).

    :func:`tasks.statistics.intervals.jackknife_interval` has the formulas. The result does not depend on a seed.
    """

    groups: np.ndarray
    """Group of each image, int ``(N,)``; images of one patient have the same number."""

    @cached_property
    def indices(self) -> np.ndarray:
        """Index of the group of each image, int ``(N,)`` in [0, G)."""
        indices: np.ndarray = np.unique(self.groups, return_inverse=True)[1]
        return indices

    @cached_property
    def n_groups(self) -> int:
        """Number of groups, G."""
        return len(np.unique(self.groups))

    @property
    def blocks(self) -> np.ndarray:
        """Block of each image, int ``(N,)`` in [0, B); a block is left out at once. B is G, at most 250."""
        return self.indices % MAX_BLOCKS

    @property
    def n_blocks(self) -> int:
        """Number of blocks, B."""
        return min(self.n_groups, MAX_BLOCKS)

    @cached_property
    def counts(self) -> np.ndarray:
        """Resamples, float32 ``(1 + B, N)``: each image once, then each image outside block 0, 1 and so on once."""
        kept = self.blocks != np.arange(self.n_blocks)[:, None]
        return np.concatenate([np.ones((1, len(self.groups)), dtype=np.float32), kept.astype(np.float32)])

    def sizes(self, images: np.ndarray | None = None) -> np.ndarray:
        """Return the number of images of each group, int64 ``(G,)``; only of the given images, bool ``(N,)``."""
        chosen = self.indices if images is None else self.indices[images]
        sizes: np.ndarray = np.bincount(chosen, minlength=self.n_groups)
        return sizes

    def select(self, images: np.ndarray | slice) -> "GroupJackknife":
        """Return the jackknife of some of the images, given as bool ``(N,)``, indices or a slice."""
        return GroupJackknife(self.groups[images])

    def estimate(self, statistic: Statistic, bounds: Bounds, sides: Sequence[np.ndarray] = ()) -> Estimate:
        """Return a statistic of all images with its 95 % interval; see :meth:`interval` for the arguments."""
        if not len(self.groups):
            return Estimate(float("nan"), float("nan"), float("nan"))
        values = statistic(self.counts)
        low, high = self.interval(values, bounds, sides)
        return Estimate(float(values[0]), float(low), float(high))

    def interval(
        self, values: np.ndarray, bounds: Bounds, sides: Sequence[np.ndarray] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the lower and the upper bound of the 95 % interval of a statistic, float64 ``(...)`` each.

        The bounds are NaN if there are too few groups on a side, or if the statistic is undefined without one of the
        blocks.

        Args:
            values: of the resamples ``counts``, ``(1 + B, ...)``; the first is the value over all images.
            bounds: range of the statistic.
            sides: sets of images that the statistic compares, bool ``(N,)`` each, for example the classes; all images
                by default. The smallest number of groups of a set is that of the interval.
        """
        value, replicates = np.asarray(values[0], dtype=np.float64), np.asarray(values[1:], dtype=np.float64)
        sizes = [self.sizes(images) for images in sides] or [self.sizes()]
        if any(too_few_groups(of_side) for of_side in sizes):
            return np.full(value.shape, np.nan), np.full(value.shape, np.nan)
        n_groups = min(int(np.count_nonzero(of_side)) for of_side in sizes)
        return jackknife_interval(value, replicates - value, bounds, n_groups)
