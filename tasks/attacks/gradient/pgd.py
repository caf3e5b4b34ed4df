"""Projected gradient descent (Madry et al. 2018, arXiv 1706.06083)."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from tasks.attacks.gradient.losses import logit_margin, loss_gradient
from tasks.attacks.gradient.norm_ball import NormBall
from tasks.params import Pgd


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    radii: list[float],
    ball: NormBall,
    settings: Pgd,
    seed: int,
    image_ids: np.ndarray,
) -> Iterator[Tensor]:
    """PGD on the cross-entropy.

    ``n_steps`` steps of ``relative_step_size`` times the radius, from ``n_random_starts`` random points of the
    ball (0: once, from the image itself). Of several starts, each image keeps the result with the smallest margin.

    Args:
        model: takes images, returns logits ``(N, K)``; in evaluation mode, parameters frozen.
        images: float32 ``(N, C, H, W)`` within the value range, on the model's device.
        labels: true classes, int64 ``(N,)``, on the model's device.
        radii: in units of the value range.
        ball: norm and value range.
        settings: number and size of the steps, number of starts.
        seed: of the random starts.
        image_ids: a number for each image, int ``(N,)``; with the seed it determines the random starts.

    Yields:
        For each radius the adversarial images ``(N, C, H, W)``.
    """
    for radius in radii:
        results = [
            _descend(model, images, labels, start, radius, ball, settings)
            for start in _starts(images, radius, ball, settings, seed, image_ids)
        ]
        yield results[0] if len(results) == 1 else _smallest_margin(model, torch.stack(results), labels)


def _starts(
    images: Tensor, radius: float, ball: NormBall, settings: Pgd, seed: int, image_ids: np.ndarray
) -> Iterator[Tensor]:
    """The starts of PGD: ``n_random_starts`` random points of each ball, or the image itself; new ``(N, C, H, W)``."""
    if settings.n_random_starts == 0:
        yield images.clone()
    for restart in range(settings.n_random_starts):
        yield ball.random_starts(images, radius, seed, "pgd", image_ids, np.full(len(image_ids), restart))


def _descend(
    model: nn.Module, images: Tensor, labels: Tensor, start: Tensor, radius: float, ball: NormBall, settings: Pgd
) -> Tensor:
    """Result of PGD from one start, which is overwritten."""
    perturbed, size = start, torch.tensor(radius, device=images.device)
    for _ in range(settings.n_steps):
        direction = ball.steepest(loss_gradient(model, perturbed, labels))
        perturbed = ball.project(perturbed.add_(direction, alpha=settings.relative_step_size * radius), images, size)
    return perturbed


def _smallest_margin(model: nn.Module, results: Tensor, labels: Tensor) -> Tensor:
    """For each image the one of its results ``(R, N, C, H, W)`` with the smallest margin."""
    with torch.inference_mode():
        margins = torch.stack([logit_margin(model(result), labels) for result in results])
    return results[margins.argmin(dim=0), torch.arange(len(labels), device=labels.device)]
