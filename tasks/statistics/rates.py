"""Rates, such as accuracy, sensitivity or attack success rate, with 95 % intervals by group."""

import numpy as np

from tasks.statistics.groups import effective_groups, group_sums, rate_deviations, too_few_groups
from tasks.statistics.intervals import RATE, Estimate, clopper_pearson_upper, jackknife_interval, wilson

MIN_EFFECTIVE_FAILURES = 2.0
"""With fewer effective groups with a failure, the similarity of the failures of a group counts as unknown."""


def rate_estimate(successes: np.ndarray, groups: np.ndarray, trials: np.ndarray | None = None) -> Estimate:
    """Return the rate of successes among trials, with its 95 % interval by group; see :func:`rate_intervals`.

    Args:
        successes: True for images that are a success, bool ``(N,)``; or numbers in [0, trials].
        groups: group of each image, int ``(N,)``.
        trials: True for images that count, bool ``(N,)``; or numbers of at least 0. All images count once by default.

    Raises:
        ValueError: a success is not a trial.
    """
    return rate_estimates(successes[None], groups, None if trials is None else trials[None])[0]


def rate_estimates(successes: np.ndarray, groups: np.ndarray, trials: np.ndarray | None = None) -> list[Estimate]:
    """Return K rates of the same images, each as :func:`rate_estimate` does.

    Args:
        successes: ``(K, N)``.
        groups: group of each image, int ``(N,)``.
        trials: ``(K, N)`` or ``(1, N)``; all images count once by default.

    Raises:
        ValueError: a success is not a trial.
    """
    counted = np.ones(successes.shape) if trials is None else np.broadcast_to(trials, successes.shape)
    successes, counted = successes.astype(np.float64), counted.astype(np.float64)
    if (wrong := ~((successes >= 0) & (successes <= counted))).any():
        raise ValueError(
            f"successes of an image: {successes[wrong][0]:g} of {counted[wrong][0]:g} trials. 0 to the number of "
            "trials are allowed. Count successes among the trials only"
        )
    if not len(groups):
        return [Estimate(float("nan"), float("nan"), float("nan"))] * len(successes)
    by_group, sizes = group_sums(successes, groups), group_sums(counted, groups)
    n_trials = sizes.sum(axis=1)
    values = np.divide(by_group.sum(axis=1), n_trials, out=np.full(len(by_group), np.nan), where=n_trials > 0)
    low, high = rate_intervals(by_group, sizes)
    return [Estimate(*map(float, row)) for row in zip(values, low, high, strict=True)]


def rate_intervals(
    successes: np.ndarray, sizes: np.ndarray, min_effective_failures: float = MIN_EFFECTIVE_FAILURES
) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % interval of rates from sums by group: lower and upper bounds, float64 ``(K,)`` each.

    Groups with several images: :func:`tasks.statistics.intervals.jackknife_interval`, with two rules near 0, and the
    same rules for failures near 1:

    - The upper bound is at most Clopper and Pearson's bound of the share of groups with a success, since a rate cannot
      exceed this share if it does not depend on the size of a group. So 0 successes in n groups give the interval of 0
      of n, not one of width 0.
    - It equals this bound if fewer than two effective groups have a success: then the data do not show how similar the
      images of a group are, and the images with a success may stand for whole groups.

    If every image is a group of its own: Wilson's interval, and Clopper and Pearson's for a rate of 0 or 1. If there
    are too few groups: NaN.

    Args:
        successes: sum of the successes of each group, ``(K, G)``, in [0, sizes].
        sizes: sum of the trials of each group, ``(K, G)``; groups without trials do not count.
        min_effective_failures: limit of the second rule.
    """
    total = sizes.sum(axis=1)
    rate = np.divide(successes.sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0)
    n_groups = np.maximum((sizes > 0).sum(axis=1), 1)
    low, high = jackknife_interval(rate, rate_deviations(successes, sizes).T, RATE, n_groups)
    high = _limit_high(rate, high, successes, sizes, min_effective_failures)
    low = 1 - _limit_high(1 - rate, 1 - low, sizes - successes, sizes, min_effective_failures)

    is_single = (np.isin(sizes, (0, 1)) & np.isin(successes, (0, 1))).all(axis=1)
    is_between = (rate > 0) & (rate < 1)
    wilson_low, wilson_high = wilson(successes.sum(axis=1) * is_single, total * is_single)
    low, high = (
        np.where(is_single & is_between, of_wilson, of_groups)
        for of_wilson, of_groups in ((wilson_low, low), (wilson_high, high))
    )
    few = too_few_groups(sizes)
    return np.where(few, np.nan, low), np.where(few, np.nan, high)


def combination_interval(
    coefficients: np.ndarray, rates: np.ndarray, low: np.ndarray, high: np.ndarray, deviations: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % interval of a weighted sum of rates from their intervals, float64 ``(K,)`` each.

    This is the method of variance estimates recovery (MOVER: Zou and Donner 2008, Statistics in Medicine 27,
    1693-1702). The correlation of two rates is that of their changes when one group is left out.

    Args:
        coefficients: of the J rates, ``(J,)``.
        rates: ``(J, K)``.
        low: lower bounds, ``(J, K)``.
        high: upper bounds, ``(J, K)``.
        deviations: rate without each group minus rate of all, ``(J, K, G)``.
    """
    products = np.einsum("ikg,jkg->kij", deviations, deviations)
    errors = np.sqrt(np.einsum("kii->ki", products))
    norms = errors[:, :, None] * errors[:, None, :]
    correlations = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
    np.einsum("kii->ki", correlations)[:] = 1

    def distance(of_rates: np.ndarray) -> np.ndarray:
        signed = coefficients[:, None] * of_rates
        # a negative square is a rounding error
        root: np.ndarray = np.sqrt(np.maximum(np.einsum("ik,kij,jk->k", signed, correlations, signed), 0))
        return root

    is_positive, total = coefficients[:, None] > 0, coefficients @ rates
    lower = total - distance(np.where(is_positive, rates - low, high - rates))
    upper = total + distance(np.where(is_positive, high - rates, rates - low))
    smallest, largest = np.minimum(coefficients, 0).sum(), np.maximum(coefficients, 0).sum()
    return np.maximum(lower, smallest), np.minimum(upper, largest)


def share_bounds(successes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Clopper and Pearson's upper bound of the share of groups with a success, and the share of images in them.

    The bound is not below the share of images, and so not below the rate. float64 ``(K,)`` each.

    Args:
        successes: sum of the successes of each group, ``(K, G)``.
        sizes: sum of the trials of each group, ``(K, G)``; groups without trials do not count.
    """
    has_success, n_groups, total = successes > 0, (sizes > 0).sum(axis=1), sizes.sum(axis=1)
    share = np.divide((sizes * has_success).sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0)
    n_with_success = np.minimum(np.maximum(has_success.sum(axis=1), share * n_groups), n_groups)
    return clopper_pearson_upper(n_with_success, np.maximum(n_groups, 1)), share


def _limit_high(
    rate: np.ndarray, high: np.ndarray, successes: np.ndarray, sizes: np.ndarray, min_effective: float
) -> np.ndarray:
    """Apply the two rules of :func:`rate_intervals` to upper bounds ``(K,)``."""
    bound, share = share_bounds(successes, sizes)
    is_unknown = (rate == 0) | (share * effective_groups(sizes) < min_effective)
    return np.where(rate == 1, 1.0, np.where(is_unknown, bound, np.minimum(high, bound)))
