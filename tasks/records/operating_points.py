"""Operating points at which every target is attacked, and their file."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks.core.files import write_json
from tasks.core.workspace import Workspace
from tasks.params import UNDEFENDED


@dataclass(frozen=True)
class OperatingPoint:
    """Biases on the logits of a target, chosen on validation images."""

    name: str
    """``as_trained``, ``recalibrated`` or ``fixed_sensitivity``."""
    biases: tuple[float, ...]
    """Added to the logits, one for each class; the first is 0."""
    biases_low: tuple[float, ...] | None = None
    """Lower bounds of the 95 % intervals of the biases, by the bootstrap by group; None if nothing was chosen, if
    a class has too few groups, or if the validation images do not determine them."""
    biases_high: tuple[float, ...] | None = None
    """Upper bounds."""


def write_operating_points(points: Sequence[OperatingPoint], path: Path) -> None:
    """Write operating points as JSON."""
    write_json([asdict(point) for point in points], path)


def read_operating_points(workspace: Workspace, defences: Sequence[str]) -> dict[str, list[OperatingPoint]]:
    """Operating points of the undefended classifier and of some defences, by target.

    Raises:
        FileNotFoundError: a target was not attacked.
    """
    points = {}
    for target in (UNDEFENDED, *defences):
        path = workspace.operating_points(target)
        if not path.is_file():
            step = workspace.step_of(path)
            raise FileNotFoundError(f"{path} not found. Run the step {step} first (dvc repro {step})")
        points[target] = parse_operating_points(path.read_text(encoding="utf-8"))
    return points


def parse_operating_points(text: str) -> list[OperatingPoint]:
    """Return operating points from the text of their file."""
    return [
        OperatingPoint(row["name"], *(row[key] and tuple(row[key]) for key in ("biases", "biases_low", "biases_high")))
        for row in json.loads(text)
    ]
