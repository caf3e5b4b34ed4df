"""Two-dimensional views of clean and adversarial features: PCA and t-SNE.

They are for the eye. What they seem to show is decided in :mod:`tasks.analysis.feature_overlap`, in the original space.
"""

import numpy as np
import scipy.linalg
from sklearn.manifold import TSNE

from tasks.analysis.feature_overlap import gram

N_COMPONENTS = 50
"""Principal components that t-SNE starts from, at most."""

PERPLEXITY = 30.0
"""Neighbours that t-SNE gives a point, about; fewer where there are few points."""

MAX_ITER = 500
"""Steps of t-SNE: 250 of early exaggeration, and as many after it; 300 stop far from done, 1000 gain little."""

ANGLE = 0.8
"""How coarsely far points are summed up (Barnes and Hut), in [0.2, 0.8].

992 points of 50 components, 500 steps, one thread: 2.8 s, against 3.8 s at the usual 0.5; as many neighbours kept
(trustworthiness 0.938 both).
"""


def pca(clean: np.ndarray, adversarial: np.ndarray, n_components: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of clean and adversarial features together.

    The coordinate that lies farthest from 0 is made positive in every component, so equal data give equal pictures.

    Args:
        clean: float32 ``(N, D)``.
        adversarial: float32 ``(N, D)``, in the same order.
        n_components: C; components that don't exist are 0.

    Returns:
        Coordinates, clean ones first, float64 ``(2N, C)``, in units of the features; and the share of the variance
        that each component explains, float64 ``(C,)``, NaN where all features are equal.

    Raises:
        ValueError: features are not finite, or their shapes differ.
    """
    kernel = gram(clean, adversarial)
    n_points = len(kernel)
    # of 2N centred points, so at most 2N - 1 components have a variance
    n_found = min(n_components, n_points - 1)
    variances, axes = scipy.linalg.eigh(kernel, subset_by_index=(n_points - n_found, n_points - 1))
    variances = np.maximum(variances[::-1], 0)
    coordinates = np.zeros((n_points, n_components))
    coordinates[:, :n_found] = axes[:, ::-1] * np.sqrt(variances)
    farthest = np.abs(coordinates).argmax(axis=0)
    coordinates *= np.where(coordinates[farthest, np.arange(n_components)] < 0, -1, 1)
    shares = np.zeros(n_components)
    total = kernel.trace()
    shares[:n_found] = variances / total if total > 0 else np.nan
    return coordinates, shares


def tsne(components: np.ndarray, seed: int) -> np.ndarray:
    """t-SNE (van der Maaten and Hinton 2008, JMLR 9) of clean and adversarial features together.

    From the first two principal components as a start (Kobak and Berens 2019, Nature Communications 10). Distances
    between clusters, and their sizes, mean little in such a picture.

    Args:
        components: principal ones, of :func:`pca`, float64 ``(2N, C)``; 50 of them serve.
        seed: of the method's random numbers.

    Returns:
        Coordinates without a unit, clean ones first, float64 ``(2N, 2)``.

    Raises:
        ValueError: there is one image only.
    """
    if len(components) < 4:
        raise ValueError(f"t-SNE needs at least 2 images, not {len(components) // 2}")
    start = components[:, :2] / (components[:, 0].std() or 1.0) * 1e-4
    # as the method's authors advise, a point has at least 3 times as many others as neighbours
    perplexity = min(PERPLEXITY, (len(components) - 1) / 3)
    method = TSNE(init=start, perplexity=perplexity, angle=ANGLE, max_iter=MAX_ITER, random_state=seed)
    coordinates: np.ndarray = method.fit_transform(components.astype(np.float32)).astype(np.float64)
    return coordinates
