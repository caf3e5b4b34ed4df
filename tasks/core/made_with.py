"""Outputs that were made with other inputs than the present ones, if a step in between was left out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def check_made_with(
    made: Path, step: str, recorded: Mapping[str, Any], source: Path, present: Mapping[str, Any]
) -> None:
    """Refuse an output that was made with other values than the present ones.

    Args:
        made: file of the output.
        step: the step that made it.
        recorded: values that it was made with, as far as they are known.
        source: file or folder that has the present values.
        present: the present values.

    Raises:
        ValueError: a value differs.
    """
    for name, value in recorded.items():
        if value != present[name]:
            raise ValueError(
                f"{made} was made with {name} {value}, and {source} has {name} {present[name]}. They must be equal, "
                f"also in their order. Run the step {step} again: dvc repro {step}"
            )
