"""Reference outputs: those of the original of an imported classifier, and the difference of other outputs from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import expit, softmax
from torch import Tensor

MIN_IMAGES = 8
"""Minimum number of reference outputs; fewer can agree by chance."""


@dataclass(frozen=True)
class Reference:
    """Outputs of the original classifier for some of the images."""

    paths: list[str]
    """Paths as in the prepared table."""
    outputs: np.ndarray
    """float64 ``(n, K)`` in the order of ``acquire.classes``; ``(n, 1)`` for a single output."""
    label: int = 1
    """Label, 0 or 1, of the class that a single output is about."""

    @property
    def is_probability(self) -> bool:
        """True if the outputs are probabilities: of all classes, or of one."""
        inside = bool((self.outputs >= 0).all() and (self.outputs <= 1).all())
        return inside and (self.outputs.shape[1] == 1 or bool(np.abs(self.outputs.sum(axis=1) - 1).max() < 1e-3))


def read_reference(path: Path, classes: Sequence[str], positive_class: str, known: Sequence[str]) -> Reference:
    """Read a file of reference outputs.

    Args:
        path: CSV file with the column ``path`` and a column for each class; of two classes, that of the positive class
            is enough.
        classes: ``acquire.classes``.
        positive_class: ``acquire.positive_class``.
        known: paths of the prepared images.

    Raises:
        ValueError: a column is missing, a path is unknown, a value is not finite, or there are too few rows.
    """
    import pandas as pd

    def refused(why: str) -> ValueError:
        return ValueError(
            f"classifier.reference_outputs: {path.name}: {why}. A CSV file with the column path and a column for each "
            f"of {list(classes)} is needed, with at least {MIN_IMAGES} rows. Correct the file"
        )

    try:
        table = pd.read_csv(path, dtype={"path": str})
    except (ValueError, OSError) as error:
        raise refused(f"it is not readable ({error})") from error
    columns = [name for name in classes if name in table]
    is_single = len(classes) == 2 and columns == [positive_class]
    if "path" not in table or (len(columns) < len(classes) and not is_single):
        raise refused(f"it has the columns {list(table.columns)}")
    if len(table) < MIN_IMAGES:
        raise refused(f"it has {len(table)} rows")
    if unknown := sorted(set(table["path"]) - set(known)):
        raise refused(f"{unknown[0]!r} is no image of the data set, such as {known[0]!r}")
    outputs = table[columns].to_numpy(dtype=np.float64)
    if not np.isfinite(outputs).all():
        raise refused("a value is missing or not finite")
    return Reference(table["path"].tolist(), outputs, classes.index(positive_class))


def difference(logits: Tensor, reference: Reference) -> float:
    """Largest difference between logits and reference outputs, relative to the spread of the reference over images.

    Logits are compared up to a constant for each image, because softmax does not depend on it; probabilities after the
    softmax.

    Args:
        logits: ``(n, K)``, in the order of ``acquire.classes``.
        reference: of the same images.
    """
    found, wanted = logits.double().numpy(), reference.outputs
    if wanted.shape[1] == 1:
        # of one of two logits relative to the other, as a logit or as a probability
        found = found[:, [reference.label]] - found[:, [1 - reference.label]]
        if reference.is_probability:
            found = expit(found)
    elif reference.is_probability:
        found = softmax(found, axis=1)
    else:
        found, wanted = (values - values.mean(axis=1, keepdims=True) for values in (found, wanted))
    if not np.isfinite(found).all():
        return float("inf")
    # of identical rows there is no spread
    spread = max(float(wanted.std(axis=0).max()), 1e-6 * float(np.abs(wanted).max()), 1e-12)
    return float(np.abs(found - wanted).max() / spread)
