"""Losses, their gradients with respect to images, and the success criterion that all attacks share."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.defences.randomness import AveragedPredictions

N_SELECTION_SAMPLES = 20
"""Predictions of a random target whose majority decides whether an attack has broken an image. Other, fresh samples
then score the image."""


class NonFiniteLogits(ValueError):
    """A logit is NaN or infinite.

    Args:
        message: how many images are affected.
        image: one of them, ``(C, H, W)``.
    """

    def __init__(self, message: str, image: np.ndarray) -> None:
        super().__init__(message)
        self.image = image


def logit_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """True logit minus the largest other logit, ``(N,)``; negative where the prediction is wrong.

    Args:
        logits: ``(N, K)``.
        labels: true classes, int64 ``(N,)``.
    """
    true = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return true - others.amax(dim=1)


def loss_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the cross-entropy of each image with respect to the image, ``(N, C, H, W)``."""
    with torch.enable_grad():
        variable = images.detach().requires_grad_()
        loss = F.cross_entropy(model(variable), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, variable)
    return gradient


def misclassified(model: nn.Module, images: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
    """Return which images are misclassified, bool ``(N,)``.

    An image of a random target is misclassified if its averaged logits predict a wrong class and more than half of
    ``N_SELECTION_SAMPLES`` further predictions of the target are wrong.

    Args:
        model: takes images, returns logits ``(N, K)``; a random target with averaged predictions.
        images: float32 ``(N, C, H, W)``.
        labels: true classes, int64 ``(N,)``.
        logits: the model's logits of the images, ``(N, K)``.

    Raises:
        NonFiniteLogits: a logit is NaN or infinite.
    """
    non_finite = (~logits.isfinite().all(dim=1)).nonzero()[:, 0]
    if len(non_finite):
        message = f"{len(non_finite)} of {len(logits)} images have logits that are not finite"
        raise NonFiniteLogits(message, images[non_finite[0]].detach().cpu().numpy())
    wrong = logits.argmax(dim=1) != labels
    if isinstance(model, AveragedPredictions) and wrong.any():
        rows = wrong.nonzero()[:, 0]
        with torch.inference_mode():
            predicted = torch.stack([model.target(images[rows]).argmax(dim=1) for _ in range(N_SELECTION_SAMPLES)])
        is_broken = (predicted != labels[rows]).float().mean(dim=0) > 0.5
        wrong = torch.zeros_like(wrong).index_fill_(0, rows[is_broken], True)
    return wrong
