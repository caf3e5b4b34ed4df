"""Building blocks of the tables of the step ``analyze``."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from tasks.statistics.intervals import Estimate

Point = Mapping[str, Any]
"""Columns with one value for several rows, such as attack and eps."""

TablePart = tuple[str, pd.DataFrame]
"""Name of a table, and some of its rows."""


def with_point(point: Point, rows: pd.DataFrame) -> pd.DataFrame:
    """Put the columns of a point in front of the columns of some rows."""
    return pd.concat([pd.DataFrame(point, index=rows.index), rows], axis=1)


def estimate_rows(estimates: Mapping[str, Estimate]) -> pd.DataFrame:
    """One row for each metric, with the columns metric, value, low, high."""
    return pd.DataFrame([{"metric": metric, **estimate._asdict()} for metric, estimate in estimates.items()])


def join_parts(parts: Iterable[TablePart]) -> dict[str, pd.DataFrame]:
    """Concatenate the parts of each table in the order in which they come, and return the tables by name."""
    by_table: dict[str, list[pd.DataFrame]] = {}
    for name, rows in parts:
        by_table.setdefault(name, []).append(rows)
    return {name: pd.concat(rows, ignore_index=True) for name, rows in by_table.items()}
