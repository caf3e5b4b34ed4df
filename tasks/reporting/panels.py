"""Panels of lines as data: the static and the interactive figure draw the same numbers."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from tasks.outcomes.names import display_name, is_independent
from tasks.records.vocabulary import CLEAN
from tasks.reporting.names import curve_name

PALETTE = ["#333333", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"]
"""Colour-blind safe palette of Okabe and Ito (https://jfly.uni-koeln.de/color/)."""
CLEAN_STYLE, ATTACKED_STYLE = 0, len(PALETTE) - 1
"""Styles of clean (or correct) and of attacked (or incorrect) images in figures without targets."""

Dash = Literal["solid", "dashed", "dotted", "dashdot"]
DASHES: list[Dash] = ["solid", "dashed", "dotted", "dashdot"]
CURVE = ["target", "threat_model"]


@dataclass(frozen=True)
class Line:
    """One line of a panel, with an optional band."""

    name: str
    x: np.ndarray
    """float ``(n,)``."""
    y: np.ndarray
    """float ``(n,)``; NaN leaves a gap."""
    style: int = 0
    """Number of the colour and the marker."""
    dash: Dash = "solid"
    low: np.ndarray | None = None
    """float ``(n,)``: lower edge of the band."""
    high: np.ndarray | None = None
    """float ``(n,)``: upper edge of the band."""

    @property
    def color(self) -> str:
        """Colour as ``#rrggbb``."""
        return PALETTE[self.style % len(PALETTE)]

    @property
    def is_hollow(self) -> bool:
        """Return whether the markers are hollow: threat models share a colour, and dashes are hard to distinguish."""
        return self.dash != "solid"


@dataclass(frozen=True)
class Panel:
    """Lines with common axes."""

    x_label: str
    y_label: str
    lines: list[Line]
    title: str = ""
    x_scale: Literal["eps", "share", "linear", "frequency"] = "linear"
    """``eps``: logarithmic, with a tick for 0 (clean) on the left; ``share``: 0 to 1, in per cent; ``frequency``:
    logarithmic, in cycles per pixel."""
    y_scale: Literal["share", "linear", "log"] = "linear"
    y_range: tuple[float | None, float | None] = (None, None)
    """In units of y; None: automatic."""
    drawn: Literal["markers", "lines", "steps"] = "markers"
    """Lines with markers, lines without markers, or steps centred at each x."""
    diagonal: bool = False
    """Draw y = x."""
    level: float | None = None
    """Draw a thin horizontal line at this y, for example the chance level."""
    ticks: tuple[float, ...] = ()
    """Ticks of an eps axis, rising; empty: every x of the lines."""

    @property
    def eps(self) -> list[float]:
        """The eps grid, rising, without 0."""
        return list(self.ticks) or sorted({float(eps) for line in self.lines for eps in line.x} - {0.0})

    @property
    def has_clean(self) -> bool:
        """Return whether a line has a point at eps 0."""
        return any(0.0 in line.x for line in self.lines)


def line_over_eps(name: str, rows: pd.DataFrame, quantity: str = "value", style: int = 0, dash: Dash = "solid") -> Line:
    """Return the line of a quantity over eps, with its interval as a band if one of the rows has one.

    Args:
        name: display name.
        rows: rows of one curve with ``eps``, in any order.
        quantity: column; its bounds are in ``low`` and ``high`` for ``value``, otherwise in ``<quantity>_low`` and
            ``<quantity>_high``.
        style: number of the colour and the marker.
        dash: dash of the line.
    """
    rows = rows.sort_values("eps")
    prefix = "" if quantity == "value" else f"{quantity}_"
    ends = [f"{prefix}{end}" for end in ("low", "high")]
    has_band = ends[0] in rows and rows[ends[0]].notna().any()
    band = [rows[end].to_numpy(float) for end in ends] if has_band else []
    return Line(name, rows["eps"].to_numpy(float), rows[quantity].to_numpy(float), style, dash, *band)


def lines_by_curve(table: pd.DataFrame, styles: dict[str, int]) -> list[Line]:
    """Return one line over eps for each target and threat model.

    The target gives the colour and the marker, the threat model gives the dash.

    Args:
        table: rows of one quantity with ``target``, ``threat_model``, ``eps``, ``value``, ``low`` and ``high``.
        styles: style of each target.
    """
    curves = {(str(target), str(threat)): rows for (target, threat), rows in table.groupby(CURVE, sort=False)}
    return [
        line_over_eps(curve_name(target, threat), rows, style=styles[target], dash=dash_of(threat))
        for (target, threat), rows in curves.items()
    ]


def lines_by_purifier(rows: pd.DataFrame, styles: dict[str, int]) -> list[Line]:
    """Return lines over eps of the adversarial images (dotted) and of these images after each purifier.

    The lines of purified images start with the clean images at eps 0. They have the style and the name of the curve of
    that target.

    Args:
        rows: rows of one metric and attack, and of the clean images, with ``surrogate``, ``attack``, ``eps``,
            ``purifier``, ``value``, ``low`` and ``high``.
        styles: style of each target.
    """
    clean, attacked = rows[rows["attack"] == CLEAN], rows[rows["attack"] != CLEAN]
    lines = []
    for names, of_line in attacked.groupby(["surrogate", "purifier"], sort=False):
        surrogate, purifier = map(str, names)
        if purifier:
            threat_model = "adaptive" if purifier == surrogate else "transfer"
            from_clean = pd.concat([clean[clean["purifier"] == purifier], of_line])
            name, dash = curve_name(purifier, threat_model), dash_of(threat_model)
            lines.append(line_over_eps(name, from_clean, style=styles[purifier], dash=dash))
        else:
            name = f"not purified, surrogate {display_name(surrogate)}"
            lines.append(line_over_eps(name, of_line, style=styles[surrogate], dash="dotted"))
    return lines


def dash_of(threat_model: str, surrogate: str = "") -> Dash:
    """Dash of the lines of a threat model; transfer from independent surrogates has another one than from ours."""
    if is_independent(surrogate):
        return "dashdot"
    return "dashed" if threat_model == "transfer" else "dotted" if threat_model == "black_box" else "solid"


def over_eps(label: str, lines: list[Line], **more: Any) -> Panel:
    """Return a panel of lines over eps; ``more`` are fields of :class:`Panel`."""
    return Panel("ε in 1/255", label, lines, x_scale="eps", **more)
