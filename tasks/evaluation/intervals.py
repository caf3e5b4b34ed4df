"""Confidence intervals of proportions."""

from statistics import NormalDist

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
