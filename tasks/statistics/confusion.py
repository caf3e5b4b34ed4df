"""Confusion matrix, and precision, recall and F1 score from it."""

import numpy as np


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, n_classes: int) -> np.ndarray:
    """Return the confusion matrix, int64 ``(K, K)``: rows are true classes, columns are predicted classes.

    Args:
        labels: true classes, int ``(N,)`` in [0, K).
        predictions: predicted classes, int ``(N,)`` in [0, K).
        n_classes: number of classes, K.
    """
    flat = np.asarray(labels, dtype=np.int64) * n_classes + np.asarray(predictions, dtype=np.int64)
    counts: np.ndarray = np.bincount(flat, minlength=n_classes**2).reshape(n_classes, n_classes)
    return counts


def precision_recall_f1(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Return ``precision``, ``recall`` and ``f1`` of each class, float64 ``(K,)``; 0 if the denominator is 0.

    Args:
        confusion: confusion matrix ``(K, K)``, as from :func:`confusion_matrix`.
    """
    true_positives = np.diag(confusion)
    n_actual, n_predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    return {
        "precision": _ratio(true_positives, n_predicted),
        "recall": _ratio(true_positives, n_actual),
        # harmonic mean of precision and recall: 2 TP / (2 TP + FP + FN)
        "f1": _ratio(2 * true_positives, n_actual + n_predicted),
    }


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    ratio: np.ndarray = np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0)
    return ratio
