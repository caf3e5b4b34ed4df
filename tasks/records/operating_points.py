"""Operating points at which every target is attacked, and their file."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks.core.files import write_json


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
