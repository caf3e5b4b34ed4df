"""Objectives that white-box attacks maximise: losses on logits, untargeted or towards a target class."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.attacks.gradient.losses import logit_margin

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits ``(n, K)`` and true classes ``(n,)`` to the loss that the attack maximises, ``(n,)``."""
TargetedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Logits ``(n, K)``, true classes ``(n,)`` and target classes ``(n,)`` to the loss to maximise, ``(n,)``."""
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""``(images (n, C, H, W), rows (n,)) -> (loss to maximise (n,), logits (n, K))``; the rows are those of the images in
the batch that is attacked, since images leave the batch when they are misclassified."""


def untargeted(model: nn.Module, labels: Tensor, loss: Loss) -> Objective:
    """Objective of a loss that needs no target class.

    Args:
        model: takes images, returns logits ``(n, K)``.
        labels: true classes of the batch, int64 ``(N,)``.
        loss: to maximise.
    """

    def objective(images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(images)
        return loss(logits, labels[rows]), logits

    return objective


def targeted(model: nn.Module, labels: Tensor, targets: Tensor, loss: TargetedLoss) -> Objective:
    """Objective of a loss towards target classes; arguments as of :func:`untargeted`, targets int64 ``(N,)``."""

    def objective(images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(images)
        return loss(logits, labels[rows], targets[rows]), logits

    return objective


def loss_and_gradient(objective: Objective, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses ``(n,)``, their gradients ``(n, C, H, W)`` and the logits ``(n, K)`` of images ``(n, C, H, W)``."""
    with torch.enable_grad():
        variable = images.detach().requires_grad_()
        losses, logits = objective(variable, rows)
        (gradient,) = torch.autograd.grad(losses.sum(), variable)
    # without a finite gradient an attack does not move; a check reports such gradients
    return losses.detach(), gradient.nan_to_num_(0.0, 0.0, 0.0), logits.detach()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each image, ``(n,)``; its gradient vanishes where the softmax saturates."""
    return F.cross_entropy(logits, labels, reduction="none")


def negative_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Largest other logit minus the true logit, ``(n,)``.

    With two classes, its gradient has the direction of the gradient of the cross-entropy.
    """
    return -logit_margin(logits, labels)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, arXiv 2003.01690, equation 6), ``(n,)``; K is at least 3."""
    largest = logits.sort(dim=1, descending=True).values
    return negative_margin(logits, labels) / (largest[:, 0] - largest[:, 2]).clamp_min(1e-12)


def targeted_negative_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Logit of the target class minus the true logit, ``(n,)``."""
    true, target = (logits.gather(1, classes[:, None])[:, 0] for classes in (labels, targets))
    return target - true


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Targeted difference of logits ratio (the same paper, equation 7), ``(n,)``; K is at least 4."""
    largest = logits.sort(dim=1, descending=True).values
    scale = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2
    return targeted_negative_margin(logits, labels, targets) / scale.clamp_min(1e-12)


def other_class(model: nn.Module, images: Tensor, labels: Tensor, rank: int) -> Tensor:
    """The class with the largest logit among all classes except the true one, or one of lower rank, int64 ``(N,)``.

    Args:
        model: takes images, returns logits ``(N, K)``.
        images: unchanged, ``(N, C, H, W)``.
        labels: true classes, int64 ``(N,)``.
        rank: 0 for the largest logit, 1 for the second largest, ..., at most K - 2.
    """
    with torch.inference_mode():
        logits: Tensor = model(images)
        order = logits.scatter(1, labels[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)
    # inference tensors cannot be used where gradients are computed
    return order[:, rank].clone()
