"""Confidence intervals: Wilson's for proportions, Student's t over seeds, and the bootstrap over groups."""

from collections.abc import Callable
from functools import partial
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


def wilson(n_success: ArrayLike, n: ArrayLike, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Return the Wilson score interval of a proportion, without continuity correction.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22, 209-212.

    Args:
        n_success: numbers of successes, of any shape.
        n: numbers of trials, broadcast against ``n_success``.
        confidence: confidence level of the two-sided interval, in (0, 1).

    Returns:
        Lower and upper bounds in [0, 1], float64 of the broadcast shape; NaN for 0 trials.

    Raises:
        ValueError: a number of successes is negative or exceeds the trials, or the confidence level is not in (0, 1).
    """
    successes, trials = np.broadcast_arrays(np.asarray(n_success, dtype=np.float64), np.asarray(n, dtype=np.float64))
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: confidence must lie between 0 and 1, for example 0.95")
    if (wrong := ~((successes >= 0) & (successes <= trials))).any():
        raise ValueError(
            f"n_success is {successes[wrong][0]:g} with n {trials[wrong][0]:g}: n_success must lie between 0 and n"
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        proportion = successes / trials
        scale = 1 + z**2 / trials
        centre = (proportion + z**2 / (2 * trials)) / scale
        half_width = z / scale * np.sqrt(proportion * (1 - proportion) / trials + z**2 / (4 * trials**2))
    # for 0 successes or 0 failures a bound is exactly 0 or 1, apart from rounding errors
    low = np.where(successes == 0, 0.0, np.maximum(centre - half_width, 0.0))
    high = np.where(successes == trials, 1.0, np.minimum(centre + half_width, 1.0))
    undefined = trials == 0
    return np.where(undefined, np.nan, low), np.where(undefined, np.nan, high)


class Estimate(NamedTuple):
    """A value and its 95 % confidence interval; NaN if undefined."""

    value: float
    low: float
    high: float


Statistic = Callable[[np.ndarray], np.ndarray]
"""Function from counts ``(R, N)``, as from :func:`bootstrap_counts`, to the value of each resample, ``(R,)``."""


def bootstrap_counts(groups: np.ndarray, n_resamples: int, seed: int) -> np.ndarray:
    """Return how often each bootstrap resample contains each image (Efron 1979), float32 ``(R, N)``.

    This is a cluster bootstrap: a resample draws as many whole groups as there are, with replacement. Slices of one
    patient are similar, so they are not independent (Davison and Hinkley 1997, "Bootstrap Methods and their
    Application", section 3.8). If each image is a group of its own, this is the ordinary bootstrap. With about 30
    groups or fewer, the intervals are somewhat too narrow.

    Use the same counts for two statistics of the same images to get a paired interval of their difference.

    Args:
        groups: number of the group of each image, int ``(N,)``; images of one patient have the same number.
        n_resamples: number of resamples, R.
        seed: seed of the resamples; the same arguments give the same counts.

    Raises:
        ValueError: there are no images or no resamples.
    """
    if not len(groups) or n_resamples < 1:
        raise ValueError(
            f"{len(groups)} images and {n_resamples} resamples: a bootstrap needs at least 1 image and 1 resample"
        )
    unique_groups, group = np.unique(groups, return_inverse=True)
    n = len(unique_groups)
    drawn = np.random.default_rng(seed).integers(n, size=(n_resamples, n))
    flat = (drawn + n * np.arange(n_resamples)[:, None]).ravel()
    group_counts = np.bincount(flat, minlength=n_resamples * n).reshape(n_resamples, n)
    counts: np.ndarray = group_counts[:, group].astype(np.float32)
    return counts


def percentile_interval(resampled: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Return the percentile interval of a bootstrap (Efron and Tibshirani 1993, chapter 13).

    Args:
        resampled: value of each resample along the first axis, ``(R, ...)``; NaN if undefined.
        confidence: confidence level of the two-sided interval, in (0, 1).

    Returns:
        Lower and upper bounds, float64 ``(...)``, without the undefined values; NaN if more than half are undefined.
    """
    undefined = np.isnan(resampled).mean(axis=0) > 0.5
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(np.where(undefined, 0.0, resampled), [tail, 1 - tail], axis=0)
    return np.where(undefined, np.nan, low), np.where(undefined, np.nan, high)


def bootstrap(statistic: Statistic, counts: np.ndarray) -> Estimate:
    """Return the statistic of all images, each counted once, with its percentile interval.

    Args:
        statistic: statistic of resamples, for example :func:`resampled_mean` with bound values.
        counts: counts ``(R, N)`` from :func:`bootstrap_counts`, or some columns of them.
    """
    each_once = np.ones((1, counts.shape[1]), dtype=counts.dtype)
    low, high = percentile_interval(statistic(counts))
    return Estimate(float(statistic(each_once)[0]), float(low), float(high))


def proportion_estimate(successes: np.ndarray, counts: np.ndarray) -> Estimate:
    """Return a proportion of images with the union of its bootstrap interval and its Wilson interval.

    The bootstrap interval alone has width 0 if all images are successes or none is.

    Args:
        successes: True for images that count, bool ``(N,)``.
        counts: how often each resample contains each image, ``(R, N)``.
    """
    value, low, high = bootstrap(partial(resampled_mean, successes.astype(np.float64)), counts)
    wilson_low, wilson_high = wilson(successes.sum(), len(successes))
    return Estimate(value, min(low, float(wilson_low)), max(high, float(wilson_high)))


def resampled_mean(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the mean of each resample, float64 ``(R,)``, without undefined values; NaN if all are undefined.

    Args:
        values: value of each image, ``(N,)``; NaN if undefined.
        counts: how often each resample contains each image, ``(R, N)``.
    """
    defined = ~np.isnan(values)
    return resampled_ratio(np.where(defined, values, 0), defined, counts)


def resampled_ratio(
    numerator: np.ndarray, denominator: np.ndarray, counts: np.ndarray, zero_division: float = float("nan")
) -> np.ndarray:
    """Return the ratio of two sums in each resample, float64 ``(R,)``.

    Args:
        numerator: term of each image in the first sum, ``(N,)``.
        denominator: term of each image in the second sum, ``(N,)``, not negative.
        counts: how often each resample contains each image, ``(R, N)``.
        zero_division: ratio if the second sum is 0.
    """
    first, second = (counts @ values.astype(np.float64) for values in (numerator, denominator))
    ratio: np.ndarray = np.divide(first, second, out=np.full(len(counts), float(zero_division)), where=second > 0)
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


def resampled_auroc(scores: np.ndarray, positive: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the AUROC of each resample, float64 ``(R,)``; NaN for a resample with images of one class only.

    The AUROC is the fraction of pairs of a positive and a negative image in which the positive one has the higher
    score; ties count as half (Hanley and McNeil 1982, Radiology 143, 29-36).

    Args:
        scores: score of each image, ``(N,)``; high scores predict the positive class.
        positive: True for positive images, bool ``(N,)``.
        counts: how often each resample contains each image, ``(R, N)``.
    """
    n_positive = counts @ positive.astype(np.float64)
    n_pairs = n_positive * (counts.sum(axis=1) - n_positive)
    rank_sum = (counts * resampled_ranks(scores, counts)) @ positive.astype(np.float64)
    n_correct_pairs = rank_sum - n_positive * (n_positive + 1) / 2
    auroc: np.ndarray = np.divide(n_correct_pairs, n_pairs, out=np.full(len(counts), np.nan), where=n_pairs > 0)
    return auroc


def estimate_over_seeds(values: np.ndarray) -> dict[str, float]:
    """Return the mean over seeds (``value``), its 95 % interval (``low``, ``high``) and standard deviation (``sd``).

    The interval uses Student's t distribution. With one seed, all but ``value`` are NaN. Without seeds, or if a value
    is NaN, all are NaN.

    Args:
        values: result of each seed, ``(n,)``.
    """
    n = len(values)
    if n == 0 or np.isnan(values).any():
        return dict.fromkeys(("value", "low", "high", "sd"), float("nan"))
    mean = float(values.mean())
    if n == 1:
        return {"value": mean, "low": float("nan"), "high": float("nan"), "sd": float("nan")}
    # imported here since it is slow, and most steps do not need it
    from scipy.stats import t

    sd = float(values.std(ddof=1))
    half_width = float(t.ppf(0.975, n - 1)) * sd / n**0.5
    return {"value": mean, "low": mean - half_width, "high": mean + half_width, "sd": sd}
