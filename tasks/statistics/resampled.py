"""Statistics of many resamples at once, from the number of times that each resample contains each image."""

from collections.abc import Callable

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]
"""Takes counts ``(R, N)``, how often each of R resamples contains each image; returns the R values, ``(R,)``."""


def resampled_mean(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the mean of each resample, float64 ``(R,)``, without undefined values; NaN if all are undefined.

    Args:
        values: value of each image, ``(N,)``; NaN if undefined.
        counts: how often each resample contains each image, ``(R, N)``.
    """
    defined = ~np.isnan(values)
    return resampled_ratio(np.where(defined, values, 0), defined, counts)


def resampled_ratio(numerator: np.ndarray, denominator: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the ratio of two sums in each resample, float64 ``(R,)``; NaN if the second sum is 0.

    Args:
        numerator: term of each image in the first sum, ``(N,)``.
        denominator: term of each image in the second sum, ``(N,)``, not negative.
        counts: how often each resample contains each image, ``(R, N)``.
    """
    first, second = (counts @ values.astype(np.float64) for values in (numerator, denominator))
    ratio: np.ndarray = np.divide(first, second, out=np.full(len(counts), np.nan), where=second > 0)
    return ratio


def resampled_ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the rank of each image in each resample, from 1, float64 ``(R, N)``; ties get their mean rank.

    An image that a resample does not contain gets a rank between its neighbours. In sums its count of 0 removes it.

    Args:
        values: value of each image, ``(N,)``, without NaN.
        counts: how often each resample contains each image, ``(R, N)``.
    """
    _, tie = np.unique(values, return_inverse=True)
    order = np.argsort(tie, kind="stable")
    starts = np.flatnonzero(np.diff(tie[order], prepend=-1))
    drawn = np.add.reduceat(counts[:, order], starts, axis=1, dtype=np.float64)
    ranks: np.ndarray = (drawn.cumsum(axis=1) - (drawn - 1) / 2)[:, tie]
    return ranks
