"""A section of the report: values and figures for its template ``templates/sections/<key>.html.j2``."""

import math
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from tasks.params import UNDEFENDED
from tasks.records.vocabulary import CLEAN
from tasks.reporting.drawings import Drawing
from tasks.reporting.formats import Format, estimate
from tasks.reporting.headline import Headline
from tasks.reporting.names import attack_name, curve_name
from tasks.statistics.formatting import eps_text


@dataclass(frozen=True)
class Section:
    """Data of one section; the prose is in its template."""

    key: str
    """Anchor on the page; its template has the same name, with ``_`` for ``-``."""
    title: str
    values: dict[str, Any] = field(default_factory=dict)
    """Variables of the template."""
    drawings: list[Drawing] = field(default_factory=list)


@dataclass(frozen=True)
class Point:
    """An attack at one eps."""

    attack: str
    eps: float

    def __str__(self) -> str:
        return f"{attack_name(self.attack)} at {self.eps_text}"

    @property
    def eps_text(self) -> str:
        """``ε = 1/255``."""
        return f"ε = {eps_text(self.eps)}/255"

    def of(self, table: pd.DataFrame) -> pd.DataFrame:
        """Rows of this attack and eps."""
        return table[(table["attack"] == self.attack) & (table["eps"] == self.eps)]


@dataclass(frozen=True)
class Span:
    """Formatted estimates of all targets: the undefended classifier, and the range over the defences."""

    undefended: str
    lowest: str | None
    """None without defences."""
    highest: str | None
    """None with fewer than two estimates of defences."""


def point_of(table: pd.DataFrame, headline: Headline) -> Point | None:
    """Return the attack and eps of the table that are nearest to the analysed ones; None without attacked images."""
    attacked = table[table["attack"] != CLEAN]
    if attacked.empty:
        return None
    attacks = list(attacked["attack"])
    attack = headline.analysed_attack if headline.analysed_attack in attacks else attacks[-1]
    eps = attacked.loc[attacked["attack"] == attack, "eps"]
    return Point(attack, min(map(float, eps), key=lambda eps: abs(math.log(eps / headline.eps))))


def span_of(rows: pd.DataFrame, form: Format) -> Span:
    """Return the range of one quantity over the targets.

    Args:
        rows: one row for each target and threat model, with ``value``, ``low`` and ``high``.
        form: format of one number.
    """
    is_undefended = rows["target"] == UNDEFENDED
    undefended = ", ".join(estimate(row, form) for _, row in rows[is_undefended].iterrows())
    defended = [
        f"{estimate(row, form)} ({curve_name(row['target'], row['threat_model'])})"
        for _, row in rows[~is_undefended].sort_values("value", kind="stable").iterrows()
    ]
    lowest = defended[0] if defended else None
    return Span(undefended, lowest, defended[-1] if len(defended) > 1 else None)


def relation_of(first: Any, second: Any, smaller: str, larger: str, similar: str) -> str | None:
    """Return how two estimates compare by their intervals; None if one has no interval, so there is no conclusion.

    Args:
        first: row with ``low`` and ``high``.
        second: the row that it is compared with.
        smaller: returned if the whole interval of the first is below that of the second.
        larger: returned if it is above.
        similar: returned otherwise.
    """
    if any(math.isnan(row[bound]) for row in (first, second) for bound in ("low", "high")):
        return None
    if first["high"] < second["low"]:
        return smaller
    return larger if first["low"] > second["high"] else similar
