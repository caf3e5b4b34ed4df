"""Writing of CSV and JSON files: the same values give the same bytes."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from tasks.params.names import without_formulas


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, numbers with eight significant digits, NaN as an empty cell, no text as a formula."""
    texts = frame.select_dtypes(exclude=["number", "bool"])
    safe = texts.map(lambda cell: without_formulas(cell) if isinstance(cell, str) else cell)
    frame.assign(**{str(name): safe[name] for name in texts}).to_csv(
        path, index=False, float_format="%.8g", lineterminator="\n"
    )


def write_json(values: Any, path: Path) -> None:
    """Write values as JSON; a NaN raises a ValueError."""
    path.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
