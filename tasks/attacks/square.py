"""The Square attack: random search that asks for scores alone (Andriushchenko et al. 2020, arXiv 1912.00049)."""

import bisect
import math

import numpy as np
import torch
from torch import Tensor, nn

from tasks.attacks.gradient.descent import logit_margin, misclassified

FIRST_SHARE = 0.8
"""Of the pixels, that the first squares cover; it is halved after each of ``HALVED``."""
HALVED = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Shares of the queries (the paper's, of ten thousand)."""


def square(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    radii: Tensor,
    value_range: tuple[float, float],
    n_queries: int,
    seed: int,
    rows: np.ndarray,
) -> tuple[Tensor, Tensor]:
    """Adversarial images, each in a ball (L-infinity) of its own, and whether they are misclassified.

    It begins with vertical stripes. Each query lifts or lowers the pixels of a random square to the border of the ball;
    what makes the margin smaller is kept. ART's takes three forward passes a query and one square for all images.

    Args:
        model: takes images, returns logits ``(N, K)``; in evaluation mode.
        images: float32 ``(N, 1, H, W)`` within the value range, on the model's device.
        labels: true classes, int64 ``(N,)``, on the model's device.
        radii: of the balls in units of the value range, ``(N, 1, 1, 1)``.
        value_range: lowest and highest value of a pixel.
        n_queries: forward passes of each image, at most.
        seed: of the squares.
        rows: a number for each image, int ``(N,)``, which its squares depend on.

    Returns:
        ``(N, 1, H, W)``: the point of the smallest margin that was found; bool ``(N,)``.
    """
    height, width = images.shape[-2:]
    device = images.device
    draws = [np.random.default_rng([seed, int(row)]) for row in rows]
    adversarial, is_broken = images.clone(), torch.zeros_like(labels, dtype=torch.bool)
    active = torch.arange(len(images), device=device)
    stripes = torch.from_numpy(np.stack([draw.choice([-1, 1], size=(1, 1, width)) for draw in draws])).to(images)
    moved = (images + radii * stripes).clamp_(*value_range)
    best, smallest = images, torch.full((len(images),), torch.inf, device=device)
    down, right = (torch.arange(size, device=device) for size in (height, width))

    for query in range(n_queries):
        with torch.inference_mode():
            logits = model(moved)
            margins, found = logit_margin(logits, labels), misclassified(model, moved, labels, logits)
        # a random model's lucky prediction is no reason to stay
        margins = torch.where(found, margins, margins.clamp_min(0))
        better = margins < smallest
        best = torch.where(better[:, None, None, None], moved, best)
        smallest = torch.where(better, margins, smallest)
        adversarial[active] = best
        wrong = smallest < 0
        is_broken[active] = wrong
        if wrong.all():
            break
        if wrong.any():
            stay = (~wrong).nonzero()[:, 0]
            active, images, labels, radii, best, smallest = (
                each[stay] for each in (active, images, labels, radii, best, smallest)
            )
            draws = [draws[index] for index in stay.tolist()]
        side = _side((query + 1) / n_queries, height, width)
        drawn = np.array(
            [[*draw.integers([height - side + 1, width - side + 1]), draw.choice([-1, 1])] for draw in draws]
        )
        top, left, sign = (torch.from_numpy(part).to(device)[:, None] for part in drawn.T)
        in_rows, in_columns = (
            (places >= start) & (places < start + side) for places, start in ((down, top), (right, left))
        )
        inside = in_rows[:, None, :, None] & in_columns[:, None, None, :]
        lifted = (images + radii * sign[:, :, None, None]).clamp_(*value_range)
        moved = torch.where(inside, lifted, best)
    return adversarial, is_broken


def _side(progress: float, height: int, width: int) -> int:
    """Of the squares, in pixels, once this share of the queries is spent."""
    share = FIRST_SHARE / 2 ** bisect.bisect_left(HALVED, progress)
    return min(max(round(math.sqrt(share * height * width)), 1), height - 1, width - 1)
