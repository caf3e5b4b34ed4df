"""Shortcut baseline: a classifier that uses only the size and the brightness of an image.

A classifier that is not significantly above this baseline may use the same shortcuts instead of anatomy.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

SHORTCUTS = ("width", "height", "mean", "std", "saturated_fraction")
"""Columns of the manifest that the baseline uses."""


def predict_from_shortcuts(table: "pd.DataFrame") -> "pd.DataFrame":
    """Predict the class of each test image by logistic regression on :data:`SHORTCUTS`.

    The regression is trained on the training images, with L2 regularization (C = 1). The inputs are standardized to
    mean 0 and standard deviation 1 over the training images.

    Args:
        table: one row for each image; columns ``path``, ``label``, ``group``, ``split`` and :data:`SHORTCUTS`.

    Returns:
        One row for each test image: ``image`` (row in ``table``), ``path``, ``label``, ``group``, ``prediction`` and
        ``correct``.
    """
    # imported here since they are slow
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    shortcuts, labels = table[list(SHORTCUTS)].to_numpy(dtype=np.float64), table["label"].to_numpy()
    train, test = ((table["split"] == split).to_numpy() for split in ("train", "test"))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    prediction = model.fit(shortcuts[train], labels[train]).predict(shortcuts[test])
    result = table.loc[test, ["path", "label", "group"]].assign(
        prediction=prediction, correct=prediction == labels[test]
    )
    result.insert(0, "image", np.flatnonzero(test))
    return result.reset_index(drop=True)


def score_predictions(predictions: "pd.DataFrame") -> dict[str, float]:
    """Return ``accuracy`` and ``balanced_accuracy``, the mean of the recalls of all classes.

    Args:
        predictions: columns ``label`` and ``correct``.
    """
    recalls = predictions.groupby("label")["correct"].mean()
    return {"accuracy": float(predictions["correct"].mean()), "balanced_accuracy": float(recalls.mean())}
