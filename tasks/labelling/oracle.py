"""Oracles: who labels what is queried."""

import numpy as np

from tasks.params import NoisyOracle, Oracle, PseudoLabels, Truth


def can_answer(oracle: Oracle, probabilities: np.ndarray) -> np.ndarray:
    """Which images an oracle can label, bool ``(N,)``, by what the model predicts, ``(N, K)``."""
    if isinstance(oracle, PseudoLabels):
        is_sure: np.ndarray = probabilities.max(axis=1) >= oracle.confidence
        return is_sure
    return np.ones(len(probabilities), dtype=bool)


def answer(
    oracle: Oracle, rows: np.ndarray, labels: np.ndarray, predicted: np.ndarray, classes: tuple[str, ...], seed: int
) -> np.ndarray:
    """What an oracle says of images, int64 ``(n,)``.

    Args:
        oracle: of ``params.yaml``.
        rows: numbers of the images in the prepared table; what is said of an image depends on it and the seed alone.
        labels: true classes, int64 ``(n,)``.
        predicted: classes that the model sees, int64 ``(n,)``.
        classes: names of all classes; the position of a name is its label.
        seed: of errors.
    """
    match oracle:
        case Truth():
            return labels
        case PseudoLabels():
            return predicted
        case NoisyOracle():
            rates = np.array([oracle.error_rate[name] for name in classes])
            told = [
                _told(int(label), float(rates[label]), len(classes), [seed, int(row)])
                for row, label in zip(rows, labels, strict=True)
            ]
            return np.array(told, dtype=np.int64)


def _told(label: int, error_rate: float, n_classes: int, seed: list[int]) -> int:
    rng = np.random.default_rng(seed)
    if rng.random() >= error_rate:
        return label
    return (label + int(rng.integers(1, n_classes))) % n_classes
