"""Text of rates, intervals, sample sizes and eps."""

import math
from typing import Any

Row = Any
"""Row of a table with a rate and its interval, a ``pd.Series``, whose stubs have no type for the values."""
TOO_FEW_GROUPS = "[too few groups]"
"""Text in place of an interval whose bounds are NaN."""


def percent(fraction: float) -> str:
    """Format a fraction in per cent: ``0.9321`` as ``93.2 %``."""
    return f"{100 * fraction:.1f} %"


def points(difference: float) -> str:
    """Format a difference of two fractions in percentage points: ``0.052`` as ``5.2 points``."""
    return f"{100 * difference:.1f} points"


def with_interval(row: Row, quantity: str = "accuracy") -> str:
    """Format a rate of a table with its 95 % confidence interval: ``93.2 % [90.6, 95.1]``."""
    return rate_text(row[quantity], row[f"{quantity}_low"], row[f"{quantity}_high"])


def rate_text(value: float, low: float, high: float) -> str:
    """Format a rate and its interval: ``93.2 % [90.6, 95.1]``; NaN gives ``–`` or ``93.2 % [too few groups]``."""
    return "–" if math.isnan(value) else f"{percent(value)} {_bounds(low, high)}"


def difference_text(value: float, low: float, high: float) -> str:
    """Format a difference of two rates and its interval: ``-1.2 points [-3.4, 1.0]``."""
    return f"{points(value)} {_bounds(low, high)}"


def _bounds(low: float, high: float) -> str:
    return TOO_FEW_GROUPS if math.isnan(low) or math.isnan(high) else f"[{100 * low:.1f}, {100 * high:.1f}]"


def sample_text(n: int, n_groups: int, unit: str) -> str:
    """Format a number of images and of their groups: ``n = 496 images of 43 inferred groups``.

    Args:
        n: images.
        n_groups: groups that are treated as independent.
        unit: name of a group; see :func:`tasks.outcomes.names.unit_of`.
    """
    return f"n = {n} images" if unit == "image" else f"n = {n} images of {n_groups} {unit}{'s' * (n_groups != 1)}"


def eps_text(eps: float) -> str:
    """Format an eps in units of 1/255 without trailing zeros: ``0.25``, ``8``."""
    return f"{eps:g}"
