"""Two-dimensional embeddings of clean and adversarial features by PCA and t-SNE, for figures.

The overlap of the features is measured in the original space, by :mod:`tasks.analysis.feature_overlap`.
"""

import numpy as np
import pandas as pd
import scipy.linalg
from sklearn.manifold import TSNE

from tasks.analysis.inner_products import gram

N_COMPONENTS = 50
"""Principal components that t-SNE gets, at most."""

PERPLEXITY = 30.0
"""Perplexity of t-SNE; smaller for few points."""

MAX_ITER = 500
"""Iterations of t-SNE, 250 of them with early exaggeration. 300 are too few to converge; 1000 gain little."""

ANGLE = 0.8
"""Angle of the Barnes-Hut approximation, in [0.2, 0.8].

For 992 points, 50 components and 500 iterations, one thread needs 2.8 s instead of 3.8 s at the default of 0.5. The
trustworthiness is 0.938 with both.
"""


def embedding_table(
    clean: np.ndarray, adversarial: np.ndarray, rows: np.ndarray, labels: np.ndarray, seed: int
) -> pd.DataFrame:
    """Coordinates of every image, clean and adversarial: method (``pca``, ``tsne``), image, image_kind, label, x, y.

    Args:
        clean: features of the clean images, float32 ``(N, D)``.
        adversarial: features of their adversarial versions, in the same order, float32 ``(N, D)``.
        rows: rows of the prepared table, ``(N,)``.
        labels: true classes, int ``(N,)``.
        seed: of t-SNE.

    Raises:
        ValueError: features are not finite, their shapes differ, or there is only one image.
    """
    components = pca(clean, adversarial, N_COMPONENTS)
    parts = [
        pd.DataFrame(
            {
                "method": method,
                "image": np.tile(rows, 2),
                "image_kind": np.repeat(["clean", "adversarial"], len(rows)),
                "label": np.tile(labels, 2),
                "x": coordinates[:, 0].astype(np.float32),
                "y": coordinates[:, 1].astype(np.float32),
            }
        )
        for method, coordinates in {"pca": components, "tsne": tsne(components, seed)}.items()
    ]
    return pd.concat(parts, ignore_index=True)


def pca(clean: np.ndarray, adversarial: np.ndarray, n_components: int) -> np.ndarray:
    """Principal components of clean and adversarial features together.

    The sign of a component makes its coordinate with the largest magnitude positive.

    Args:
        clean: float32 ``(N, D)``.
        adversarial: float32 ``(N, D)``, in the same order.
        n_components: C; components beyond 2N - 1 are 0.

    Returns:
        Coordinates in units of the features, clean images first, float64 ``(2N, C)``.

    Raises:
        ValueError: features are not finite, or their shapes differ.
    """
    kernel = gram(clean, adversarial)
    n_points = len(kernel)
    # 2N centred points span at most 2N - 1 dimensions
    n_found = min(n_components, n_points - 1)
    variances, axes = scipy.linalg.eigh(kernel, subset_by_index=(n_points - n_found, n_points - 1))
    coordinates = np.zeros((n_points, n_components))
    coordinates[:, :n_found] = axes[:, ::-1] * np.sqrt(np.maximum(variances[::-1], 0))
    farthest = np.abs(coordinates).argmax(axis=0)
    coordinates *= np.where(coordinates[farthest, np.arange(n_components)] < 0, -1, 1)
    return coordinates


def tsne(components: np.ndarray, seed: int) -> np.ndarray:
    """t-SNE (van der Maaten and Hinton 2008, JMLR 9) of clean and adversarial features together.

    It is initialised with the first two principal components (Kobak and Berens 2019, Nature Communications 10).
    Distances between clusters and sizes of clusters have little meaning.

    Args:
        components: principal components, of :func:`pca`, float64 ``(2N, C)``.
        seed: of t-SNE.

    Returns:
        Coordinates without a unit, clean images first, float64 ``(2N, 2)``.

    Raises:
        ValueError: there is only one image.
    """
    if len(components) < 4:
        raise ValueError(
            f"too few images for t-SNE: {len(components) // 2}. At least 2 are needed. Raise attack.max_images"
        )
    start = components[:, :2] / (components[:, 0].std() or 1.0) * 1e-4
    # the authors advise at least three times as many other points as the perplexity
    perplexity = min(PERPLEXITY, (len(components) - 1) / 3)
    method = TSNE(init=start, perplexity=perplexity, angle=ANGLE, max_iter=MAX_ITER, random_state=seed)
    coordinates: np.ndarray = method.fit_transform(components.astype(np.float32)).astype(np.float64)
    return coordinates
