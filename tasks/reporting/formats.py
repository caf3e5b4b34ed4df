"""Formats of numbers and parameter values in tables and sentences."""

import json
import math
from collections.abc import Callable
from typing import Any

from tasks.statistics.formatting import TOO_FEW_GROUPS

Format = Callable[[float], str]
"""Writes one number that is not NaN."""


def plain(value: float) -> str:
    """At least three significant digits: ``0.123``, ``1234``."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def fixed(n_digits: int) -> Format:
    """Return the format with this number of digits after the point."""
    return lambda value: f"{value:.{n_digits}f}"


def unsigned_points(difference: float) -> str:
    """A distance between two shares in percentage points: ``5.2``."""
    return f"{100 * difference:.1f}"


def signed_points(difference: float) -> str:
    """A difference of two shares in percentage points, with its sign: ``+5.2``."""
    return f"{100 * difference:+.1f}"


def number(value: float | None, form: Format = plain) -> str:
    """A number, or a dash for None and NaN."""
    if value is None or math.isnan(value):
        return "–"
    text = form(value)
    is_zero = not any(digit in text for digit in "123456789")
    return text.removeprefix("-") if is_zero else text.replace("-", "−")


def estimate(row: Any, form: Format = plain, quantity: str = "value", no_interval: str = TOO_FEW_GROUPS) -> str:
    """A number with its 95 % interval: ``0.93 [0.90, 0.95]``.

    Args:
        row: row with the quantity; the bounds are in ``low`` and ``high`` for ``value``, otherwise in
            ``<quantity>_low`` and ``<quantity>_high``.
        form: format of one number.
        quantity: column.
        no_interval: text in place of an interval whose bounds are NaN or None.
    """
    prefix = "" if quantity == "value" else f"{quantity}_"
    value, low, high = (
        math.nan if row[name] is None else float(row[name]) for name in (quantity, f"{prefix}low", f"{prefix}high")
    )
    if math.isnan(value):
        return number(value, form)
    if math.isnan(low) or math.isnan(high):
        return f"{number(value, form)} {no_interval}".rstrip()
    bounds = [number(bound, form).removesuffix(" %") for bound in (low, high)]
    return f"{number(value, form)} [{', '.join(bounds)}]"


def p_text(p_value: float) -> str:
    """A p-value: ``p = 0.012``; ``p < 0.001``."""
    return f"p = {p_value:.3f}" if p_value >= 0.001 else "p < 0.001"


def value_text(value: Any) -> str:
    """Return a value as text: lists with commas, lists of mappings with semicolons."""
    match value:
        case None:
            return "–"
        case str():
            return value
        case float():
            return f"{value:.6g}"
        case list():
            separator = "; " if any(isinstance(entry, dict | list) for entry in value) else ", "
            return separator.join(map(value_text, value))
        case dict():
            return ", ".join(f"{key}: {value_text(entry)}" for key, entry in value.items())
        case _:
            return json.dumps(value)
