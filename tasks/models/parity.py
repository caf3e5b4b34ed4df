"""Comparison of an imported classifier with the original one, before any attack."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from tasks.core.files import write_json
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import Prepared
from tasks.models.compute import device_of
from tasks.models.imported import ImportedClassifier
from tasks.models.mistakes import accuracy_candidates, find_cause, probabilities_as_logits
from tasks.models.reference_outputs import Reference, difference, read_reference
from tasks.models.untrusted import user_file
from tasks.params import Classifier

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = 0.01
"""Maximum difference from the reference, relative to the spread of the reference over the images."""
SIGNIFICANCE = 0.001
"""Significance level of a difference from the expected accuracy (exact binomial test)."""
N_HISTORY_IMAGES = 256
"""Maximum number of images of a split on which the row of the history is measured."""
BATCH_SIZE = 32

NO_CAUSE = (
    "unknown. No single mistake explains the difference: there may be two mistakes, or it is another model. Compare "
    "classifier.input and classifier.output with the code of the original"
)

log = logging.getLogger(__name__)


def compare_with_original(
    workspace: Workspace, classifier: Classifier, model: ImportedClassifier, data: Prepared
) -> None:
    """Compare an imported classifier with its reference outputs and its expected accuracy, and write ``parity.json``.

    Without both, a warning is logged, and the file has the status ``not compared``.

    Raises:
        FileNotFoundError: the file of the reference outputs is missing.
        ValueError: the classifier differs. The message names the most likely cause.
    """
    outcome: dict[str, Any] = {"status": "not compared", "has_gradients": model.has_gradients}
    test, positive = data.indices("test"), data.classes[data.positive]
    if classifier.reference_outputs is not None:
        path = user_file(
            workspace.root / classifier.folder, classifier.reference_outputs, "classifier.reference_outputs"
        )
        paths = data.table["path"].tolist()
        reference = read_reference(path, data.classes, positive, paths)
        rows = np.array([paths.index(path) for path in reference.paths])
        images = torch.from_numpy(data.floats(rows)).to(device_of(model))
        found = check_parity(model, images, reference, [workspace.images / path for path in reference.paths])
        outcome |= {"status": "compared", "n_reference_outputs": len(rows), "difference": found}
    if classifier.expected_accuracy is not None:
        accuracy = check_accuracy(model, data, test, classifier.expected_accuracy)
        outcome |= {"status": "compared", "accuracy": accuracy, "expected_accuracy": classifier.expected_accuracy}
    if outcome["status"] == "not compared":
        log.warning(
            "classifier.reference_outputs: missing, so the imported classifier is not compared with the original. Set "
            "reference_outputs or expected_accuracy"
        )
    write_json(outcome, workspace.parity)


def check_parity(model: ImportedClassifier, images: Tensor, reference: Reference, originals: Sequence[Path]) -> float:
    """Compare an imported classifier with reference outputs; return the difference.

    Args:
        model: in evaluation mode.
        images: prepared images of the reference, float32 ``(n, C, H, W)`` in [0, 1].
        reference: see :func:`read_reference`.
        originals: files of the same images before the step ``prepare``; they need not exist.

    Raises:
        ValueError: the outputs differ. The message names the cause if one single mistake explains the difference.
    """
    with torch.inference_mode():
        found = difference(model(images), reference)
    if found <= TOLERANCE and not probabilities_as_logits(model, images):
        return found
    cause = find_cause(model, images, reference, originals)
    raise ValueError(
        f"classifier.reference_outputs: the outputs of the imported classifier differ from the reference by "
        f"{found:.3g} of its spread. At most {TOLERANCE:g} is allowed. Most likely cause: "
        + (f"{cause.name}. {cause.advice}" if cause else NO_CAUSE)
    )


def check_accuracy(model: ImportedClassifier, data: Prepared, rows: np.ndarray, expected: float) -> float:
    """Compare the clean accuracy of an imported classifier with that of the original one; return it.

    Raises:
        ValueError: it differs significantly. The message names the cause if one single mistake explains the difference.
    """
    labels = data.labels(rows)

    def accuracy_of(candidate: nn.Module, invert: bool = False) -> float:
        logits = logits_of(candidate, data, rows, invert)
        return float((logits.argmax(axis=1) == labels).mean())

    def differs(accuracy: float) -> bool:
        return bool(binomtest(round(accuracy * len(rows)), len(rows), expected).pvalue < SIGNIFICANCE)

    accuracy = accuracy_of(model)
    if not differs(accuracy):
        return accuracy
    confusion = np.zeros((len(data.classes),) * 2)
    np.add.at(confusion, (logits_of(model, data, rows).argmax(axis=1), labels), 1)
    causes = {
        cause.name: cause
        for cause, candidate, invert in accuracy_candidates(model, confusion)
        if not differs(accuracy_of(candidate, invert))
    }
    only = next(iter(causes.values())) if len(causes) == 1 else None
    raise ValueError(
        f"classifier.expected_accuracy: {expected:g} is expected, and the accuracy on {len(rows)} test images is "
        f"{accuracy:.3f}. Most likely cause: " + (f"{only.name}. {only.advice}" if only else NO_CAUSE)
    )


def logits_of(model: nn.Module, data: Prepared, rows: np.ndarray, invert: bool = False) -> np.ndarray:
    """Logits of images in these rows, float32 ``(n, K)``; with ``invert``, of their negatives."""
    parts = []
    with torch.inference_mode():
        for batch in np.array_split(rows, -(-len(rows) // BATCH_SIZE)):
            images = torch.from_numpy(data.floats(batch)).to(device_of(model))
            parts.append(model(1 - images if invert else images).cpu().numpy())
    return np.concatenate(parts)


def history_of_import(model: nn.Module, data: Prepared) -> "pd.DataFrame":
    """One row as that of an epoch of training, measured on the first images of each split; the epoch is 0."""
    import pandas as pd

    row: dict[str, float] = {"epoch": 0, "learning_rate": 0.0}
    for split in ("train", "validation"):
        rows = data.indices(split)[:N_HISTORY_IMAGES]
        logits, labels = torch.from_numpy(logits_of(model, data, rows)), torch.from_numpy(data.labels(rows))
        row[f"{split}_loss"] = float(nn.functional.cross_entropy(logits, labels))
        row[f"{split}_accuracy"] = float((logits.argmax(dim=1) == labels).float().mean())
    return pd.DataFrame([row | {"best": 1}])
