"""Panels of lines as data, so that a figure on paper and its interactive twin draw the same numbers."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

PALETTE = ["#333333", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"]
"""Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), which colour-blind readers tell apart."""

Dash = Literal["solid", "dashed", "dotted", "dashdot"]
DASHES: list[Dash] = ["solid", "dashed", "dotted", "dashdot"]


@dataclass(frozen=True)
class Line:
    """One line of a panel, with a band where there are intervals."""

    name: str
    x: np.ndarray
    """float ``(n,)``."""
    y: np.ndarray
    """float ``(n,)``; NaN leaves a gap."""
    style: int = 0
    """Number of its colour and marker."""
    dash: Dash = "solid"
    low: np.ndarray | None = None
    """float ``(n,)``: lower edge of the band."""
    high: np.ndarray | None = None
    """float ``(n,)``: upper edge."""

    @property
    def color(self) -> str:
        """As ``#rrggbb``."""
        return PALETTE[self.style % len(PALETTE)]


@dataclass(frozen=True)
class Panel:
    """Lines that share their axes."""

    x_label: str
    y_label: str
    lines: list[Line]
    title: str = ""
    x_scale: Literal["eps", "share", "linear", "frequency"] = "linear"
    """``eps``: logarithmic, with a place for 0 (clean) left of it; ``share``: 0 to 1, written in per cent;
    ``frequency``: logarithmic, in cycles per pixel."""
    y_scale: Literal["share", "linear", "log"] = "linear"
    y_range: tuple[float | None, float | None] = (None, None)
    """In units of y; None lets the numbers decide."""
    drawn: Literal["markers", "lines", "steps"] = "markers"
    """Lines with markers, plain ones, or stairs with a step around each x."""
    diagonal: bool = False
    """Draw y = x."""
    level: float | None = None
    """Draw a thin horizontal line at this y, such as chance."""

    @property
    def eps(self) -> list[float]:
        """The grid of ε, rising and without 0."""
        return sorted({float(eps) for line in self.lines for eps in line.x} - {0.0})

    @property
    def has_clean(self) -> bool:
        """Whether a line has a point at ε = 0."""
        return any(0.0 in line.x for line in self.lines)


def line_over_eps(name: str, rows: pd.DataFrame, quantity: str = "value", style: int = 0, dash: Dash = "solid") -> Line:
    """A line from rows with ``eps``, a quantity, and its interval if there is one.

    Args:
        name: of the line.
        rows: of one curve, in any order.
        quantity: column; its interval is in ``low`` and ``high`` for ``value``, else in ``<quantity>_low`` and so on.
        style: number of its colour and marker.
        dash: of the line.
    """
    rows = rows.sort_values("eps")
    prefix = "" if quantity == "value" else f"{quantity}_"
    band = [rows[f"{prefix}{end}"].to_numpy(float) if f"{prefix}{end}" in rows else None for end in ("low", "high")]
    return Line(name, rows["eps"].to_numpy(float), rows[quantity].to_numpy(float), style, dash, *band)


def dash_of(threat_model: str) -> Dash:
    """Dash of a threat model's lines; solid is the attacker who knows all."""
    return "dashed" if threat_model == "transfer" else "dotted" if threat_model == "black_box" else "solid"


def over_eps(label: str, lines: list[Line], **more: Any) -> Panel:
    """A panel of lines from :func:`line_over_eps`; ``more`` are fields of :class:`Panel`."""
    return Panel("ε in 1/255", label, lines, x_scale="eps", **more)


def styles_of(names: Iterable[str]) -> dict[str, int]:
    """A style for each name, in order: a line of one name looks the same wherever it is drawn."""
    return {name: style for style, name in enumerate(dict.fromkeys(names))}
