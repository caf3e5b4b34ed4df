"""Auto-PGD, which chooses the size of its steps itself (Croce and Hein 2020, arXiv 2003.01690, algorithm 1)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.attacks.gradient.balls import Balls
from tasks.attacks.gradient.descent import logit_margin, misclassified

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits ``(N, K)`` and true classes ``(N,)`` to what the attack raises, ``(N,)``."""

MOMENTUM = 0.75
"""Share of the new step in the next move; the rest goes on as before."""
RISING = 0.75
"""Share of the steps between two checkpoints that must raise the loss, or steps are halved."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each image; where the softmax saturates it has no gradient left."""
    return F.cross_entropy(logits, labels, reduction="none")


def negative_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Largest other logit minus the true one: with two classes what the loss of difference of logits ratios is not."""
    return -logit_margin(logits, labels)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio (equation 6): negative margin over first minus third logit, for at least 3 classes."""
    largest = logits.sort(dim=1, descending=True).values
    return negative_margin(logits, labels) / (largest[:, 0] - largest[:, 2]).clamp_min(1e-12)


def apgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    radii: Tensor,
    balls: Balls,
    loss: Loss,
    n_steps: int,
    starts: Tensor,
) -> tuple[Tensor, Tensor]:
    """Adversarial images, each in a ball of its own, and whether they are misclassified.

    Steps begin with twice the radius, and are halved, from the best point so far, where they stopped to pay. An image
    that is misclassified is done with.

    Args:
        model: takes images, returns logits ``(N, K)``; in evaluation mode, parameters frozen.
        images: float32 ``(N, 1, H, W)`` within the value range, on the model's device.
        labels: true classes, int64 ``(N,)``, on the model's device.
        radii: of the balls in units of the value range, ``(N, 1, 1, 1)``.
        balls: their norm, and the value range.
        loss: to raise.
        n_steps: gradients that are taken, at most.
        starts: points of the balls, ``(N, 1, H, W)``.

    Returns:
        ``(N, 1, H, W)``: the misclassified image or, of one that withstands, the point of the largest loss; bool
        ``(N,)``.

    Raises:
        NotFinite: a logit is not finite.
    """
    adversarial, is_broken = starts.clone(), torch.zeros_like(labels, dtype=torch.bool)
    checkpoints = _checkpoints(n_steps)
    rows = torch.arange(len(images), device=images.device)
    now = before = best = starts
    strides = 2 * radii
    last = n_rising = torch.zeros(len(images), device=images.device)
    best_loss = best_loss_then = torch.full_like(last, -torch.inf)
    best_gradient, halved = torch.zeros_like(starts), torch.ones_like(is_broken)

    for step in range(n_steps + 1):
        losses, gradient, wrong = _look(model, now, labels, loss)
        better = losses > best_loss
        best, best_gradient = (
            torch.where(better[:, None, None, None], new, old) for new, old in ((now, best), (gradient, best_gradient))
        )
        best_loss = torch.where(better, losses, best_loss)
        n_rising, last = n_rising + (losses > last if step else 0), losses
        adversarial[rows] = torch.where(wrong[:, None, None, None], now, best)
        is_broken[rows[wrong]] = True
        if step == n_steps or wrong.all():
            break

        if step and step in checkpoints:
            n_between = step - checkpoints[checkpoints.index(step) - 1]
            stalled = (n_rising < RISING * n_between) | (~halved & (best_loss == best_loss_then))
            strides = torch.where(stalled[:, None, None, None], strides / 2, strides)
            now, gradient = (
                torch.where(stalled[:, None, None, None], new, old)
                for new, old in ((best, now), (best_gradient, gradient))
            )
            n_rising, halved, best_loss_then = torch.zeros_like(n_rising), stalled, best_loss

        if wrong.any():
            stay = (~wrong).nonzero()[:, 0]
            (rows, images, labels, radii, strides, now, before, best, gradient, best_gradient) = (
                each[stay]
                for each in (rows, images, labels, radii, strides, now, before, best, gradient, best_gradient)
            )
            last, n_rising, best_loss, best_loss_then, halved = (
                each[stay] for each in (last, n_rising, best_loss, best_loss_then, halved)
            )
        ahead = balls.project(now + strides * balls.steepest(gradient), images, radii)
        if step:
            ahead = balls.project(now + MOMENTUM * (ahead - now) + (1 - MOMENTUM) * (now - before), images, radii)
        now, before = ahead, now
    return adversarial, is_broken


def _look(model: nn.Module, images: Tensor, labels: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
    """Losses ``(N,)``, their gradient ``(N, 1, H, W)``, and which images are misclassified, bool ``(N,)``."""
    with torch.enable_grad():
        variable = images.detach().requires_grad_()
        logits = model(variable)
        losses = loss(logits, labels)
        (gradient,) = torch.autograd.grad(losses.sum(), variable)
    return losses.detach(), gradient, misclassified(model, images, labels, logits.detach())


def _checkpoints(n_steps: int) -> list[int]:
    """Steps after which the size of steps is judged, from 0 (section 3.1)."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return sorted({math.ceil(share * n_steps - 1e-9) for share in shares if share <= 1})
