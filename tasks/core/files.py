"""Tables on disk: the same values give the same bytes."""

import json
from pathlib import Path
from typing import Any

import pandas as pd


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, numbers in eight digits, NaN as nothing."""
    frame.to_csv(path, index=False, float_format="%.8g", lineterminator="\n")


def write_json(values: Any, path: Path) -> None:
    """Write what JSON can hold; NaN is refused."""
    path.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
