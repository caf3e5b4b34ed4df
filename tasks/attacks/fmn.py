"""Minimum-norm attack: FMN (Pintor et al. 2021, arXiv 2102.12827) with steps in proportion to the ball."""

import math

import torch
from torch import Tensor, nn

from tasks.attacks.batch import bisect_to_boundary
from tasks.attacks.gradient.losses import misclassified
from tasks.attacks.gradient.norm_ball import NormBall
from tasks.attacks.objectives import Objective, loss_and_gradient

STEP_SIZES = (2.0, 0.02)
"""First and last step size divided by the radius of the ball; the paper's steps do not depend on the radius."""
SHRINKAGE = (0.1, 0.001)
"""First and last fraction by which the radius changes after a step (gamma in the paper)."""


def fmn(
    model: nn.Module,
    objective: Objective,
    images: Tensor,
    labels: Tensor,
    radii: Tensor,
    ball: NormBall,
    n_steps: int,
    starts: Tensor,
) -> tuple[Tensor, Tensor]:
    """Search for the nearest misclassified images, each in a ball that shrinks and grows.

    After a step that ends in a misclassified image, the ball becomes smaller than the smallest perturbation so far;
    otherwise it grows. Before the first success, its radius is a little more than the distance at which the linear
    model of the objective crosses zero (algorithm 1). Step sizes and changes of the radius fall along a cosine. At the
    end, the line from each image to the result is bisected.

    In place of the paper's gradient step of fixed L2 length, a step goes along the steepest direction of the norm, in
    proportion to the radius. So one setting suits small and large perturbations.

    Args:
        model: takes images, returns logits ``(N, K)``; in evaluation mode, parameters frozen.
        objective: a negative margin: an image is misclassified where it is above 0.
        images: float32 ``(N, C, H, W)`` within the value range, on the model's device.
        labels: true classes, int64 ``(N,)``, on the model's device.
        radii: upper bounds of the norms, ``(N, 1, 1, 1)``, in units of the value range.
        ball: the norm to minimise, and the value range.
        n_steps: number of steps; there is one gradient more.
        starts: points of the balls, ``(N, C, H, W)``.

    Returns:
        Misclassified images ``(N, C, H, W)``, the image itself where none was found; whether one was found, bool
        ``(N,)``.

    Raises:
        NonFiniteLogits: a logit is NaN or infinite.
    """
    rows = torch.arange(len(images), device=images.device)
    candidate, nearest = starts, images
    bounds = radii.flatten()
    smallest, found, sizes = bounds, torch.zeros_like(labels, dtype=torch.bool), bounds
    for step in range(n_steps + 1):
        losses, gradient, logits = loss_and_gradient(objective, candidate, rows)
        wrong = misclassified(model, candidate, labels, logits)
        norms = ball.size(candidate - images)
        better = wrong & (norms <= smallest)
        nearest = torch.where(better[:, None, None, None], candidate, nearest)
        smallest, found = torch.where(better, norms, smallest), found | better
        if step == n_steps:
            break
        shrinkage, step_size = (_annealed(step / n_steps, *ends) for ends in (SHRINKAGE, STEP_SIZES))
        slopes = ball.slope(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)
        sizes = torch.where(
            wrong,
            torch.minimum(sizes, norms) * (1 - shrinkage),
            torch.where(found, sizes, norms + losses.abs() / slopes) * (1 + shrinkage),
        )
        sizes = torch.minimum(sizes, smallest)
        ball_radii = sizes[:, None, None, None]
        moved = torch.addcmul(candidate, ball.steepest(gradient), step_size * ball_radii)
        candidate = ball.project(moved, images, ball_radii)
    return bisect_to_boundary(model, images, labels, nearest), found


def _annealed(progress: float, first: float, last: float) -> float:
    """A value that falls from the first to the last along a cosine; progress is in [0, 1]."""
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2
