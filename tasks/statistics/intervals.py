"""Confidence intervals: of proportions in closed form, over seeds by Student's t, else by bootstrap over groups."""

from collections.abc import Callable
from functools import partial
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


def wilson(n_success: ArrayLike, n: ArrayLike, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Score interval of a proportion (Wilson 1927, "Probable inference", JASA 22, 209-212), without correction.

    Args:
        n_success: successes, of any shape.
        n: trials, broadcast against ``n_success``.
        confidence: of the two-sided interval, in (0, 1).

    Returns:
        Lower and upper bound, float64 of the broadcast shape, in [0, 1]; NaN where there were no trials.

    Raises:
        ValueError: more successes than trials, negative counts, or an impossible confidence.
    """
    successes, trials = np.broadcast_arrays(np.asarray(n_success, dtype=np.float64), np.asarray(n, dtype=np.float64))
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    if not ((successes >= 0) & (successes <= trials)).all():
        raise ValueError("n_success must lie between 0 and n")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = successes / trials
        scale = 1 + z**2 / trials
        centre = (share + z**2 / (2 * trials)) / scale
        half = z / scale * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    # the bounds at no success and at no failure are exact; rounding would miss them
    low = np.where(successes == 0, 0.0, np.maximum(centre - half, 0.0))
    high = np.where(successes == trials, 1.0, np.minimum(centre + half, 1.0))
    nothing = trials == 0
    return np.where(nothing, np.nan, low), np.where(nothing, np.nan, high)


class Estimate(NamedTuple):
    """A figure and its 95 % interval; NaN where not defined."""

    value: float
    low: float
    high: float


Statistic = Callable[[np.ndarray], np.ndarray]
"""How often each image counts in each resample, ``(R, N)``, to the figure of each resample, ``(R,)``."""


def bootstrap_counts(groups: np.ndarray, n_resamples: int, seed: int) -> np.ndarray:
    """How often each image is drawn in each bootstrap resample (Efron 1979), float32 ``(R, N)``.

    Whole groups are drawn, as many as there are, with replacement: slices of one patient are alike, and drawn one by
    one they would pass for independent witnesses (Davison and Hinkley 1997, "Bootstrap Methods", section 3.8). With
    each image a group of its own this is the ordinary bootstrap. With few groups (some 30 or less) intervals are still
    somewhat narrow.

    Statistics of the same images that share these counts are paired: their differences have an interval of their own.

    Args:
        groups: images of one patient share a number, int ``(N,)``.
        n_resamples: R.
        seed: of the draw; the same arguments give the same counts.

    Raises:
        ValueError: no images or no resamples.
    """
    if not len(groups) or n_resamples < 1:
        raise ValueError(f"a bootstrap needs at least 1 image and 1 resample, not {len(groups)} and {n_resamples}")
    names, group = np.unique(groups, return_inverse=True)
    n = len(names)
    drawn = np.random.default_rng(seed).integers(n, size=(n_resamples, n))
    flat = (drawn + n * np.arange(n_resamples)[:, None]).ravel()
    of_groups = np.bincount(flat, minlength=n_resamples * n).reshape(n_resamples, n)
    counts: np.ndarray = of_groups[:, group].astype(np.float32)
    return counts


def percentile_interval(resampled: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of a bootstrap (Efron and Tibshirani 1993, chapter 13).

    Args:
        resampled: a figure of each resample along the first axis, ``(R, ...)``; NaN where it has none.
        confidence: of the two-sided interval, in (0, 1).

    Returns:
        Lower and upper bound, float64 ``(...)``, of the resamples that have a figure; NaN where fewer than half do.
    """
    rare = np.isnan(resampled).mean(axis=0) > 0.5
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(np.where(rare, 0.0, resampled), [tail, 1 - tail], axis=0)
    return np.where(rare, np.nan, low), np.where(rare, np.nan, high)


def bootstrap(statistic: Statistic, counts: np.ndarray) -> Estimate:
    """A statistic of all images, each counted once, with its percentile interval.

    Args:
        statistic: such as :func:`resampled_mean` with its values bound.
        counts: of :func:`bootstrap_counts`, or columns of it, ``(R, N)``.
    """
    each_once = np.ones((1, counts.shape[1]), dtype=counts.dtype)
    low, high = percentile_interval(statistic(counts))
    return Estimate(float(statistic(each_once)[0]), float(low), float(high))


def share_estimate(hits: np.ndarray, counts: np.ndarray) -> Estimate:
    """Share of images with its bootstrap interval, widened to Wilson's where that reaches farther.

    The bootstrap of no hits (or of hits only) would have no width.

    Args:
        hits: bool ``(N,)``.
        counts: ``(R, N)``.
    """
    value, low, high = bootstrap(partial(resampled_mean, hits.astype(np.float64)), counts)
    wilson_low, wilson_high = wilson(hits.sum(), len(hits))
    return Estimate(value, min(low, float(wilson_low)), max(high, float(wilson_high)))


def resampled_mean(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean in each resample, float64 ``(R,)``, over the images that have a value; NaN where none drawn has.

    Args:
        values: one an image, ``(N,)``; NaN where an image has none.
        counts: ``(R, N)``.
    """
    defined = ~np.isnan(values)
    return resampled_ratio(np.where(defined, values, 0), defined, counts)


def resampled_ratio(
    part: np.ndarray, whole: np.ndarray, counts: np.ndarray, otherwise: float = float("nan")
) -> np.ndarray:
    """Sum of ``part`` over sum of ``whole`` in each resample, float64 ``(R,)``.

    Args:
        part: ``(N,)``.
        whole: ``(N,)``, not negative.
        counts: ``(R, N)``.
        otherwise: the ratio where ``whole`` sums to 0.
    """
    parts, wholes = (counts @ values.astype(np.float64) for values in (part, whole))
    ratio: np.ndarray = np.divide(parts, wholes, out=np.full(len(counts), float(otherwise)), where=wholes > 0)
    return ratio


def resampled_ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Rank of each image among those drawn, from 1, the mean rank where values tie; float64 ``(R, N)``.

    An image that a resample leaves out gets the mean of the ranks beside it, which its count of 0 keeps out of sums.

    Args:
        values: ``(N,)``, none of them NaN.
        counts: ``(R, N)``.
    """
    _, tie = np.unique(values, return_inverse=True)
    order = np.argsort(tie, kind="stable")
    starts = np.flatnonzero(np.diff(tie[order], prepend=-1))
    drawn = np.add.reduceat(counts[:, order], starts, axis=1, dtype=np.float64)
    ranks: np.ndarray = (drawn.cumsum(axis=1) - (drawn - 1) / 2)[:, tie]
    return ranks


def resampled_auroc(scores: np.ndarray, positive: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Area under the ROC curve in each resample, float64 ``(R,)``; NaN where only one kind of image is drawn.

    The share of pairs in which the positive image has the higher score, ties counted as half (Hanley and McNeil 1982,
    Radiology 143, 29-36).

    Args:
        scores: higher for positive, ``(N,)``.
        positive: bool ``(N,)``.
        counts: ``(R, N)``.
    """
    n_positive = counts @ positive.astype(np.float64)
    n_pairs = n_positive * (counts.sum(axis=1) - n_positive)
    rank_sum = (counts * resampled_ranks(scores, counts)) @ positive.astype(np.float64)
    n_ordered = rank_sum - n_positive * (n_positive + 1) / 2
    area: np.ndarray = np.divide(n_ordered, n_pairs, out=np.full(len(counts), np.nan), where=n_pairs > 0)
    return area


def over_seeds(values: np.ndarray) -> dict[str, float]:
    """Mean of what seeds gave, its 95 % interval by Student's t, and their standard deviation; NaN where not defined.

    Args:
        values: ``(n,)``.
    """
    n = len(values)
    if n == 0 or np.isnan(values).any():
        return dict.fromkeys(("value", "low", "high", "sd"), float("nan"))
    mean = float(values.mean())
    if n == 1:
        return {"value": mean, "low": float("nan"), "high": float("nan"), "sd": float("nan")}
    # slow to import, and steps that only count need none of it
    from scipy.stats import t

    sd = float(values.std(ddof=1))
    half = float(t.ppf(0.975, n - 1)) * sd / n**0.5
    return {"value": mean, "low": mean - half, "high": mean + half, "sd": sd}
