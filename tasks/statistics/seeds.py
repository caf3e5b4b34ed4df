"""Mean differences of two methods over seeds: seeds and groups are two sources of variation."""

from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from tasks.statistics.groups import group_sums, rate_deviations, too_few_groups
from tasks.statistics.intervals import MIN_SEEDS, UNDEFINED, Estimate, jackknife_variance
from tasks.statistics.paired import compare_paired


class SeedComparison(NamedTuple):
    """Mean difference of two methods over S seeds, on the same images."""

    of_these_seeds: Estimate
    """The mean, with its 95 % interval by group: for new groups, and for the classifiers of these seeds."""
    of_all_seeds: Estimate
    """The mean, with its 95 % interval for new groups and new seeds; undefined with fewer than ``MIN_SEEDS`` seeds."""
    p_value: float
    """Two-sided, that the mean difference over all groups and seeds is 0; NaN without the second interval."""


def compare_over_seeds(differences: np.ndarray, groups: np.ndarray) -> SeedComparison:
    """Compare two methods that ran with the same seeds and were tested on the same images.

    The variance over groups and seeds is the sum of two parts: that of the mean when one group is left out (the
    jackknife), and that of the S means over the seeds, divided by S. The sum counts the interaction of group and seed
    twice, so the interval is rather too wide than too narrow (Owen 2007, Annals of Applied Statistics 1, 386-411).
    Quantiles are of Student's t with Satterthwaite's degrees of freedom.

    Args:
        differences: first minus second method, for each seed and image, in [-1, 1], ``(S, N)``.
        groups: group of each image, int ``(N,)``.

    Returns:
        The comparison. There is no test if the differences do not vary; the p-value is 1 if all are 0.
    """
    mean = differences.mean(axis=0)
    of_these_seeds = compare_paired(np.maximum(mean, 0), np.maximum(-mean, 0), groups).difference
    sums, sizes = group_sums(np.stack([mean, np.ones(len(mean))]), groups)
    over_groups, of_groups = jackknife_variance(rate_deviations(sums[None], sizes[None]).T)
    n_seeds, by_seed = len(differences), differences.mean(axis=1)
    over_seeds = by_seed.var(ddof=1) / n_seeds if n_seeds > 1 else 0.0
    variance = float(over_groups[0] + over_seeds)
    if n_seeds < MIN_SEEDS or too_few_groups(sizes):
        return SeedComparison(of_these_seeds, UNDEFINED, float("nan"))
    if not differences.any():
        return SeedComparison(of_these_seeds, of_these_seeds, 1.0)
    # the tolerance is for rounding errors
    if variance < 1e-20:
        return SeedComparison(of_these_seeds, UNDEFINED, float("nan"))
    degrees = variance**2 / float(over_groups[0] ** 2 / of_groups[0] + over_seeds**2 / (n_seeds - 1))
    value, error = float(mean.mean()), variance**0.5
    half_width = float(stdtrit(degrees, 0.975)) * error
    of_all_seeds = Estimate(value, max(value - half_width, -1.0), min(value + half_width, 1.0))
    return SeedComparison(of_these_seeds, of_all_seeds, 2 * float(stdtr(degrees, -abs(value) / error)))
