"""Writing of CSV and JSON files: the same values give the same bytes."""

import json
from pathlib import Path
from typing import Any

import pandas as pd


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, numbers with eight significant digits, NaN as an empty cell."""
    frame.to_csv(path, index=False, float_format="%.8g", lineterminator="\n")


def write_json(values: Any, path: Path) -> None:
    """Write values as JSON; a NaN raises a ValueError."""
    path.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
