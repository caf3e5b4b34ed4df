"""FGSM and PGD on whole sets of images, at every eps of a grid: as ART's, but for the random starts, at less cost."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.attacks.gradient.balls import Balls
from tasks.params import Pgd

FURTHER_LOOKS = 5
"""That must find an image misclassified, where the model draws at random."""


class NotFinite(ValueError):
    """A logit is NaN or infinite: of ``image``, ``(1, H, W)``, for one."""

    def __init__(self, message: str, image: np.ndarray) -> None:
        super().__init__(message)
        self.image = image


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, radii: list[float], balls: Balls) -> Iterator[Tensor]:
    """Fast gradient sign method, one step of the size of the ball (Goodfellow et al. 2015, arXiv 1412.6572).

    The gradient does not depend on the size of the step, so one serves every radius.

    Args:
        model: takes images, returns logits ``(N, K)``; in evaluation mode, parameters frozen.
        images: float32 ``(N, 1, H, W)`` within the value range, on the model's device.
        labels: true classes, int64 ``(N,)``, on the model's device.
        radii: in units of the value range.
        balls: their norm, and the value range.

    Yields:
        For each radius the adversarial images ``(N, 1, H, W)``.
    """
    direction = balls.steepest(loss_gradient(model, images, labels))
    for radius in radii:
        yield torch.add(images, direction, alpha=radius).clamp_(*balls.value_range)


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    radii: list[float],
    balls: Balls,
    settings: Pgd,
    seed: int,
    rows: np.ndarray,
) -> Iterator[Tensor]:
    """Projected gradient descent on the cross-entropy (Madry et al. 2018, arXiv 1706.06083).

    ``n_steps`` steps of ``relative_step`` times the radius, from ``n_restarts`` random points of the ball (0: once,
    from the image itself). Of several starts, each image keeps the end with the smallest margin.

    Args:
        model: takes images, returns logits ``(N, K)``; in evaluation mode, parameters frozen.
        images: float32 ``(N, 1, H, W)`` within the value range, on the model's device.
        labels: true classes, int64 ``(N,)``, on the model's device.
        radii: in units of the value range.
        balls: their norm, and the value range.
        settings: the numbers of PGD.
        seed: of the random starts.
        rows: a number ``(N,)`` for each image, which its random starts depend on.

    Yields:
        For each radius the adversarial images ``(N, 1, H, W)``.
    """
    for radius in radii:
        ends = [
            _descend(model, images, labels, start, radius, balls, settings)
            for start in starts(images, radius, balls, settings, seed, rows)
        ]
        yield ends[0] if len(ends) == 1 else _of_smallest_margin(model, torch.stack(ends), labels)


def starts(images: Tensor, radius: float, balls: Balls, settings: Pgd, seed: int, rows: np.ndarray) -> Iterator[Tensor]:
    """Where PGD starts: at ``n_restarts`` random points of each ball, or once at the image; new ``(N, 1, H, W)``."""
    if settings.n_restarts == 0:
        yield images.clone()
    for restart in range(settings.n_restarts):
        yield balls.random_starts(images, radius, seed, rows, np.full(len(rows), restart))


def _descend(
    model: nn.Module, images: Tensor, labels: Tensor, start: Tensor, radius: float, balls: Balls, settings: Pgd
) -> Tensor:
    """Where PGD from one start, which is overwritten, ends."""
    moved, size = start, torch.tensor(radius, device=images.device)
    for _ in range(settings.n_steps):
        direction = balls.steepest(loss_gradient(model, moved, labels))
        moved = balls.project(moved.add_(direction, alpha=settings.relative_step * radius), images, size)
    return moved


def _of_smallest_margin(model: nn.Module, ends: Tensor, labels: Tensor) -> Tensor:
    """For each image that of its ends ``(R, N, 1, H, W)`` with the smallest margin."""
    with torch.inference_mode():
        margins = torch.stack([logit_margin(model(end), labels) for end in ends])
    return ends[margins.argmin(dim=0), torch.arange(len(labels), device=labels.device)]


def loss_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Gradient of each image's cross-entropy, ``(N, 1, H, W)``."""
    with torch.enable_grad():
        variable = images.detach().requires_grad_()
        loss = F.cross_entropy(model(variable), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, variable)
    return gradient


def misclassified(model: nn.Module, images: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
    """Which images are misclassified, bool ``(N,)``.

    Where the model draws at random, an attack that looks often enough meets a wrong prediction by luck: there an image
    counts only if each of ``FURTHER_LOOKS`` further predictions is wrong as well.

    Args:
        model: takes images, returns logits ``(N, K)``; it is random where its ``n_draws`` is above 1.
        images: float32 ``(N, 1, H, W)``.
        labels: true classes, int64 ``(N,)``.
        logits: what the model made of the images, ``(N, K)``.

    Raises:
        NotFinite: a logit is not finite.
    """
    broken = (~logits.isfinite().all(dim=1)).nonzero()[:, 0]
    if len(broken):
        message = f"{len(broken)} of {len(logits)} images have logits that are not finite"
        raise NotFinite(message, images[broken[0]].detach().cpu().numpy())
    wrong = logits.argmax(dim=1) != labels
    if getattr(model, "n_draws", 1) > 1:
        rows = wrong.nonzero()[:, 0]
        with torch.inference_mode():
            for _ in range(FURTHER_LOOKS if len(rows) else 0):
                rows = rows[model(images[rows]).argmax(dim=1) != labels[rows]]
                if not len(rows):
                    break
        wrong = torch.zeros_like(wrong).index_fill_(0, rows, True)
    return wrong


def logit_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """True logit minus the largest other, ``(N,)``; negative where the prediction is wrong."""
    true = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return true - others.amax(dim=1)
