"""Inner products and distances of clean and adversarial features."""

import numpy as np


def gram(clean: np.ndarray, adversarial: np.ndarray) -> np.ndarray:
    """Inner products of all features after their common mean is subtracted, clean first, float64 ``(2N, 2N)``.

    They are computed from the midpoint and half the difference of each pair. So a perturbation that is much smaller
    than the features keeps its precision in float32, and equal features have equal rows.

    Args:
        clean: float32 ``(N, D)``.
        adversarial: float32 ``(N, D)``; row i is the other version of row i of ``clean``.

    Raises:
        ValueError: features are not finite, or their shapes differ.
    """
    if clean.ndim != 2 or clean.shape != adversarial.shape or not len(clean):
        raise ValueError(
            f"clean and adversarial features have the shapes {clean.shape} and {adversarial.shape}. "
            "Two (N, D) arrays of the same shape are allowed, with N at least 1"
        )
    if not (np.isfinite(clean).all() and np.isfinite(adversarial).all()):
        raise ValueError("features contain NaN or infinite values. They must be finite. Train the models again")
    n = len(clean)
    parts = np.concatenate([(clean + adversarial) / 2, (adversarial - clean) / 2])
    parts[:n] -= parts[:n].mean(axis=0, dtype=np.float64)
    products = (parts @ parts.T).astype(np.float64)
    middle, half, mixed = products[:n, :n], products[n:, n:], products[:n, n:]
    across = middle - half + mixed - mixed.T
    of_clean, of_adversarial = middle + half - (mixed + mixed.T), middle + half + (mixed + mixed.T)
    return np.block([[of_clean, across], [across.T, of_adversarial]])


def squared_distances(kernel: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances, float64 ``(M, M)``, at least 0, from inner products ``(M, M)``."""
    lengths = kernel.diagonal()
    squared: np.ndarray = np.maximum(lengths[:, None] + lengths - 2 * kernel, 0)
    np.fill_diagonal(squared, 0)
    return squared
