"""Expected accuracy of random targets, as fractions of the predictions of an image that are correct.

One prediction of a random target may be correct by chance. So two sets of samples score an image: the strongest of
several attacks is selected on one set, and scored on the other. With one set, the smallest of several fractions would
be too small.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tasks.records.operating_points import OperatingPoint

N_FRESH_SAMPLES = 100
"""Predictions of a random target that score an image. No attack has used their draws."""

SELECTION, FRESH, FRESH_8BIT = "selection_correct", "fresh_correct", "fresh_correct_8bit"
"""Columns of random targets alone: fractions of correct predictions. In the records, one value for each operating
point; in the results of searches, one for each eps of the grid, NaN where no image was scored."""
EXPECTED = (SELECTION, FRESH, FRESH_8BIT)


def fraction_correct(samples: np.ndarray, labels: np.ndarray, biases: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the fraction of the predictions of each image that are correct, float64 ``(N,)``.

    Args:
        samples: logits of single predictions, ``(S, N, K)``.
        labels: true classes, int ``(N,)``.
        biases: added to the logits, ``(K,)``.
    """
    fractions: np.ndarray = ((samples + np.asarray(biases)).argmax(axis=2) == labels).mean(axis=0)
    return fractions


def expected_columns(
    selection: np.ndarray,
    fresh: np.ndarray,
    fresh_8bit: np.ndarray,
    labels: np.ndarray,
    points: Sequence[OperatingPoint],
) -> dict[str, np.ndarray]:
    """Return the columns of random targets in the records, float64 ``(N, P)`` each for P operating points.

    Args:
        selection: logits of the selection samples, ``(T, N, K)``.
        fresh: logits of the fresh samples, ``(S, N, K)``.
        fresh_8bit: logits of fresh samples of the images rounded to 8 bits, ``(U, N, K)``.
        labels: true classes, int ``(N,)``.
        points: operating points.
    """
    return {
        name: np.stack([fraction_correct(samples, labels, point.biases) for point in points], axis=1)
        for name, samples in zip(EXPECTED, (selection, fresh, fresh_8bit), strict=True)
    }


def append_expected(table: pa.Table, columns: dict[str, np.ndarray]) -> pa.Table:
    """Return a table with columns of fractions ``(N, M)``, as lists of M values; M is the same in all tables."""
    for name, values in columns.items():
        lists = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), pa.float64()), values.shape[1])
        table = table.append_column(name, lists)
    return table
