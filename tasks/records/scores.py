"""Entropy and margin of predictions, from their logits."""

import numpy as np


def entropy(logits: np.ndarray) -> np.ndarray:
    """Return the Shannon entropy of the softmax in nats, float64 ``(N,)`` in [0, ln K], from logits ``(N, K)``."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    nats: np.ndarray = -(np.exp(log_probabilities) * log_probabilities).sum(axis=1)
    # + 0.0 turns the -0.0 of a one-hot softmax into 0.0
    return nats + 0.0


def margin(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the logit of the true class minus the largest other logit, float64 ``(N,)``; negative if misclassified.

    Args:
        logits: ``(N, K)``, K at least 2.
        labels: true classes, int ``(N,)``.
    """
    rows = np.arange(len(labels))
    others = logits.astype(np.float64)
    true = others[rows, labels]
    others[rows, labels] = -np.inf
    difference: np.ndarray = true - others.max(axis=1)
    return difference
