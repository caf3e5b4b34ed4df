"""Changes of the data set since the reference version."""

from collections.abc import Hashable
from typing import Any

import pandas as pd

from tasks.dataset.data_versions import ALL_CLASSES, distribution_drift, image_changes
from tasks.reporting.formats import number
from tasks.reporting.headline import Headline
from tasks.reporting.results import Results
from tasks.reporting.section import Section
from tasks.reporting.tables import Table

CHANGES = {"n_before": "before", "n_after": "now", "n_added": "added", "n_removed": "removed", "n_changed": "changed"}
"""Column of the changes -> its head."""


def data_changes_section(results: Results, _headline: Headline) -> Section:
    """Return the number of added, removed and changed images, and the shifts of the manifest's columns."""
    before, after = results.reference, results.manifest
    changes = image_changes(before, after)
    n_added, n_removed, n_changed = (int(changes[f"n_{how}"].sum()) for how in ("added", "removed", "changed"))
    is_changed = n_added + n_removed + n_changed > 0
    values: dict[str, Any] = {
        "n_before": len(before),
        "n_after": len(after),
        "n_added": n_added,
        "n_removed": n_removed,
        "n_changed": n_changed,
        "is_changed": is_changed,
        "is_other_data": is_changed and n_removed == len(before),
        "changes": None,
        "shifts": None,
    }
    if is_changed and len(before) and not values["is_other_data"]:
        values |= {"changes": _changes_table(changes), "shifts": _shifts_table(distribution_drift(before, after))}
    return Section("data-changes", "Data changes", values)


def _changes_table(changes: pd.DataFrame) -> Table:
    rows = [[row["class"], *(str(row[column]) for column in CHANGES)] for row in changes.to_dict("records")]
    return Table(["class", *CHANGES.values()], rows)


def _shifts_table(shifts: pd.DataFrame) -> Table:
    rows = [
        [
            row["column"] if row["class"] == ALL_CLASSES else f"{row['column']}, {row['class']}",
            *(_quantiles(row, when) for when in ("before", "after")),
            number(row["ks_statistic"]),
            number(row["p_value"]),
        ]
        for row in shifts.sort_values("ks_statistic", ascending=False, kind="stable").to_dict("records")
    ]
    return Table(["column", "median before [5 %, 95 %]", "median now [5 %, 95 %]", "KS statistic", "p-value"], rows)


def _quantiles(row: dict[Hashable, Any], when: str) -> str:
    low, median, high = (row[f"q{quantile}_{when}"] for quantile in ("05", "50", "95"))
    return f"{number(median)} [{number(low)}, {number(high)}]"
