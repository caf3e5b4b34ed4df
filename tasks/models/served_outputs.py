"""Outputs of a served network on fixed images at its import; later steps compare its outputs with them."""

import json
import logging
from pathlib import Path

import numpy as np
import torch

from tasks.models.imported import ImportedClassifier
from tasks.models.trial_images import trial_images

SERVED_OUTPUTS = "served_outputs.json"
"""Name of the file below ``data/train_classifier/files``; digests of the classifier depend on it."""
N_REPEATS = 5
"""Requests at the import; a network whose outputs differ between them is random, and is not compared later."""
TOLERANCE = 1e-3
"""Maximum difference relative to the largest output; servers sum in another order for other numbers of images."""

log = logging.getLogger(__name__)


def write_served_outputs(model: ImportedClassifier, image_size: tuple[int, int], files: Path) -> None:
    """Write the outputs on fixed images; null and a warning if they are random.

    Args:
        model: queries the server.
        image_size: height and width of the network's input.
        files: folder of the copied files of the classifier.
    """
    first, *others = [_outputs(model, image_size) for _ in range(N_REPEATS)]
    is_random = not all(_is_same(other, first) for other in others)
    if is_random:
        log.warning("classifier.address: the outputs are random, so a change of the served model cannot be detected")
    (files / SERVED_OUTPUTS).write_text(json.dumps(None if is_random else first.tolist()) + "\n", encoding="utf-8")


def check_served_outputs(model: ImportedClassifier, image_size: tuple[int, int], files: Path, address: str) -> None:
    """Compare the outputs on fixed images with those at the import, by one request.

    Args:
        model: queries the server.
        image_size: height and width of the network's input.
        files: folder of the copied files of the classifier.
        address: of the server, for the error.

    Raises:
        ValueError: the served model has changed, or the server does not answer.
    """
    recorded = json.loads((files / SERVED_OUTPUTS).read_text(encoding="utf-8"))
    if recorded is None or _is_same(_outputs(model, image_size), np.array(recorded, dtype=np.float64)):
        return
    raise ValueError(
        f"classifier.address: {address} gives other outputs than at the import: the served model has changed, or its "
        "outputs are random. One model for all steps is needed. Serve the imported model again, or run the import "
        "again: dvc repro --force train_classifier"
    )


def _outputs(model: ImportedClassifier, image_size: tuple[int, int]) -> np.ndarray:
    images = trial_images((model.input.channels, *image_size))
    with torch.inference_mode():
        return model.raw(images).double().numpy()


def _is_same(outputs: np.ndarray, expected: np.ndarray) -> bool:
    largest = np.abs(expected).max(initial=0)
    return outputs.shape == expected.shape and bool(np.abs(outputs - expected).max() <= TOLERANCE * largest)
