"""Auto-PGD: PGD with an adaptive step size (Croce and Hein 2020, arXiv 2003.01690, algorithm 1)."""

import math

import torch
from torch import Tensor, nn

from tasks.attacks.gradient.losses import misclassified
from tasks.attacks.gradient.norm_ball import NormBall
from tasks.attacks.objectives import Objective, loss_and_gradient

MOMENTUM = 0.75
"""Weight of the new step; the rest is the previous step (alpha in the paper)."""
RHO = 0.75
"""Fraction of the steps between two checkpoints that must raise the loss, otherwise the step size is halved."""


def apgd(
    model: nn.Module,
    objective: Objective,
    images: Tensor,
    labels: Tensor,
    radii: Tensor,
    ball: NormBall,
    n_steps: int,
    starts: Tensor,
) -> tuple[Tensor, Tensor]:
    """Attack images, each in a ball of its own radius.

    The step size begins at twice the radius. It is halved, and the attack restarts from the best point so far, when
    progress stalls. An image leaves the batch as soon as it is misclassified.

    Args:
        model: takes images, returns logits ``(N, K)``; in evaluation mode, parameters frozen.
        objective: to maximise; its logits are those of the model.
        images: float32 ``(N, C, H, W)`` within the value range, on the model's device.
        labels: true classes, int64 ``(N,)``, on the model's device.
        radii: of the balls in units of the value range, ``(N, 1, 1, 1)``.
        ball: norm and value range.
        n_steps: maximum number of steps; there is one gradient more.
        starts: points of the balls, ``(N, C, H, W)``.

    Returns:
        The misclassified images, or the points of the largest loss, ``(N, C, H, W)``; whether each is misclassified,
        bool ``(N,)``.

    Raises:
        NonFiniteLogits: a logit is NaN or infinite.
    """
    adversarial, broken = starts.clone(), torch.zeros_like(labels, dtype=torch.bool)
    checkpoints = _checkpoints(n_steps)
    rows = torch.arange(len(images), device=images.device)
    now = before = best = starts
    strides = 2 * radii
    last = n_rising = torch.zeros(len(images), device=images.device)
    best_loss = best_loss_then = torch.full_like(last, -torch.inf)
    best_gradient, halved = torch.zeros_like(starts), torch.ones_like(broken)

    for step in range(n_steps + 1):
        losses, gradient, logits = loss_and_gradient(objective, now, rows)
        wrong = misclassified(model, now, labels, logits)
        better = losses > best_loss
        best, best_gradient = (
            torch.where(better[:, None, None, None], new, old) for new, old in ((now, best), (gradient, best_gradient))
        )
        best_loss = torch.where(better, losses, best_loss)
        n_rising, last = n_rising + (losses > last if step else 0), losses
        adversarial[rows] = torch.where(wrong[:, None, None, None], now, best)
        broken[rows[wrong]] = True
        if step == n_steps or wrong.all():
            break

        if step and step in checkpoints:
            n_between = step - checkpoints[checkpoints.index(step) - 1]
            stalled = (n_rising < RHO * n_between) | (~halved & (best_loss == best_loss_then))
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
        candidate = ball.project(now + strides * ball.steepest(gradient), images, radii)
        if step:
            candidate = ball.project(
                now + MOMENTUM * (candidate - now) + (1 - MOMENTUM) * (now - before), images, radii
            )
        now, before = candidate, now
    return adversarial, broken


def _checkpoints(n_steps: int) -> list[int]:
    """Steps after which the step size may be halved, from 0 (section 3.1)."""
    fractions = [0.0, 0.22]
    while fractions[-1] < 1:
        fractions.append(fractions[-1] + max(fractions[-1] - fractions[-2] - 0.03, 0.06))
    return sorted({math.ceil(fraction * n_steps - 1e-9) for fraction in fractions if fraction <= 1})
