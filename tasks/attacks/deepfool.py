"""DeepFool: about the smallest change that is misclassified (Moosavi-Dezfooli et al. 2016, arXiv 1511.04599)."""

import torch
from torch import Tensor, nn

from tasks.attacks.gradient.balls import Balls
from tasks.attacks.gradient.descent import logit_margin, misclassified

OVERSHOOT = 0.02
"""By which a step goes beyond the boundary of the linear model."""
N_HALVINGS = 8
"""Of the way from the image to what broke it, in search of the boundary between."""


def deepfool(model: nn.Module, images: Tensor, labels: Tensor, balls: Balls, n_steps: int) -> tuple[Tensor, Tensor]:
    """Misclassified images near the originals, in any ball, and whether one was found.

    Each step goes to where the linear model of the margin to the runner-up class is zero, in the direction that is
    steepest for the norm (the paper's algorithm 2 looks at all classes; with two there is one). From what is
    misclassified then, the way back to the image is halved.

    Args:
        model: takes images, returns logits ``(N, K)``; in evaluation mode, parameters frozen.
        images: float32 ``(N, 1, H, W)`` within the value range, on the model's device.
        labels: true classes, int64 ``(N,)``, on the model's device.
        balls: the norm that is to be small, and the value range.
        n_steps: gradients that are taken, at most.

    Returns:
        ``(N, 1, H, W)``, an image itself where nothing was found or it was misclassified before; bool ``(N,)``.
    """
    moved, is_broken = images.clone(), torch.zeros_like(labels, dtype=torch.bool)
    for _ in range(n_steps):
        with torch.enable_grad():
            variable = moved.detach().requires_grad_()
            logits = model(variable)
            margins = logit_margin(logits, labels)
            (gradient,) = torch.autograd.grad(-margins.sum(), variable)
        is_broken = misclassified(model, moved, labels, logits.detach())
        if is_broken.all():
            break
        slopes = balls.slope(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)
        needed = (1 + OVERSHOOT) * margins.detach().clamp_min(1e-6) / slopes
        # without a gradient there is nowhere to go: infinity times nothing would be no image
        strides = torch.where(is_broken | ~needed.isfinite(), 0, needed)[:, None, None, None]
        moved = torch.addcmul(moved, balls.steepest(gradient), strides).clamp_(*balls.value_range)
    with torch.inference_mode():
        is_broken = misclassified(model, moved, labels, model(moved))
    found = torch.where(is_broken[:, None, None, None], moved, images)
    return torch.where(is_broken[:, None, None, None], halved(model, images, labels, found), images), is_broken


@torch.inference_mode()
def halved(model: nn.Module, images: Tensor, labels: Tensor, broken: Tensor) -> Tensor:
    """The nearest point to each image that is found misclassified on the straight way to one that is.

    The way is halved ``N_HALVINGS`` times.

    Args:
        model: takes images, returns logits ``(N, K)``; in evaluation mode.
        images: float32 ``(N, 1, H, W)``.
        labels: true classes, int64 ``(N,)``.
        broken: misclassified images, ``(N, 1, H, W)``.
    """
    inner, outer = images, broken
    for _ in range(N_HALVINGS):
        middle = (inner + outer) / 2
        breaks = misclassified(model, middle, labels, model(middle))[:, None, None, None]
        inner, outer = torch.where(breaks, inner, middle), torch.where(breaks, middle, outer)
    return outer
