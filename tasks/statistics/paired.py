"""Paired comparisons of two classifiers on the same images, by group."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from tasks.statistics.groups import MIN_GROUPS_OF_TEST, effective_groups, group_sums, rate_deviations, too_few_groups
from tasks.statistics.intervals import Estimate, jackknife_variance
from tasks.statistics.multiplicity import SIGNIFICANCE_LEVEL
from tasks.statistics.rates import combination_interval, rate_intervals

N_DRAWS = 20_000
"""Random signs of a test whose differences are not whole numbers."""
N_ITERATIONS = 200
"""Iterations for the smallest detectable difference; each one at least halves the error with many groups."""
POWER = 0.8
"""Power of the smallest detectable difference."""


@dataclass(frozen=True)
class PairedComparison:
    """Accuracies, or balanced accuracies, of two classifiers on the same images; differences are first minus second."""

    difference: Estimate
    """Difference of the accuracies, with its 95 % interval by group."""
    p_value: float
    """Two-sided p-value of the sign-flip test by group (:func:`p_value_by_group`)."""
    n_only_first: int
    """Images that only the first classifier classifies correctly; of random classifiers, in at least half of their
    predictions (:func:`count_only_one`)."""
    n_only_second: int
    """The same of the second classifier."""
    detectable_difference: float
    """Smallest difference that these images can show, see :func:`detectable_differences`."""

    def is_non_inferior(self, margin: float) -> bool:
        """Return whether the first classifier is shown to be at most ``margin`` worse than the second.

        The one-sided test at the 2.5 % level compares the lower bound of the interval with the margin. Too few groups
        show nothing.

        Args:
            margin: largest acceptable loss of accuracy, in [0, 1].

        Raises:
            ValueError: the margin is not in [0, 1].
        """
        if not 0 <= margin <= 1:
            raise ValueError(f"margin: {margin}. [0, 1] is allowed. Give a fraction, for example 0.02 for 2 points")
        return self.difference.low > -margin


def compare_paired(first: np.ndarray, second: np.ndarray, groups: np.ndarray) -> PairedComparison:
    """Compare two classifiers on the same images.

    Args:
        first: whether the first classifier is correct on each image, bool ``(N,)``; or its expected accuracy.
        second: the same of the second classifier.
        groups: group of each image, int ``(N,)``.

    Raises:
        ValueError: there are no images, or the numbers of images differ.
    """
    if not 0 < len(first) == len(second) == len(groups):
        raise ValueError(
            f"images of first, second, groups: {len(first)}, {len(second)}, {len(groups)}. "
            "They must be equal and at least 1. Give one value for each image"
        )
    differences = first.astype(np.float64) - second
    parts = np.stack([np.maximum(differences, 0), np.maximum(-differences, 0), np.ones(len(differences))])
    gains, losses, sizes = group_sums(parts, groups)[:, None]
    low, high = paired_intervals(gains, losses, sizes)
    return PairedComparison(
        difference=Estimate(float(differences.mean()), float(low[0]), float(high[0])),
        p_value=p_value_by_group(gains[0] - losses[0]),
        n_only_first=count_only_one(first, second),
        n_only_second=count_only_one(second, first),
        detectable_difference=float(detectable_differences(gains - losses, sizes)[0]),
    )


def count_only_one(first: np.ndarray, second: np.ndarray) -> int:
    """Return the number of images that the first of two classifiers classifies correctly, and the second does not.

    A random classifier is correct on an image if at least half of its predictions are. Otherwise two equal random
    classifiers, with shares such as 0.71 and 0.7, would seem to differ on nearly every image.

    Args:
        first: whether the first classifier is correct on each image, bool ``(N,)``; or its expected accuracy.
        second: the same of the second classifier.
    """
    return int(((first >= 0.5) & (second < 0.5)).sum())


def paired_intervals(gains: np.ndarray, losses: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % interval of differences of two accuracies, from sums by group: bounds, float64 ``(K,)`` each.

    The difference is the rate of gains (only the first classifier is correct) minus the rate of losses (only the
    second is), with the interval of
    :func:`tasks.statistics.rates.combination_interval`. So it is asymmetric if there are hardly any losses,
    and it has a width if there are neither.

    Args:
        gains: images that only the first classifier classifies correctly, of each group, ``(K, G)``.
        losses: images that only the second classifier classifies correctly, ``(K, G)``.
        sizes: images of each group, ``(K, G)``.
    """
    parts = np.stack([gains, losses])
    # without the rule for few groups with a success: for both gains and losses, the interval would be too wide
    bounds = np.stack([rate_intervals(part, sizes, 0) for part in parts])
    deviations = np.stack([rate_deviations(part, sizes) for part in parts])
    rates = parts.sum(axis=2) / sizes.sum(axis=1)
    return combination_interval(np.array([1.0, -1.0]), rates, bounds[:, 0], bounds[:, 1], deviations)


def p_value_by_group(differences: np.ndarray) -> float:
    """Return the p-value of :func:`sign_flip_p_value`; NaN with fewer than ``MIN_GROUPS_OF_TEST`` groups.

    Args:
        differences: sum of the differences of each group, ``(G,)``.
    """
    return sign_flip_p_value(differences) if len(differences) >= MIN_GROUPS_OF_TEST else float("nan")


def sign_flip_p_value(differences: np.ndarray) -> float:
    """Return the two-sided p-value of a sign-flip test by group.

    Under the null hypothesis, the difference of a group is as likely to be in favour of one classifier as of the other.
    So all signs of the differences of the groups have the same probability, and the p-value is the probability of a sum
    that is at least as far from 0 as the observed one. It is exact for whole numbers, and otherwise of 20,000 random
    signs. If every image is a group of its own, this is McNemar's exact test.

    Args:
        differences: sum of the differences of each group, ``(G,)``.

    Returns:
        The p-value; 1 if there is no difference. With n groups that have a difference, it is at least 2 / 2^n.
    """
    sizes = np.abs(differences[differences != 0])
    observed = abs(differences.sum())
    if not len(sizes):
        return 1.0
    if (sizes == np.rint(sizes)).all():
        # distribution of the sum of the groups with a positive sign; the sum of all groups is twice this minus `total`
        total = int(sizes.sum())
        probability = np.zeros(total + 1)
        probability[0] = 1
        for size in sizes.astype(int):
            shifted = np.zeros_like(probability)
            shifted[size:] = probability[:-size]
            probability = (probability + shifted) / 2
        is_extreme = np.abs(2 * np.arange(total + 1) - total) >= observed
        return min(1.0, float(probability[is_extreme].sum()))
    return float(random_sign_p_values(differences[None], N_DRAWS)[0])


def random_sign_p_values(differences: np.ndarray, n_draws: int, seed: int = 0) -> np.ndarray:
    """Return p-values of K sign-flip tests of random signs, which are the same for all, float64 ``(K,)``.

    Args:
        differences: sum of the differences of each group, ``(K, G)``.
        n_draws: number of random signs, a multiple of 1000.
        seed: of the random signs.
    """
    rng, n_reached = np.random.default_rng(seed), np.zeros(len(differences))
    # the tolerance is for rounding: the observed signs must reach the observed sum
    observed = np.abs(differences.sum(axis=1)) - 1e-9 * np.abs(differences).sum(axis=1)
    for _ in range(n_draws // 1000):
        signs = 2.0 * rng.integers(2, size=(1000, differences.shape[1]), dtype=np.int8) - 1
        n_reached += (np.abs(signs @ differences.T) >= observed).sum(axis=0)
    p_values: np.ndarray = (1 + n_reached) / (1 + n_draws)
    return p_values


def detectable_differences(sums: np.ndarray, sizes: np.ndarray, n_comparisons: int = 1) -> np.ndarray:
    """Return the smallest true mean difference that the sign-flip test finds with 80 % power, float64 ``(K,)``.

    The test is two-sided, at the level a = ``SIGNIFICANCE_LEVEL`` / ``n_comparisons``, the strictest one of Holm's
    method. The value is the solution d of ``d = z_(1 - a / 2) sqrt(w + d^2 / g) + z_0.8 sqrt(w)``, where g is the
    effective number of groups: a true difference makes the sums of all groups larger, and with them the spread of the
    sums with random signs. The variance is ``w = max(v, d c / n)``, where v is that of the mean difference by group in
    the data, and n the number of images. If few groups have a difference, v is too small: a true difference of d needs
    d n / c groups with a difference of c images, and their number is random. The difference c is the mean of the
    observed ones, or one image if there is none. So the value is only a guide if the true difference is far from the
    observed one.

    It is at most 1; NaN if there are too few groups for a small enough p-value, which is at least 2 / 2^G.

    Args:
        sums: sum of the differences of each group, ``(K, G)``.
        sizes: images of each group, ``(K, G)``.
        n_comparisons: number of comparisons of the family.
    """
    level, n_images = SIGNIFICANCE_LEVEL / n_comparisons, sizes.sum(axis=1)
    critical, of_power = NormalDist().inv_cdf(1 - level / 2), NormalDist().inv_cdf(POWER)
    effective = effective_groups(sizes)
    is_undefined = too_few_groups(sizes) | ((sizes > 0).sum(axis=1) < math.log2(2 / level)) | (effective <= critical**2)
    effective = np.where(is_undefined, np.inf, effective)
    variance, _ = jackknife_variance(rate_deviations(sums, sizes).T)
    n_different = np.count_nonzero(sums, axis=1)
    of_group = np.where(n_different > 0, np.abs(sums).sum(axis=1) / np.maximum(n_different, 1), 1)
    smallest = np.full(len(sums), 1.0)
    for _ in range(N_ITERATIONS):
        at_truth = np.maximum(variance, smallest * of_group / n_images)
        smallest = critical * np.sqrt(at_truth + smallest**2 / effective) + of_power * np.sqrt(at_truth)
    return np.where(is_undefined, np.nan, np.minimum(smallest, 1))
