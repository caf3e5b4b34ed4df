"""Oracles: sources of the labels of queried images in the simulation."""

import numpy as np

from tasks.params import GroundTruth, NoisyOracle, Oracle, PseudoLabelOracle


def can_label(oracle: Oracle, probabilities: np.ndarray) -> np.ndarray:
    """Return True for the images that an oracle can label, bool ``(N,)``.

    Args:
        oracle: of ``params.yaml``.
        probabilities: predicted by the classifier, ``(N, K)``.
    """
    if isinstance(oracle, PseudoLabelOracle):
        is_confident: np.ndarray = probabilities.max(axis=1) >= oracle.confidence_threshold
        return is_confident
    return np.ones(len(probabilities), dtype=bool)


def assign_labels(
    oracle: Oracle, rows: np.ndarray, labels: np.ndarray, predicted: np.ndarray, classes: tuple[str, ...], seed: int
) -> np.ndarray:
    """Return the labels that an oracle assigns to images, int64 ``(n,)``.

    Args:
        oracle: of ``params.yaml``.
        rows: of the images in the prepared table; the error of an image depends on its row and the seed alone.
        labels: true labels, int64 ``(n,)``.
        predicted: labels that the classifier predicts, int64 ``(n,)``.
        classes: names of all classes; the position of a name is its label.
        seed: of the errors.
    """
    match oracle:
        case GroundTruth():
            return labels
        case PseudoLabelOracle():
            return predicted
        case NoisyOracle():
            error_rates = [oracle.error_rate[name] for name in classes]
            assigned = [
                _noisy_label(label, error_rates[label], len(classes), [seed, row])
                for row, label in zip(rows.tolist(), labels.tolist(), strict=True)
            ]
            return np.array(assigned, dtype=np.int64)


def _noisy_label(label: int, error_rate: float, n_classes: int, seed: list[int]) -> int:
    rng = np.random.default_rng(seed)
    if rng.random() >= error_rate:
        return label
    return (label + int(rng.integers(1, n_classes))) % n_classes
