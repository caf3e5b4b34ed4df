"""The sweep: the smallest radius of a grid that breaks each image, at about the cost of an attack at one radius.

A larger ball contains every smaller one. So a perturbation that breaks an image lies in every larger ball, and an image
that survives in one ball is assumed to survive in every smaller one. Therefore no image is attacked at every radius:

- To first order, the margin divided by the dual norm of its gradient is the radius that breaks an image (as in
  DeepFool; Moosavi-Dezfooli et al. 2016, arXiv 1511.04599). The search begins there.
- A broken image continues at the next smaller radius, a surviving one at the next larger, until a radius that breaks
  it is next to one that does not. An image leaves a radius as soon as it is broken, so nearly all the work is the
  attack at the largest radius that each image survives (once, and once more for each restart).
- A target with a misleading gradient may survive in a ball and be broken in a smaller one. If an image survives the
  first radius that is tried, each smaller radius is tried as well, once and without restarts.
- Every image of a batch has its own radius and its own number of steps. When one is finished, the next image takes its
  place, so that batches stay full.
- Gradients may be computed in bfloat16. Success and survival are decided in float32 alone.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from tasks.attacks.batch import AttackBatch, MinimumEps
from tasks.attacks.gradient.losses import logit_margin, misclassified
from tasks.attacks.gradient.norm_ball import NormBall
from tasks.models.compute import autocast, device_of
from tasks.params import Precision


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep over N images and R radii."""

    index: np.ndarray
    """Index of the smallest radius that breaks the image, int64 ``(N,)``; -1: misclassified unchanged; R: none does."""
    adversarial: np.ndarray
    """float32 ``(N, C, H, W)``: the adversarial image at this radius; the image itself for -1, the last attempt for
    R."""
    n_forward: int
    """Forward passes without a gradient, counted in images; float32."""
    n_gradient: int
    """Forward and backward passes, counted in images; in the precision of the gradients."""


def run_sweep(
    batch: AttackBatch,
    n_steps: int,
    relative_step_size: float,
    n_restarts: int,
    precision: Precision = "float32",
    try_smaller: bool = False,
    name: str = "sweep",
) -> MinimumEps:
    """Run :func:`pgd_sweep` on a batch."""
    result = pgd_sweep(
        batch.model,
        batch.images,
        batch.labels,
        batch.radii,
        batch.ball,
        batch.batch_size,
        n_steps,
        relative_step_size,
        n_restarts,
        batch.seed,
        batch.image_ids,
        precision,
        try_smaller,
        name,
    )
    return MinimumEps(result.index, np.full(len(batch.images), "sweep", dtype=object), result.adversarial)


def repeat_sweep(
    batch: AttackBatch,
    found: MinimumEps,
    name: str,
    n_steps: int,
    relative_step_size: float,
    n_restarts: int,
    precision: Precision = "float32",
) -> MinimumEps:
    """Improve a result by :func:`pgd_sweep` in the largest ball that each image has survived, and in smaller ones.

    An image that survives there is not tried in smaller balls.

    Args:
        batch: model and images.
        found: result of the attacks before.
        name: of the random starts.
        n_steps: as of :func:`pgd_sweep`; so are the others.
        relative_step_size: step size divided by the radius.
        n_restarts: further random starts.
        precision: of the gradients.
    """
    index, found_by, adversarial = found.index.copy(), found.found_by.astype(object), found.adversarial.copy()
    for number in reversed(range(len(batch.radii))):
        rows = np.flatnonzero(index == number + 1)
        survivors = replace(
            batch,
            images=batch.images[rows],
            labels=batch.labels[rows],
            radii=batch.radii[number : number + 1],
            image_ids=batch.image_ids[rows],
        )
        result = run_sweep(survivors, n_steps, relative_step_size, n_restarts, precision, name=name)
        broken = result.index == 0
        rows = rows[broken]
        index[rows], found_by[rows], adversarial[rows] = number, "sweep", result.adversarial[broken]
    return MinimumEps(index, found_by, adversarial)


def fgsm_sweep(
    model: nn.Module, images: np.ndarray, labels: np.ndarray, radii: np.ndarray, ball: NormBall, batch_size: int
) -> SweepResult:
    """Smallest radius at which the fast gradient sign method breaks each image (Goodfellow et al. 2015).

    Args:
        model: takes images, returns logits ``(N, K)``; in evaluation mode, parameters frozen.
        images: float32 ``(N, C, H, W)`` within the value range.
        labels: true classes, int64 ``(N,)``.
        radii: rising, in units of the value range, ``(R,)``.
        ball: norm and value range.
        batch_size: images of one pass.

    Raises:
        NonFiniteLogits: a logit is NaN or infinite.
    """
    device = device_of(model)
    bracket, adversarial, n_forward = EpsBracket(len(images), radii), images.copy(), 0
    for start in range(0, len(images), batch_size):
        rows = np.arange(start, min(start + batch_size, len(images)))
        origins, target = _on_device(device, images[rows], labels[rows])
        logits, gradient = logits_and_margin_gradient(model, origins, target)
        wrong, margins = _wrong(model, origins, target, logits), logit_margin(logits, target)
        guess = _first_order_guess(margins, ball.slope(gradient), radii)
        directions = ball.steepest(gradient)
        rows = rows[~bracket.update(rows, wrong)]
        bracket.trial[rows] = guess[rows - start]
        while rows.size:
            (slots,) = _on_device(device, rows - start)
            sizes = _per_image(bracket.radii_of(rows), device)
            perturbed = torch.addcmul(origins[slots], directions[slots], sizes).clamp_(*ball.value_range)
            with torch.inference_mode():
                broken = _wrong(model, perturbed, target[slots], model(perturbed))
            n_forward += len(rows)
            to_keep = broken | bracket.is_last(rows)
            adversarial[rows[to_keep]] = perturbed.cpu().numpy()[to_keep]
            rows = rows[~bracket.update(rows, broken)]
    return SweepResult(bracket.breaks, adversarial, n_forward, len(images))


def pgd_sweep(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    radii: np.ndarray,
    ball: NormBall,
    batch_size: int,
    n_steps: int,
    relative_step_size: float,
    n_restarts: int,
    seed: int,
    image_ids: np.ndarray,
    precision: Precision = "float32",
    try_smaller: bool = False,
    name: str = "sweep",
) -> SweepResult:
    """Smallest radius at which PGD on the margin breaks each image (Madry et al. 2018, arXiv 1706.06083).

    With two classes, the gradient of the margin (true logit minus the largest other) has the direction of the gradient
    of the cross-entropy and does not vanish where the softmax saturates. The first start in a ball is warm: one step of
    the size of the radius from the image, or the last point of the attack at the radius before.

    Args:
        model: takes images, returns logits ``(N, K)``; in evaluation mode, parameters frozen.
        images: float32 ``(N, C, H, W)`` within the value range.
        labels: true classes, int64 ``(N,)``.
        radii: rising, in units of the value range, ``(R,)``.
        ball: norm and value range.
        batch_size: images of one pass.
        n_steps: gradient steps of every start.
        relative_step_size: step size divided by the radius.
        n_restarts: further random starts of images that survive the first start.
        seed: of the random starts.
        image_ids: a number for each image, ``(N,)``; with the seed it determines the random starts.
        precision: of convolutions and matrix products in the gradients.
        try_smaller: if an image survives the first radius, try each smaller radius as well, once, from the last point
            of the attack before.
        name: of the random starts.

    Raises:
        NonFiniteLogits: a logit is NaN or infinite.
    """
    device = device_of(model)
    bracket, adversarial = EpsBracket(len(images), radii, try_smaller), images.copy()
    n_forward = n_gradient = 0
    rows = np.arange(min(batch_size, len(images)))
    n_taken = len(rows)
    steps, restarts = np.zeros_like(rows), np.zeros_like(rows)
    origins, target = _on_device(device, images[rows], labels[rows])
    perturbed = origins.clone()
    while rows.size:
        # the first pass over an image is over the image itself
        fresh = bracket.trial[rows] < 0
        logits, gradient = logits_and_margin_gradient(model, perturbed, target, precision)
        n_gradient += len(rows)
        if precision != "float32":
            surviving = (logit_margin(logits, target) > 0).cpu().numpy()
            undecided = np.flatnonzero(fresh | (steps == n_steps) | ~surviving)
            if undecided.size:
                (slots,) = _on_device(device, undecided)
                with torch.inference_mode():
                    logits[slots] = model(perturbed[slots])
                n_forward += len(undecided)
        broken = _wrong(model, perturbed, target, logits)
        held = ~broken & ~fresh & (steps == n_steps)
        again = held & (restarts < n_restarts) & ~bracket.is_below[rows]
        ended = fresh | broken | (held & ~again)

        to_keep = ~fresh & ended & (broken | bracket.is_last(rows))
        adversarial[rows[to_keep]] = perturbed[torch.from_numpy(to_keep)].cpu().numpy()
        if fresh.any():
            guess = _first_order_guess(logit_margin(logits, target), ball.slope(gradient), radii)
        done = np.zeros(len(rows), dtype=bool)
        done[ended] = bracket.update(rows[ended], broken[ended])
        starting = fresh & ~done
        if starting.any():
            bracket.trial[rows[starting]] = guess[starting]
        steps = np.where(ended | again, 0, steps + 1)
        restarts = np.where(ended, 0, restarts + again)

        if done.any():
            (stay,) = _on_device(device, np.flatnonzero(~done))
            origins, perturbed, target, gradient = (held[stay] for held in (origins, perturbed, target, gradient))
            rows, steps, restarts = (held[~done] for held in (rows, steps, restarts))
            fresh, again = fresh[~done], again[~done]

        trial_radii = bracket.radii_of(rows)
        sizes = _per_image(trial_radii, device)
        strides = _per_image(trial_radii * np.where(fresh, 1, relative_step_size), device)
        perturbed = ball.project(perturbed.addcmul_(ball.steepest(gradient), strides), origins, sizes)
        if again.any():
            (slots,) = _on_device(device, np.flatnonzero(again))
            starts = image_ids[rows[again]], restarts[again]
            perturbed[slots] = ball.random_starts(origins[slots], sizes[slots], seed, name, *starts)

        new = np.arange(n_taken, min(n_taken + batch_size - len(rows), len(images)))
        if new.size:
            n_taken += len(new)
            new_images, new_labels = _on_device(device, images[new], labels[new])
            origins, perturbed = torch.cat([origins, new_images]), torch.cat([perturbed, new_images])
            target = torch.cat([target, new_labels])
            rows = np.append(rows, new)
            steps, restarts = (np.pad(count, (0, len(new))) for count in (steps, restarts))
    return SweepResult(bracket.breaks, adversarial, n_forward, n_gradient)


class EpsBracket:
    """Bracket of the smallest breaking radius of each image.

    ``survives`` is the index of the largest radius that the image survived, ``breaks`` of the smallest that broke it,
    ``trial`` of the radius to try next, ``first`` of the first radius. Index -1 is the unchanged image. ``is_below`` is
    True if the bracket is closed and radii below the first one are tried.
    """

    def __init__(self, n_images: int, radii: np.ndarray, try_smaller: bool = False) -> None:
        """Begin with the unchanged images.

        Args:
            n_images: N.
            radii: rising, ``(R,)``.
            try_smaller: if an image survives its first radius, try each smaller radius once the bracket is closed.
        """
        self.radii, self.try_smaller = radii, try_smaller
        self.survives = np.full(n_images, -2)
        self.breaks = np.full(n_images, len(radii))
        self.trial = np.full(n_images, -1)
        self.first = np.full(n_images, -1)
        self.is_below = np.zeros(n_images, dtype=bool)

    def update(self, rows: np.ndarray, broken: np.ndarray) -> np.ndarray:
        """Record the outcome of the trials of some images, choose the next; return whether each image is finished."""
        trial, below = self.trial[rows], self.is_below[rows]
        self.breaks[rows[broken]] = trial[broken]
        survived = ~broken & ~below
        self.survives[rows[survived]] = trial[survived]
        self.first[rows] = np.where(self.first[rows] < 0, trial, self.first[rows])
        self.trial[rows] = np.where(broken | below, trial - 1, trial + 1)
        done: np.ndarray = np.where(below, trial == 0, self.breaks[rows] - self.survives[rows] == 1)
        if self.try_smaller:
            first = self.first[rows]
            more = done & ~below & (first > 0) & (self.survives[rows] >= first)
            self.trial[rows[more]], self.is_below[rows[more]] = first[more] - 1, True
            done &= ~more
        return done

    def radii_of(self, rows: np.ndarray) -> np.ndarray:
        """Radius to try next, for each of these images."""
        of_rows: np.ndarray = self.radii[self.trial[rows]]
        return of_rows

    def is_last(self, rows: np.ndarray) -> np.ndarray:
        """Return whether the largest radius is to be tried next."""
        last: np.ndarray = self.trial[rows] == len(self.radii) - 1
        return last


def logits_and_margin_gradient(
    model: nn.Module, images: Tensor, labels: Tensor, precision: Precision = "float32"
) -> tuple[Tensor, Tensor]:
    """Logits ``(N, K)``, and the negative gradient of the margins ``(N, C, H, W)``, both as float32."""
    with torch.enable_grad():
        variable = images.detach().requires_grad_()
        with autocast(precision, images.device):
            logits = model(variable).float()
        (gradient,) = torch.autograd.grad(-logit_margin(logits, labels).sum(), variable)
    return logits.detach(), gradient


def _first_order_guess(margins: Tensor, slopes: Tensor, radii: np.ndarray) -> np.ndarray:
    """Index of the smallest radius that breaks each image if the margin is linear; the last radius if none does."""
    needed = (margins / slopes.clamp_min(torch.finfo(slopes.dtype).tiny)).cpu().numpy()
    guess: np.ndarray = np.searchsorted(radii, needed).clip(0, len(radii) - 1)
    return guess


def _wrong(model: nn.Module, images: Tensor, labels: Tensor, logits: Tensor) -> np.ndarray:
    """Return which images are misclassified, bool ``(N,)``."""
    wrong: np.ndarray = misclassified(model, images, labels, logits).cpu().numpy()
    return wrong


def _per_image(values: np.ndarray, device: torch.device) -> Tensor:
    """Values ``(N,)`` as a float32 tensor ``(N, 1, 1, 1)``."""
    return torch.from_numpy(values.astype(np.float32)).to(device)[:, None, None, None]


def _on_device(device: torch.device, *arrays: np.ndarray) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(array).to(device) for array in arrays)
