"""Tables of text cells, built from long data frames."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tasks.outcomes.names import display_name
from tasks.records.vocabulary import CLEAN
from tasks.reporting.formats import Format, estimate
from tasks.reporting.names import attack_name
from tasks.reporting.section import Point
from tasks.statistics.formatting import TOO_FEW_GROUPS, eps_text

CURVE_KEYS = {"target": "target", "threat_model": "threat model", "attack": "attack", "eps": "ε in 1/255"}
"""Key columns of a point of a curve, with their heads."""
IMAGE_KEYS = {
    "surrogate": "surrogate",
    "attack": "attack",
    "eps": "ε in 1/255",
    "image_kind": "images",
    "purifier": "purifier",
}
"""Key columns of a set of images, with their heads."""

Metrics = dict[str, tuple[str, Format]]
"""Metric -> head of its column and number format."""


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell of a row is its head."""

    head: list[str]
    rows: list[list[str]]


def metrics_table(
    table: pd.DataFrame,
    keys: dict[str, str],
    metrics: Metrics,
    counts: dict[str, str] | None = None,
    without_interval: Collection[str] = (),
) -> Table:
    """Pivot a long table: one row for each combination of keys, one column for each metric.

    Args:
        table: with the key columns, ``metric``, ``value``, ``low`` and ``high``.
        keys: key column -> its head.
        metrics: other metrics are left out.
        counts: column of integers that are the same for all metrics -> its head.
        without_interval: metrics that have no interval.
    """
    no_interval = {name: "" if name in without_interval else TOO_FEW_GROUPS for name in metrics}
    rows = []
    for _, of_key in table.groupby(list(keys), sort=False):
        by_metric = {row["metric"]: row for _, row in of_key.iterrows()}
        first = of_key.iloc[0]
        cells = [
            estimate(by_metric[name], form, no_interval=no_interval[name]) if name in by_metric else "–"
            for name, (_, form) in metrics.items()
        ]
        rows.append(
            [*(key_text(key, first[key]) for key in keys), *cells, *(f"{first[name]}" for name in counts or {})]
        )
    return Table([*keys.values(), *(head for head, _ in metrics.values()), *(counts or {}).values()], rows)


def at_point(table: pd.DataFrame, point: Point) -> pd.DataFrame:
    """Rows of the clean images, then rows of the attack and eps."""
    return pd.concat([table[table["attack"] == CLEAN], point.of(table)])


def key_text(key: str, value: Any) -> str:
    """Display text of a key; an empty one is a dash."""
    match key:
        case "eps":
            return eps_text(value)
        case "attack":
            return attack_name(value)
        case "image_kind":
            return "purified" if value == "denoised" else str(value)
        case "target" | "surrogate" | "purifier" | "threat_model":
            return display_name(value) or "–"
        case _:
            return str(value)
