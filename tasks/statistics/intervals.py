"""Confidence intervals: of proportions, of statistics from the jackknife, and over seeds."""

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv, expit, logit, stdtr, stdtrit

Bounds = tuple[float, float]
"""Range of the values that a statistic can have; infinite if there is none."""

RATE: Bounds = (0.0, 1.0)
"""Range of accuracies, other rates and the AUROC."""
CORRELATION: Bounds = (-1.0, 1.0)
"""Range of correlations and silhouettes."""
POSITIVE: Bounds = (0.0, float("inf"))
"""Range of losses, errors and distances."""
UNBOUNDED: Bounds = (float("-inf"), float("inf"))
"""Range of statistics without limits."""

CONFIDENCE = 0.95
"""Confidence level of Wilson's interval."""
MIN_SEEDS = 10
"""Minimum number of seeds of an interval or a comparison over seeds: with fewer, their variation is hardly known."""
MIN_DEGREES_OF_FREEDOM = 3.0
"""Lower limit of the estimated degrees of freedom, which are noisy if few groups contribute."""
MAX_ERROR_TO_BOUND = 0.9
"""Standard errors above this multiple of the distance to a bound have no meaning on the logit scale: one group, or
hardly more, makes the value differ from the bound."""
GROUPS_PER_DEGREE = 6
"""Groups for each degree of freedom of a p-value from an interval, whose own degrees of freedom are not kept."""


def wilson(n_success: ArrayLike, n: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % Wilson score interval of a proportion, without continuity correction.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22, 209-212.

    Args:
        n_success: numbers of successes, of any shape.
        n: numbers of trials, broadcast against ``n_success``.

    Returns:
        Lower and upper bounds in [0, 1], float64 of the broadcast shape; NaN for 0 trials.

    Raises:
        ValueError: a number of successes is negative or exceeds the trials.
    """
    successes, trials = np.broadcast_arrays(np.asarray(n_success, dtype=np.float64), np.asarray(n, dtype=np.float64))
    if (wrong := ~((successes >= 0) & (successes <= trials))).any():
        raise ValueError(
            f"n_success is {successes[wrong][0]:g} with n {trials[wrong][0]:g}: n_success must lie between 0 and n"
        )
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
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


def clopper_pearson_upper(n_success: ArrayLike, n: ArrayLike) -> np.ndarray:
    """Return the upper bound of the 95 % Clopper-Pearson interval of a proportion, float64 of the broadcast shape.

    Clopper and Pearson 1934, Biometrika 26, 404-413. The lower bound is 1 minus the upper bound of the failures.
    Numbers need not be whole.

    Args:
        n_success: numbers of successes, in [0, n], of any shape.
        n: numbers of trials, at least 1, broadcast against ``n_success``.
    """
    successes, trials = np.broadcast_arrays(np.asarray(n_success, dtype=np.float64), np.asarray(n, dtype=np.float64))
    failures = trials - successes
    upper: np.ndarray = np.where(
        failures > 1e-9, betaincinv(successes + 1, np.where(failures > 1e-9, failures, 1), 0.975), 1.0
    )
    return upper


def jackknife_interval(
    value: np.ndarray, deviations: np.ndarray, bounds: Bounds, n_groups: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % interval of a statistic from its changes when one group is left out, float64 ``(...)`` each.

    - The variance is the sum of the squared changes, called CR3 for a mean (Bell and McCaffrey 2002, Survey Methodology
      28, 169-181).
    - Quantiles are of Student's t, with Satterthwaite's degrees of freedom estimated from the changes (Lipsitz, Ibrahim
      and Parzen 1999, JRSS D 48, 495-506). So the interval is wider if a few groups decide the result.
    - A statistic with two finite bounds gets an interval on the logit scale, one that is positive on the log scale.
      So an interval stays within the bounds, and it is asymmetric near them.
    - On the logit scale the centre moves towards the middle of the range, as if one effective success and one effective
      failure were added (Agresti and Coull 1998, The American Statistician 52, 119-126). This balances the two tails.
    - Near a bound, where the standard error is more than ``MAX_ERROR_TO_BOUND`` times the distance to the bound, the
      interval is that on the scale of the statistic. Examples are an AUROC of 1 that no group changes, or that one
      group changes. It is at least as wide as if a share of all groups had the smallest or the largest possible value,
      and the sample had missed them by chance. The share is Clopper and Pearson's bound for 1 of n groups, and for 0 of
      n groups if no group changes the value.
    - Without two finite bounds, there is no interval if no group changes the value: NaN.

    docs/evidence/statistics.md compares this method with others in simulations.

    Args:
        value: of all groups, ``(...)``.
        deviations: value without each group minus value of all, ``(G, ...)``; 0 for groups that do not matter.
        bounds: range of the statistic.
        n_groups: number of groups, at least 1; broadcast against ``value``.
    """
    low, high = bounds
    # the tolerance is for rounding errors
    is_constant = (np.abs(deviations) <= 1e-10 * np.abs(value)).all(axis=0)
    variance, degrees = jackknife_variance(deviations)
    quantile, error = stdtrit(degrees, 0.975), np.sqrt(variance)
    lower, upper = value - quantile * error, value + quantile * error
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if np.isfinite(low) and np.isfinite(high):
            rate, rate_variance = (value - low) / (high - low), variance / (high - low) ** 2
            n_effective = rate * (1 - rate) / rate_variance
            centre = logit((rate * n_effective + 1) / (n_effective + 2))
            half_width = quantile / np.sqrt(n_effective * rate * (1 - rate))
            on_logit_scale = (low + (high - low) * expit(centre + sign * half_width) for sign in (-1, 1))
            missed = clopper_pearson_upper(np.where(is_constant, 0, 1), n_groups)
            widest = (
                np.minimum(lower, value - missed * (value - low)),
                np.maximum(upper, value + missed * (high - value)),
            )
            is_near = is_constant | (error > MAX_ERROR_TO_BOUND * np.minimum(value - low, high - value))
            lower, upper = (np.where(is_near, *each) for each in zip(widest, on_logit_scale, strict=True))
            lower, upper = np.clip(lower, low, value), np.clip(upper, value, high)
        else:
            if np.isfinite(low):
                factor = np.exp(quantile * error / (value - low))
                lower, upper = low + (value - low) / factor, low + (value - low) * factor
            lower, upper = (np.where(is_constant, np.nan, bound) for bound in (lower, upper))
    is_finite = np.isfinite(lower) & np.isfinite(upper)
    return np.where(is_finite, lower, np.nan), np.where(is_finite, upper, np.nan)


def jackknife_variance(deviations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the variance of a statistic and its degrees of freedom, float64 ``(...)``; see :func:`jackknife_interval`.

    For normal changes u with variances a, Satterthwaite's degrees of freedom are (sum a)^2 / sum a^2, and u^4 has the
    mean 3 a^2. So they are estimated by 3 (sum u^2)^2 / sum u^4 - 2, where the 2 removes the bias for equal variances.

    Args:
        deviations: value without each group minus value of all, ``(G, ...)``.
    """
    squares = np.square(deviations)
    variance = squares.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        degrees = 3 * variance**2 / np.square(squares).sum(axis=0) - 2
    return variance, np.fmax(degrees, MIN_DEGREES_OF_FREEDOM)


class Estimate(NamedTuple):
    """A value and its 95 % confidence interval; NaN if undefined."""

    value: float
    low: float
    high: float

    def columns(self, name: str) -> dict[str, float]:
        """Return the columns of a table: ``name``, ``name_low`` and ``name_high``."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


UNDEFINED = Estimate(float("nan"), float("nan"), float("nan"))
"""Estimate of a metric that is not defined, for example because a class has no images."""


def p_value_of_interval(estimate: Estimate, hypothesis: float, bounds: Bounds, n_groups: int) -> float:
    """Return the p-value of one estimate; see :func:`p_values_of_intervals`."""
    return float(p_values_of_intervals(*estimate, hypothesis, bounds, n_groups))


def p_values_of_intervals(
    value: ArrayLike, low: ArrayLike, high: ArrayLike, hypothesis: float, bounds: Bounds, n_groups: ArrayLike
) -> np.ndarray:
    """Return two-sided p-values of the hypothesis that the true value equals a given one, float64 ``(...)``.

    The standard error is that of the 95 % interval, on the side of the hypothesis, on the scale of the interval: the
    logit scale between two finite bounds. So p is below 0.05 exactly if the interval excludes the hypothesis. Tails are
    of Student's t with the degrees of freedom of :func:`assumed_degrees`.

    Args:
        value: of all groups, ``(...)``; p is NaN if it or its interval is NaN.
        low: lower bound of its 95 % interval.
        high: upper bound.
        hypothesis: hypothetical value.
        bounds: range of the statistic.
        n_groups: number of groups; broadcast against ``value``.
    """
    numbers = [np.asarray(number, dtype=np.float64) for number in (value, low, high, hypothesis)]
    with np.errstate(divide="ignore", invalid="ignore"):
        if np.isfinite(bounds).all():
            on_scale = [logit((number - bounds[0]) / (bounds[1] - bounds[0])) for number in numbers]
            # a value at a bound is infinite on the logit scale
            numbers = [np.where(np.isinf(on_scale[0]), *each) for each in zip(numbers, on_scale, strict=True)]
        centre, lower, upper, of_hypothesis = numbers
        half_width = np.where(of_hypothesis < centre, centre - lower, upper - centre)
        ratio = np.where(of_hypothesis == centre, 0.0, np.abs(of_hypothesis - centre) / half_width)
    degrees = assumed_degrees(n_groups)
    p_values: np.ndarray = 2 * stdtr(degrees, -ratio * stdtrit(degrees, 0.975))
    return np.where(np.isnan(lower) | np.isnan(upper), np.nan, p_values)


def assumed_degrees(n_groups: ArrayLike) -> np.ndarray:
    """Return degrees of freedom for an interval by group whose own ones are not known, float64 ``(...)``.

    Those of an interval depend on the data, and tables do not keep them. There is one for ``GROUPS_PER_DEGREE`` groups,
    and at least ``MIN_DEGREES_OF_FREEDOM``: fewer than those of most intervals, so that p-values are too large rather
    than too small.
    """
    return np.maximum(np.asarray(n_groups, dtype=np.float64) / GROUPS_PER_DEGREE, MIN_DEGREES_OF_FREEDOM)


def best_of(estimates: Sequence[Estimate], n_groups: int) -> Estimate:
    """Return the largest of several rates or AUROCs, with an interval that allows for the choice.

    If the largest upper bound is below a value, all estimates are significantly below it. One of k estimates is
    significantly above a value if its lower bound at the level of 1 - 0.05 / k (Bonferroni) is above it. This bound is
    on the scale of :func:`p_values_of_intervals`. The bounds are NaN if one of the estimates has no upper bound.

    Args:
        estimates: of values in [0, 1].
        n_groups: number of groups of the estimates.
    """
    if not estimates:
        return UNDEFINED
    largest = max(estimates, key=lambda estimate: estimate.value)
    degrees = assumed_degrees(n_groups)
    factor = stdtrit(degrees, 1 - 0.025 / len(estimates)) / stdtrit(degrees, 0.975)
    if largest.low > 0 and largest.value < 1:
        centre, lower = logit([largest.value, largest.low])
        low = expit(centre - factor * (centre - lower))
    else:
        low = max(largest.value - factor * (largest.value - largest.low), 0.0)
    return Estimate(largest.value, float(low), float(np.max([estimate.high for estimate in estimates])))


def estimate_over_seeds(values: np.ndarray, test_to_train: float = 0.0) -> dict[str, float]:
    """Return the mean over runs (``value``), its 95 % interval (``low``, ``high``) and standard deviation (``std``).

    The interval uses Student's t distribution. Runs of cross-validation share training images, so that their variance
    is too small; it is corrected by the method of Nadeau and Bengio (2003, "Inference for the generalization error",
    Machine Learning 52, 239-281). With fewer than ``MIN_SEEDS`` runs there is no interval, since their variation is
    hardly known: ``low`` and ``high`` are NaN. With one run, ``std`` is NaN, too. Without runs, or if a value is NaN,
    all are NaN.

    Args:
        values: result of each run, ``(n,)``.
        test_to_train: number of test images divided by that of the other images, of cross-validation; 0: the runs are
            independent.
    """
    n = len(values)
    if n == 0 or np.isnan(values).any():
        return dict.fromkeys(("value", "low", "high", "std"), float("nan"))
    mean = float(values.mean())
    std = float(values.std(ddof=1)) if n > 1 else float("nan")
    if n < MIN_SEEDS:
        return {"value": mean, "low": float("nan"), "high": float("nan"), "std": std}
    # imported here since it is slow, and most steps do not need it
    from scipy.stats import t

    half_width = float(t.ppf(0.975, n - 1)) * std / n**0.5 * (1 + n * test_to_train) ** 0.5
    return {"value": mean, "low": mean - half_width, "high": mean + half_width, "std": std}
