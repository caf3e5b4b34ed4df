"""PGD on 8-bit values: an 8-bit file can hold every image of the attack without rounding."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tasks.attacks.gradient.losses import logit_margin, loss_gradient
from tasks.attacks.gradient.norm_ball import NormBall
from tasks.params import Pgd

N_LEVELS = 255
"""Steps between the 256 grey levels of an 8-bit file, whose values are in [0, 1]."""


def pgd_8_bit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: Sequence[float],
    settings: Pgd,
    seed: int,
    image_ids: np.ndarray,
) -> Iterator[Tensor]:
    """PGD on the cross-entropy in steps of whole grey levels, in the L-infinity ball of floor(eps) grey levels.

    Each step changes every pixel by the nearest whole number of levels to ``relative_step_size`` times the radius, at
    least by one. The random starts are rounded to levels. At eps below 1 the ball holds the unchanged image alone. Of
    several starts, each image keeps the result with the smallest margin.

    Args:
        model: takes images, returns logits ``(N, K)``; in evaluation mode, parameters frozen.
        images: float32 ``(N, C, H, W)`` in [0, 1], with 8 bits, on the model's device.
        labels: true classes, int64 ``(N,)``, on the model's device.
        eps: in 1/255.
        settings: number and size of the steps, number of starts; with 0 random starts from the images themselves.
        seed: of the random starts.
        image_ids: a number for each image, int ``(N,)``; with the seed it determines the random starts.

    Yields:
        For each eps the adversarial images ``(N, C, H, W)``, equal to their own rounding to 8 bits.
    """
    ball = NormBall("linf", (0.0, 1.0))
    for value in eps:
        radius = math.floor(value)
        step = max(round(settings.relative_step_size * radius), 1)
        best, smallest = images, torch.full((len(images),), torch.inf, device=images.device)
        for restart in range(max(settings.n_random_starts, 1) if radius else 0):
            perturbed = images
            if settings.n_random_starts:
                restarts = np.full(len(image_ids), restart)
                starts = ball.random_starts(images, radius / N_LEVELS, seed, "pgd_8_bit", image_ids, restarts)
                perturbed = _rounded(starts)
            size = torch.tensor(radius / N_LEVELS, device=images.device)
            for _ in range(settings.n_steps):
                direction = ball.steepest(loss_gradient(model, perturbed, labels))
                moved = perturbed + direction * (step / N_LEVELS)
                perturbed = _rounded(ball.project(moved, images, size))
            with torch.inference_mode():
                margins = logit_margin(model(perturbed), labels)
            better = margins < smallest
            best = torch.where(better[:, None, None, None], perturbed, best)
            smallest = torch.where(better, margins, smallest)
        yield best


def _rounded(images: Tensor) -> Tensor:
    """Images at the nearest grey levels."""
    return (images * N_LEVELS).round() / N_LEVELS
