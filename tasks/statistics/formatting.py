"""Text of rates, intervals and eps."""

from typing import Any

Row = Any
"""Row of a table with a rate and its interval, a ``pd.Series``, whose stubs have no type for the values."""


def percent(fraction: float) -> str:
    """Format a fraction in per cent: ``0.9321`` as ``93.2 %``."""
    return f"{100 * fraction:.1f} %"


def points(difference: float) -> str:
    """Format a difference of two fractions in percentage points: ``0.052`` as ``5.2 points``."""
    return f"{100 * difference:.1f} points"


def with_interval(row: Row, quantity: str = "accuracy") -> str:
    """Format a rate with its 95 % confidence interval: ``93.2 % [90.6, 95.1]``."""
    return f"{percent(row[quantity])} {interval(row, quantity)}"


def interval(row: Row, quantity: str = "accuracy") -> str:
    """Format the 95 % confidence interval of a rate, in per cent: ``[90.6, 95.1]``."""
    return f"[{100 * row[f'{quantity}_low']:.1f}, {100 * row[f'{quantity}_high']:.1f}]"


def eps_text(eps: float) -> str:
    """Format an eps in units of 1/255 without trailing zeros: ``0.25``, ``8``."""
    return f"{eps:g}"
