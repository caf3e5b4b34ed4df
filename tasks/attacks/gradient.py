"""FGSM and PGD on whole sets of images, at every eps of a grid: as ART's, but for the random starts, at less cost."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.attacks.ball import project, random_start, steepest
from tasks.params import Pgd


def fgsm(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    radii: list[float],
    norm: str,
    value_range: tuple[float, float],
) -> Iterator[Tensor]:
    """Fast gradient sign method, one step of the size of the ball (Goodfellow et al. 2015, arXiv 1412.6572).

    The gradient does not depend on the size of the step, so one serves every radius.

    Args:
        model: takes images, returns logits ``(N, K)``; in evaluation mode, parameters frozen.
        images: float32 ``(N, 1, H, W)`` within ``value_range``, on the model's device.
        labels: true classes, int64 ``(N,)``, on the model's device.
        radii: in units of the value range.
        norm: ``linf`` or ``l2``.
        value_range: lowest and highest value of a pixel.

    Yields:
        For each radius the adversarial images ``(N, 1, H, W)``.
    """
    direction = steepest(loss_gradient(model, images, labels), norm)
    for radius in radii:
        yield torch.add(images, direction, alpha=radius).clamp_(*value_range)


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    radii: list[float],
    norm: str,
    value_range: tuple[float, float],
    settings: Pgd,
    seed: int,
    rows: np.ndarray,
) -> Iterator[Tensor]:
    """Projected gradient descent on the cross-entropy (Madry et al. 2018, arXiv 1706.06083).

    ``n_steps`` steps of ``relative_step`` times the radius, from ``n_restarts`` random points of the ball (0: once,
    from the image itself). Of several starts, each image keeps the end with the smallest margin.

    Args:
        model: takes images, returns logits ``(N, K)``; in evaluation mode, parameters frozen.
        images: float32 ``(N, 1, H, W)`` within ``value_range``, on the model's device.
        labels: true classes, int64 ``(N,)``, on the model's device.
        radii: in units of the value range.
        norm: ``linf`` or ``l2``.
        value_range: lowest and highest value of a pixel.
        settings: the numbers of PGD.
        seed: of the random starts.
        rows: a number ``(N,)`` for each image, which its random starts depend on.

    Yields:
        For each radius the adversarial images ``(N, 1, H, W)``.
    """
    for radius in radii:
        size = torch.tensor(radius, device=images.device)
        strongest, smallest = images, None
        for restart in range(max(settings.n_restarts, 1)):
            adversarial = images.clone()
            if settings.n_restarts:
                starts = [random_start(seed, int(row), restart, images.shape[1:], norm) for row in rows]
                adversarial += size * torch.from_numpy(np.stack(starts)).to(images.device)
                adversarial.clamp_(*value_range)
            for _ in range(settings.n_steps):
                direction = steepest(loss_gradient(model, adversarial, labels), norm)
                adversarial.add_(direction, alpha=settings.relative_step * radius)
                adversarial = project(adversarial, images, size, norm, value_range)
            if settings.n_restarts <= 1:
                strongest = adversarial
                continue
            with torch.no_grad():
                margins = logit_margin(model(adversarial), labels)
            if smallest is None:
                strongest, smallest = adversarial, margins
            else:
                better = margins < smallest
                strongest[better], smallest[better] = adversarial[better], margins[better]
        yield strongest


def loss_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Gradient of each image's cross-entropy, ``(N, 1, H, W)``."""
    with torch.enable_grad():
        variable = images.detach().requires_grad_()
        loss = F.cross_entropy(model(variable), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, variable)
    return gradient


def logit_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """True logit minus the largest other, ``(N,)``; negative where the prediction is wrong."""
    true = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return true - others.amax(dim=1)
