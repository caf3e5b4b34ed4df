"""Losses, their gradients with respect to images, and the success criterion that all attacks share."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

N_CONFIRMATIONS = 5
"""Further predictions that must be wrong before an image counts as misclassified, for models that draw at random."""


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

    An attack that queries a random model often enough finds a wrong prediction by chance. Where the model draws at
    random, an image therefore counts only if ``N_CONFIRMATIONS`` further predictions are wrong as well.

    Args:
        model: takes images, returns logits ``(N, K)``; it draws at random if its ``n_eot_samples`` is above 1.
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
    if getattr(model, "n_eot_samples", 1) > 1:
        rows = wrong.nonzero()[:, 0]
        with torch.inference_mode():
            for _ in range(N_CONFIRMATIONS if len(rows) else 0):
                rows = rows[model(images[rows]).argmax(dim=1) != labels[rows]]
                if not len(rows):
                    break
        wrong = torch.zeros_like(wrong).index_fill_(0, rows, True)
    return wrong
