"""Is the data what it was?"""

from collections.abc import Hashable
from typing import Any

import pandas as pd

from tasks.dataset.comparison import ALL, drift, image_changes
from tasks.reporting.results import Results
from tasks.reporting.sections.section import Section, Table, plain

NOTE = (
    "Against data/reference.csv, which is in git; `python -m flows.data_changes --keep` makes the present "
    "data the next reference. Images are told apart by their paths, their contents by their pixels."
)
DRIFT = (
    "Distance: Kolmogorov and Smirnov's, the largest difference between the shares of images up to a value; its "
    "p-value is for independent images, which slices of one patient are not, and these are {n} comparisons: read it as "
    "a hint."
)


def data_changes_section(results: Results) -> Section:
    """Images that came, went and changed since the reference, and how their numbers moved."""
    before, after = results.reference, results.manifest
    changes = image_changes(before, after)
    n_added, n_removed, n_changed = (int(changes[f"n_{how}"].sum()) for how in ("added", "removed", "changed"))
    notes, tables = [NOTE], []
    if not n_added + n_removed + n_changed:
        answer = f"Nothing has changed: the same {len(after)} images as in the reference."
    elif n_removed == len(before):
        answer = f"These are other data: none of the reference's {len(before)} images is among the {len(after)}."
    else:
        answer = (
            f"Images since the reference: {n_added} added, {n_removed} removed, {n_changed} changed; "
            f"{len(before)} then, {len(after)} now."
        )
    if n_added + n_removed + n_changed and len(before):
        tables = [_counted(changes), _moved(drift(before, after))]
        notes.append(DRIFT.format(n=len(tables[1].rows)))
    return Section("data-changes", "Changes of the data", "Changes of the data", answer, notes, tables=tables)


def _counted(changes: pd.DataFrame) -> Table:
    columns = {
        "n_before": "before",
        "n_after": "now",
        "n_added": "added",
        "n_removed": "removed",
        "n_changed": "changed",
    }
    rows = [[row["class"], *(str(row[column]) for column in columns)] for row in changes.to_dict("records")]
    return Table("Images by class.", ["class", *columns.values()], rows)


def _moved(moved: pd.DataFrame) -> Table:
    rows = [
        [
            row["column"] if row["class"] == ALL else f"{row['column']}, {row['class']}",
            *(_quantiles(row, when) for when in ("before", "after")),
            plain(row["distance"]),
            plain(row["p_value"]),
        ]
        for row in moved.sort_values("distance", ascending=False, kind="stable").to_dict("records")
    ]
    head = ["number", "median before [5 %, 95 %]", "median now [5 %, 95 %]", "distance", "p"]
    return Table("How the manifest's numbers moved, the largest first.", head, rows, is_folded=True)


def _quantiles(row: dict[Hashable, Any], when: str) -> str:
    low, middle, high = (row[f"q{share}_{when}"] for share in ("05", "50", "95"))
    return f"{plain(middle)} [{plain(low)}, {plain(high)}]"
