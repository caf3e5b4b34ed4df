"""Rates, intervals and eps as people read them."""

from typing import Any

Row = Any
"""A row of a table with a rate and its interval (``pd.Series``; its stubs have no type for its values)."""


def percent(share: float) -> str:
    """``0.9321`` as ``93.2 %``."""
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """A difference of two shares in percentage points: ``0.052`` as ``5.2 points``."""
    return f"{100 * difference:.1f} points"


def with_interval(row: Row, quantity: str = "accuracy") -> str:
    """A rate of a row with its 95 % interval: ``93.2 % [90.6, 95.1]``."""
    return f"{percent(row[quantity])} {interval(row, quantity)}"


def interval(row: Row, quantity: str = "accuracy") -> str:
    """The 95 % interval of a rate of a row, in per cent: ``[90.6, 95.1]``."""
    return f"[{100 * row[f'{quantity}_low']:.1f}, {100 * row[f'{quantity}_high']:.1f}]"


def eps_text(eps: float) -> str:
    """ε in units of 1/255 without needless digits: ``0.25``, ``8``."""
    return f"{eps:g}"
