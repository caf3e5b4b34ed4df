"""HopSkipJump, which asks for labels alone (Chen et al. 2020, arXiv 1904.02144), by ART."""

import math

import numpy as np
from torch import nn

from tasks.attacks.estimators import ORDERS, estimator_of, numpy_seeded

FIRST_EVALUATIONS = 24
"""Queries of the first estimate of a direction; later ones take more, by the root of their number (the paper's 100)."""


def hop_skip_jump(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    begin: np.ndarray,
    n_classes: int,
    norm: str,
    value_range: tuple[float, float],
    n_queries: int,
    seed: int,
) -> np.ndarray:
    """Misclassified images as near to the originals as so many queries bring them, float32 ``(N, 1, H, W)``.

    Args:
        model: takes images, returns logits ``(N, K)``; in evaluation mode.
        images: float32 ``(N, 1, H, W)`` within the value range.
        labels: true classes, int ``(N,)``.
        begin: images of which the model says something else than the label, float32 ``(N, 1, H, W)``.
        n_classes: K.
        norm: that is to be small, ``linf`` or ``l2``.
        value_range: lowest and highest value of a pixel.
        n_queries: labels that are asked for, about, of each image.
        seed: of numpy's global generator, from which ART draws.
    """
    from art.attacks.evasion import HopSkipJump

    estimator = estimator_of(model, images.shape[1:], n_classes, value_range)
    # each iteration asks for its estimate, and about 25 times for the boundary and the size of the step
    n_iterations, spent = 0, 0.0
    while spent + (cost := FIRST_EVALUATIONS * math.sqrt(n_iterations + 1) + 25) <= n_queries:
        n_iterations, spent = n_iterations + 1, spent + cost
    attack = HopSkipJump(
        estimator,
        norm=ORDERS[norm],
        max_iter=max(n_iterations, 1),
        init_eval=FIRST_EVALUATIONS,
        batch_size=64,
        verbose=False,
    )
    with numpy_seeded(seed):
        found: np.ndarray = attack.generate(images, np.eye(n_classes, dtype=np.float32)[labels], x_adv_init=begin)
    return found.astype(np.float32)
