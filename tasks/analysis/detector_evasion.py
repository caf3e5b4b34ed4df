"""PGD against a classifier and the detector beside it, by an attacker who knows both."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from tasks.attacks.gradient.balls import Balls
from tasks.attacks.gradient.descent import NotFinite, logit_margin
from tasks.params import Pgd

MOMENTUM = 0.75
"""Share of the steps before in the next one's direction."""


def evade(
    look: Callable[[Tensor], tuple[Tensor, Tensor]],
    images: Tensor,
    labels: Tensor,
    radius: float,
    balls: Balls,
    settings: Pgd,
    begin: Iterable[Tensor],
) -> Tensor:
    """Adversarial images of one radius: to be misclassified comes first, a small score of the detector second.

    A detector has to be judged by attacks that know it (Carlini and Wagner 2017, arXiv 1705.07263; Tramer et al. 2020,
    arXiv 2002.08347). Each step takes in the gradient of one aim, as in selective gradient descent (Bryniarski et al.
    2021, arXiv 2106.15023): of the margin while an image is classified correctly, of the score while it is
    misclassified. Momentum (Dong et al. 2018, arXiv 1710.06081) joins them to a direction that serves both, each with
    the weight that the boundary calls for; by turns, sign steps would undo each other. Steps shrink evenly, by
    ``relative_step`` times the radius on average: large ones misclassify, small ones follow the boundary.

    Args:
        look: takes images, returns the classifier's logits ``(N, K)`` and the detector's score ``(N,)``, higher is more
            adversarial; each of its own image alone, with a finite gradient. Networks in evaluation mode, frozen.
        images: float32 ``(N, 1, H, W)`` within the value range, on the model's device.
        labels: true classes, int64 ``(N,)``, on the model's device.
        radius: in units of the value range.
        balls: their norm, and the value range.
        settings: the numbers of PGD, but for its restarts.
        begin: starts within the balls, ``(N, 1, H, W)`` each, which are overwritten; random points, or what an attack
            that does not know of the detector found, which is then the least that is given back.

    Returns:
        ``(N, 1, H, W)``: of all points that an image came through, starts included, the misclassified one with the
        smallest score; the end of the last start where none was misclassified.

    Raises:
        NotFinite: a logit or a score is not finite.
    """
    size = torch.tensor(radius, device=images.device)
    evading, lowest = images, torch.full(labels.shape, torch.inf, device=images.device)
    for start in begin:
        moved, velocity = start, torch.zeros_like(images)
        for step in range(settings.n_steps + 1):
            with torch.enable_grad():
                variable = moved.detach().requires_grad_()
                logits, scores = look(variable)
                wrong = logits.argmax(dim=1) != labels
                goals = torch.where(wrong, scores, logit_margin(logits, labels))
            broken = (~(logits.isfinite().all(dim=1) & scores.isfinite())).nonzero()[:, 0]
            if len(broken):
                message = f"{len(broken)} of {len(images)} images have logits or scores that are not finite"
                raise NotFinite(message, images[broken[0]].cpu().numpy())
            better = torch.where(wrong, scores < lowest, lowest.isinf())
            evading = torch.where(better[:, None, None, None], moved, evading)
            lowest = torch.where(better & wrong, scores.detach(), lowest)
            if step < settings.n_steps:
                (gradient,) = torch.autograd.grad(goals.sum(), variable)
                length = gradient.abs().sum(dim=(1, 2, 3), keepdim=True).clamp_min_(torch.finfo(gradient.dtype).tiny)
                velocity.mul_(MOMENTUM).addcdiv_(gradient, length)
                stride = settings.relative_step * radius * (2 - (2 * step + 1) / settings.n_steps)
                moved = balls.project(moved.sub_(balls.steepest(velocity), alpha=stride), images, size)
    return evading
