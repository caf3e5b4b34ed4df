"""Other methods for the interval of a rate, for comparison with :func:`tasks.statistics.rates.rate_intervals`.

All take successes and sizes by group, ``(K, G)``, and return bounds, ``(K,)`` each. All but the first replace the
interval of a rate of 0 or 1 by Clopper and Pearson's with n = number of groups, as the project does.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import betaincinv, expit, logit, stdtrit

from tasks.statistics.groups import rate_deviations
from tasks.statistics.intervals import RATE, clopper_pearson_upper, jackknife_interval, wilson
from tasks.statistics.rates import rate_intervals

Interval = tuple[np.ndarray, np.ndarray]

N_RESAMPLES = 500
CHUNK = 100
"""Repetitions that are resampled at once."""


def wilson_of_images(successes: np.ndarray, sizes: np.ndarray) -> Interval:
    """Wilson's interval with every image taken as independent."""
    return wilson(successes.sum(axis=1), sizes.sum(axis=1))


def percentile_bootstrap(successes: np.ndarray, sizes: np.ndarray) -> Interval:
    """Percentile interval of a bootstrap by group (Efron and Tibshirani 1993, chapter 13)."""
    rates = _resampled(successes, sizes)[0]
    low, high = np.quantile(rates, [0.025, 0.975], axis=1)
    return _with_extremes(low, high, successes, sizes)


def bootstrap_t(successes: np.ndarray, sizes: np.ndarray) -> Interval:
    """Studentized bootstrap by group on the logit scale (Efron and Tibshirani 1993, chapter 12)."""
    total = sizes.sum(axis=1)
    rates, variances, totals = _resampled(successes, sizes)
    # rates of 0 and 1 have no logit
    observed = np.clip(successes.sum(axis=1) / total, 0.5 / total, 1 - 0.5 / total)
    residuals = successes - observed[:, None] * sizes
    error = np.sqrt(np.square(residuals).sum(axis=1)) / total / (observed * (1 - observed))
    rates = np.clip(rates, 0.5 / totals, 1 - 0.5 / totals)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (logit(rates) - logit(observed)[:, None]) / np.sqrt(variances) * (rates * (1 - rates))
    t[~np.isfinite(t)] = np.nan
    t[np.isnan(t).all(axis=1)] = 0
    low, high = np.nanquantile(t, [0.025, 0.975], axis=1)
    bounds = expit(logit(observed) - high * error), expit(logit(observed) - low * error)
    return _with_extremes(*bounds, successes, sizes)


def model_t(successes: np.ndarray, sizes: np.ndarray) -> Interval:
    """Logit interval with CR2 variance and degrees of freedom of an estimated intra-group correlation.

    Bell and McCaffrey 2002; Imbens and Kolesar 2016, Review of Economics and Statistics 98, 701-712.
    """
    rate, variance, degrees = _cr2(successes, sizes)
    inner = np.where((rate > 0) & (rate < 1), rate, 0.5)
    half_width = stdtrit(degrees, 0.975) * np.sqrt(variance) / (inner * (1 - inner))
    bounds = expit(logit(inner) - half_width), expit(logit(inner) + half_width)
    return _with_extremes(*bounds, successes, sizes)


def korn_graubard(successes: np.ndarray, sizes: np.ndarray) -> Interval:
    """Clopper and Pearson's interval with an effective sample size (Korn and Graubard 1998, Survey Methodology 24)."""
    rate, variance, degrees = _cr2(successes, sizes)
    total = sizes.sum(axis=1)
    of_variance = np.divide(rate * (1 - rate), variance, out=np.ones(len(rate)), where=variance > 0)
    n = np.minimum(total, of_variance * (stdtrit(total - 1.0, 0.975) / stdtrit(degrees, 0.975)) ** 2)
    x = np.clip(rate * n, 1e-9, n - 1e-9)
    return _with_extremes(betaincinv(x, n - x + 1, 0.025), betaincinv(x + 1, n - x, 0.975), successes, sizes)


def jackknife_alone(successes: np.ndarray, sizes: np.ndarray) -> Interval:
    """The method of the project without its two rules near 0 and 1."""
    rate = successes.sum(axis=1) / sizes.sum(axis=1)
    return jackknife_interval(rate, rate_deviations(successes, sizes).T, RATE, sizes.shape[1])


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], Interval]] = {
    "Wilson, images": wilson_of_images,
    "percentile bootstrap": percentile_bootstrap,
    "bootstrap-t": bootstrap_t,
    "CR2, model df": model_t,
    "Korn-Graubard": korn_graubard,
    "jackknife": jackknife_alone,
    "**project**": rate_intervals,
}


def _resampled(successes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rates, their linearised variances and numbers of images of bootstrap resamples, ``(K, R)`` each."""
    n_groups, parts = successes.shape[1], []
    for start in range(0, len(successes), CHUNK):
        s, m = successes[start : start + CHUNK], sizes[start : start + CHUNK].astype(float)
        counts = np.random.default_rng(start).multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=N_RESAMPLES)
        totals, sums = m @ counts.T, s @ counts.T
        rates = sums / totals
        squares = (s**2) @ counts.T - 2 * rates * ((s * m) @ counts.T) + rates**2 * ((m**2) @ counts.T)
        parts.append((rates, np.maximum(squares, 0) / totals**2, totals))
    rates, variances, totals = (np.concatenate(part) for part in zip(*parts, strict=True))
    return rates, variances, totals


def _cr2(successes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rate, CR2 variance and Satterthwaite's degrees of freedom under a common intra-group correlation, ``(K,)``."""
    m = sizes.astype(float)
    total = m.sum(axis=1)
    rate = successes.sum(axis=1) / total
    share = m / total[:, None]
    residuals = successes - rate[:, None] * m
    variance = (residuals**2 / (1 - share)).sum(axis=1) / total**2
    # working variance of a group total, with the correlation estimated by analysis of variance
    working = m * (1 + (m - 1) * _anova_icc(successes, m)[:, None])
    weights = (1 - share) ** -0.5
    x, y, diagonal, sum_working = weights * working, weights * share, weights**2 * working, working.sum(axis=1)
    trace = (diagonal - 2 * x * y + sum_working[:, None] * y**2).sum(axis=1)
    xx, yy, xy = (x * x).sum(axis=1), (y * y).sum(axis=1), (x * y).sum(axis=1)
    norm = (diagonal**2).sum(axis=1) + 2 * xx * yy + 2 * xy**2 + sum_working**2 * yy**2 - 4 * sum_working * xy * yy
    norm -= 2 * (diagonal * (2 * x * y - sum_working[:, None] * y**2)).sum(axis=1)
    return rate, variance, trace**2 / norm


def _anova_icc(successes: np.ndarray, m: np.ndarray) -> np.ndarray:
    n_groups, total = m.shape[1], m.sum(axis=1)
    means = successes / m
    rate = successes.sum(axis=1) / total
    between = (m * (means - rate[:, None]) ** 2).sum(axis=1) / (n_groups - 1)
    within = (successes * (1 - means)).sum(axis=1) / np.maximum(total - n_groups, 1)
    size = (total - (m**2).sum(axis=1) / total) / (n_groups - 1)
    spread = between + (size - 1) * within
    icc: np.ndarray = np.clip(np.divide(between - within, spread, out=np.zeros(len(m)), where=spread > 0), 0, 1)
    return icc


def _with_extremes(low: np.ndarray, high: np.ndarray, successes: np.ndarray, sizes: np.ndarray) -> Interval:
    share = clopper_pearson_upper(0, sizes.shape[1])
    rate = successes.sum(axis=1) / sizes.sum(axis=1)
    low = np.select([rate == 0, rate == 1], [0, 1 - share], low)
    return low, np.select([rate == 0, rate == 1], [share, 1], high)
