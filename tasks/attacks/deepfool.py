"""DeepFool, an attack of minimal norm (Moosavi-Dezfooli et al. 2016, arXiv 1511.04599)."""

import torch
from torch import Tensor, nn

from tasks.attacks.batch import bisect_to_boundary
from tasks.attacks.gradient.losses import logit_margin, misclassified
from tasks.attacks.gradient.norm_ball import NormBall
from tasks.attacks.sweep import logits_and_margin_gradient

OVERSHOOT = 0.02
"""Fraction by which a step goes beyond the decision boundary of the linear model."""


def deepfool(model: nn.Module, images: Tensor, labels: Tensor, ball: NormBall, n_steps: int) -> tuple[Tensor, Tensor]:
    """Search for misclassified images near the originals, in no fixed ball.

    Each step goes to the point where the linear model of the margin to the runner-up class is zero, in the steepest
    direction of the norm (algorithm 2 of the paper considers all classes). The result is moved back towards the
    image by bisection.

    Args:
        model: takes images, returns logits ``(N, K)``; in evaluation mode, parameters frozen.
        images: float32 ``(N, C, H, W)`` within the value range, on the model's device.
        labels: true classes, int64 ``(N,)``, on the model's device.
        ball: the norm to minimise, and the value range.
        n_steps: maximum number of gradients.

    Returns:
        Misclassified images ``(N, C, H, W)``, the image itself where none was found; whether one was found, bool
        ``(N,)``.
    """
    candidate, broken = images.clone(), torch.zeros_like(labels, dtype=torch.bool)
    for _ in range(n_steps):
        logits, gradient = logits_and_margin_gradient(model, candidate, labels)
        broken = misclassified(model, candidate, labels, logits)
        if broken.all():
            break
        slopes = ball.slope(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)
        needed = (1 + OVERSHOOT) * logit_margin(logits, labels).clamp_min(1e-6) / slopes
        # without a gradient the step would be infinite
        strides = torch.where(broken | ~needed.isfinite(), 0, needed)[:, None, None, None]
        candidate = torch.addcmul(candidate, ball.steepest(gradient), strides).clamp_(*ball.value_range)
    with torch.inference_mode():
        broken = misclassified(model, candidate, labels, model(candidate))
    found = torch.where(broken[:, None, None, None], candidate, images)
    nearest = bisect_to_boundary(model, images, labels, found)
    return torch.where(broken[:, None, None, None], nearest, images), broken
