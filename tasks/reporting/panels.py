"""Panels of lines as data, so that a figure on paper and its interactive twin draw the same numbers."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from tasks.reporting.findings import curve_name

PALETTE = ["#333333", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"]
"""Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), which colour-blind readers tell apart."""
CLEAN_STYLE, ATTACKED_STYLE = 0, len(PALETTE) - 1
"""Styles of what is clean or right, and of what is attacked or wrong, where lines are no targets."""

Dash = Literal["solid", "dashed", "dotted", "dashdot"]
DASHES: list[Dash] = ["solid", "dashed", "dotted", "dashdot"]
CURVE = ["target", "threat_model"]


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

    @property
    def is_hollow(self) -> bool:
        """Whether its markers are: colours repeat from threat model to threat model, and dashes are hard to see."""
        return self.dash != "solid"


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
    ticks: tuple[float, ...] = ()
    """Of an axis of ε, rising, where lines have more points than it has room for."""

    @property
    def eps(self) -> list[float]:
        """The grid of ε, rising and without 0."""
        return list(self.ticks) or sorted({float(eps) for line in self.lines for eps in line.x} - {0.0})

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


def lines_by_curve(table: pd.DataFrame, styles: dict[str, int]) -> list[Line]:
    """A line over ε for each target and threat model: colour and marker are the target's, the dash the threat model's.

    Args:
        table: of one quantity, with ``target``, ``threat_model``, ``eps``, ``value``, ``low`` and ``high``.
        styles: by target.
    """
    curves = {(str(target), str(threat)): rows for (target, threat), rows in table.groupby(CURVE, sort=False)}
    return [
        line_over_eps(curve_name(target, threat), rows, style=styles[target], dash=dash_of(threat))
        for (target, threat), rows in curves.items()
    ]


def dash_of(threat_model: str) -> Dash:
    """Dash of a threat model's lines; solid is the attacker who knows all."""
    return "dashed" if threat_model == "transfer" else "dotted" if threat_model == "black_box" else "solid"


def over_eps(label: str, lines: list[Line], **more: Any) -> Panel:
    """A panel of lines from :func:`line_over_eps`; ``more`` are fields of :class:`Panel`."""
    return Panel("ε in 1/255", label, lines, x_scale="eps", **more)
