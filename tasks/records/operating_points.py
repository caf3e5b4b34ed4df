"""Operating points at which every target is attacked, and their file."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tasks.core.files import write_json
from tasks.core.workspace import Workspace
from tasks.params import UNDEFENDED
from tasks.records.vocabulary import AS_TRAINED, FIXED_SENSITIVITY, RECALIBRATED
from tasks.statistics.operating_points import Choice, balanced_biases, choose_biases, sensitivity_biases

N_RESAMPLES = 500
"""Bootstrap resamples of the intervals of the biases."""


@dataclass(frozen=True)
class OperatingPoint:
    """Biases on the logits of a target, chosen on validation images."""

    name: str
    """``as_trained``, ``recalibrated`` or ``fixed_sensitivity``."""
    biases: tuple[float, ...]
    """Added to the logits, one for each class; the first is 0."""
    biases_low: tuple[float, ...] | None = None
    """Lower bounds of the 95 % intervals of the biases, by the bootstrap by group; None if nothing was chosen."""
    biases_high: tuple[float, ...] | None = None
    """Upper bounds."""


def choose_operating_points(
    logits: np.ndarray, labels: np.ndarray, groups: np.ndarray, positive: int, sensitivity: float, seed: int
) -> list[OperatingPoint]:
    """Return the operating points of a target, from its logits of the validation images.

    ``as_trained`` has no bias. ``recalibrated`` has the highest balanced accuracy. ``fixed_sensitivity``, for two
    classes, has a given sensitivity and otherwise the highest specificity. Without a validation image of every class,
    only ``as_trained`` is possible.

    Args:
        logits: of the validation images, ``(N, K)``.
        labels: true classes, int ``(N,)``.
        groups: group of each image, int ``(N,)``.
        positive: label of the positive class.
        sensitivity: of ``fixed_sensitivity``, in (0, 1].
        seed: of the bootstrap.
    """
    n_classes = logits.shape[1]
    points = [OperatingPoint(AS_TRAINED, (0.0,) * n_classes)]
    if len(np.unique(labels)) < n_classes:
        return points
    choices: dict[str, Choice] = {RECALIBRATED: balanced_biases}
    if n_classes == 2:
        choices[FIXED_SENSITIVITY] = lambda of, true: sensitivity_biases(of, true, positive, sensitivity)
    for name, choice in choices.items():
        chosen = choose_biases(choice, logits, labels, groups, N_RESAMPLES, seed)
        low, high = (None if np.isnan(of).any() else tuple(map(float, of)) for of in (chosen.low, chosen.high))
        points.append(OperatingPoint(name, tuple(map(float, chosen.biases)), low, high))
    return points


def write_operating_points(points: Sequence[OperatingPoint], path: Path) -> None:
    """Write operating points as JSON."""
    write_json([asdict(point) for point in points], path)


def read_operating_points(workspace: Workspace, defences: Sequence[str]) -> dict[str, list[OperatingPoint]]:
    """Operating points of the bare classifier and of some defences, by target.

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
