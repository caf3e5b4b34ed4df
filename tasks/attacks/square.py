"""The Square attack: a random search on scores (Andriushchenko et al. 2020, arXiv 1912.00049)."""

import bisect
import math
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from tasks.attacks.batch import AttackBatch, MinimumEps
from tasks.attacks.gradient.losses import logit_margin, misclassified
from tasks.attacks.gradient.seeding import generator
from tasks.attacks.sweep import EpsBracket

INITIAL_PIXEL_FRACTION = 0.8
"""Fraction of the pixels that the first squares cover; it is halved after each fraction of ``HALVINGS``."""
HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Fractions of the queries (the paper's schedule for 10,000 queries)."""


def run_square(batch: AttackBatch, begin: np.ndarray, n_queries: int, rows: np.ndarray | None = None) -> MinimumEps:
    """Search the grid of radii with the Square attack, from the radius ``begin`` up and down.

    Args:
        batch: model and images; L-infinity balls.
        begin: index of a radius for each image, ``(N,)``; -1 for images that are misclassified unchanged.
        n_queries: queries of each image at each radius that is tried.
        rows: row numbers of the images to attack, ``(n,)``; None for all. The others are returned as surviving.
    """
    assert batch.ball.norm == "linf"
    rows = np.arange(len(batch.images)) if rows is None else rows
    bracket = EpsBracket(len(batch.images), batch.radii)
    bracket.breaks[begin < 0] = -1
    adversarial = batch.images.copy()
    rows = rows[~bracket.update(rows, begin[rows] < 0)]
    bracket.trial[rows] = begin[rows].clip(0, len(batch.radii) - 1)
    while rows.size:
        found_images, broken = batch.run(rows, bracket.radii_of(rows), partial(square_attempt, batch, n_queries))
        adversarial[rows[broken]] = found_images[broken]
        rows = rows[~bracket.update(rows, broken)]
    return MinimumEps(bracket.breaks, np.full(len(begin), "square", dtype=object), adversarial)


def square_attempt(
    batch: AttackBatch, n_queries: int, rows: np.ndarray, images: Tensor, labels: Tensor, radii: Tensor
) -> tuple[Tensor, Tensor]:
    """Attempt by :func:`square` on some images of a batch."""
    ids = batch.image_ids[rows]
    return square(batch.model, images, labels, radii, batch.ball.value_range, n_queries, batch.seed, ids)


def square(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    radii: Tensor,
    value_range: tuple[float, float],
    n_queries: int,
    seed: int,
    image_ids: np.ndarray,
) -> tuple[Tensor, Tensor]:
    """Attack images, each in an L-infinity ball of its own radius.

    The first query adds vertical stripes. Each further query sets the pixels of a random square to the border of the
    ball, each channel in a direction of its own; a change that makes the margin smaller is kept. Each image has squares
    of its own and takes one forward pass a query (ART's implementation: three passes, one square for all images).

    Args:
        model: takes images, returns logits ``(N, K)``; in evaluation mode.
        images: float32 ``(N, C, H, W)`` within the value range, on the model's device.
        labels: true classes, int64 ``(N,)``, on the model's device.
        radii: of the balls in units of the value range, ``(N, 1, 1, 1)``.
        value_range: lowest and highest value of a pixel.
        n_queries: maximum number of forward passes of each image.
        seed: of the squares.
        image_ids: a number for each image, int ``(N,)``; with the seed it determines the squares.

    Returns:
        The images with the smallest margin found, ``(N, C, H, W)``; whether each is misclassified, bool ``(N,)``.
    """
    n_channels, height, width = images.shape[1:]
    device = images.device
    draws = [generator(seed, "square", int(image)) for image in image_ids]
    adversarial, broken = images.clone(), torch.zeros_like(labels, dtype=torch.bool)
    active = torch.arange(len(images), device=device)
    stripes = np.stack([draw.choice([-1, 1], size=(n_channels, 1, width)) for draw in draws])
    candidate = (images + radii * torch.from_numpy(stripes).to(images)).clamp_(*value_range)
    best, smallest = images, torch.full((len(images),), torch.inf, device=device)
    down, right = (torch.arange(size, device=device) for size in (height, width))

    for query in range(n_queries):
        with torch.inference_mode():
            logits = model(candidate)
            margins, found = logit_margin(logits, labels), misclassified(model, candidate, labels, logits)
        # one wrong prediction of a random model is not a success: its margin must not count as negative
        margins = torch.where(found, margins, margins.clamp_min(0))
        better = margins < smallest
        best = torch.where(better[:, None, None, None], candidate, best)
        smallest = torch.where(better, margins, smallest)
        adversarial[active] = best
        wrong = smallest < 0
        broken[active] = wrong
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
            [
                [
                    *draw.integers([height - side + 1, width - side + 1]),
                    *(draw.choice([-1, 1]) for _ in range(n_channels)),
                ]
                for draw in draws
            ]
        )
        top, left = (torch.from_numpy(part).to(device)[:, None] for part in drawn.T[:2])
        signs = torch.from_numpy(drawn[:, 2:]).to(device)
        in_rows, in_columns = (
            (places >= start) & (places < start + side) for places, start in ((down, top), (right, left))
        )
        inside = in_rows[:, None, :, None] & in_columns[:, None, None, :]
        lifted = (images + radii * signs[:, :, None, None]).clamp_(*value_range)
        candidate = torch.where(inside, lifted, best)
    return adversarial, broken


def _side(progress: float, height: int, width: int) -> int:
    """Side of the squares in pixels after this fraction of the queries."""
    fraction = INITIAL_PIXEL_FRACTION / 2 ** bisect.bisect_left(HALVINGS, progress)
    return min(max(round(math.sqrt(fraction * height * width)), 1), height - 1, width - 1)
