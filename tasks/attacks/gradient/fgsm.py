"""The fast gradient sign method (Goodfellow et al. 2015, arXiv 1412.6572)."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tasks.attacks.gradient.losses import loss_gradient
from tasks.attacks.gradient.norm_ball import NormBall


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, radii: list[float], ball: NormBall) -> Iterator[Tensor]:
    """One step of the size of the ball along the steepest direction of the cross-entropy.

    The gradient does not depend on the size of the step, so one gradient serves every radius.

    Args:
        model: takes images, returns logits ``(N, K)``; in evaluation mode, parameters frozen.
        images: float32 ``(N, C, H, W)`` within the value range, on the model's device.
        labels: true classes, int64 ``(N,)``, on the model's device.
        radii: in units of the value range.
        ball: norm and value range.

    Yields:
        For each radius the adversarial images ``(N, C, H, W)``.
    """
    direction = ball.steepest(loss_gradient(model, images, labels))
    for radius in radii:
        yield torch.add(images, direction, alpha=radius).clamp_(*ball.value_range)
