"""Metrics of classification, from counts."""

import numpy as np


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, n_classes: int) -> np.ndarray:
    """Counts, int64 ``(K, K)``: rows are the true classes, columns the predicted ones.

    Args:
        labels: true classes, int ``(N,)`` in [0, K).
        predictions: int ``(N,)`` in [0, K).
        n_classes: K.
    """
    flat = np.asarray(labels, dtype=np.int64) * n_classes + np.asarray(predictions, dtype=np.int64)
    counts: np.ndarray = np.bincount(flat, minlength=n_classes**2).reshape(n_classes, n_classes)
    return counts


def precision_recall_f1(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """``precision``, ``recall`` and ``f1`` of each class, float64 ``(K,)``; 0 where nothing is there to divide by.

    Args:
        confusion: ``(K, K)``, rows true, columns predicted.
    """
    hits = np.diag(confusion)
    actual, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    return {
        "precision": _share(hits, predicted),
        "recall": _share(hits, actual),
        # the harmonic mean of the two, 2 TP / (2 TP + FP + FN)
        "f1": _share(2 * hits, actual + predicted),
    }


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    shares: np.ndarray = np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
    return shares
