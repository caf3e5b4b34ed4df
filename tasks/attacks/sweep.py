"""The smallest radius of a grid that breaks each image, for about the cost of an attack at one radius.

Balls nest: what breaks an image breaks it in every larger ball, and an image that holds in one ball is taken to hold in
every smaller one. So no image is attacked at every radius:

- One gradient of the margin tells, to first order, which radius should break an image: the margin over the gradient's
  dual norm (as in DeepFool; Moosavi-Dezfooli et al. 2016, arXiv 1511.04599). There the search begins.
- An image that breaks goes on at the next smaller radius, one that holds at the next larger, until a radius that
  breaks it stands next to one that does not. A radius is done with as soon as the image breaks, so nearly all the work
  is the attack on each image at the largest radius that it withstands (once, and once more for each restart).
- Every image of a batch has its own radius and its own number of steps. As one is done, the next takes its place, so
  that batches stay full.
- Gradients may be of bfloat16, which processors that know it multiply faster. What holds and what breaks is said in
  float32 alone: of an image that bfloat16 takes for broken, and of one whose steps are spent.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tasks.attacks.gradient.balls import Balls
from tasks.attacks.gradient.descent import logit_margin, misclassified
from tasks.models.compute import device_of, in_precision
from tasks.params import Precision


@dataclass(frozen=True)
class Sweep:
    """What a sweep found for N images and R radii."""

    broken_at: np.ndarray
    """Index of the smallest radius that breaks the image, int64 ``(N,)``; -1: wrong as it is; R: none does."""
    adversarial: np.ndarray
    """Float32 ``(N, 1, H, W)``: what breaks the image there; the image itself for -1, the last attempt for R."""
    n_forward: int
    """Images sent forward through the model without a gradient, in float32."""
    n_gradient: int
    """Images sent forward and backward, in the precision that was asked for."""


def fgsm_sweep(
    model: nn.Module, images: np.ndarray, labels: np.ndarray, radii: np.ndarray, balls: Balls, batch_size: int
) -> Sweep:
    """Smallest radius at which the fast gradient sign method breaks each image (Goodfellow et al. 2015).

    Args:
        model: takes images, returns logits ``(N, K)``; in evaluation mode, parameters frozen.
        images: float32 ``(N, 1, H, W)`` within the value range.
        labels: true classes, int64 ``(N,)``.
        radii: rising, in units of the value range, ``(R,)``.
        balls: their norm, and the value range.
        batch_size: images a pass.

    Raises:
        NotFinite: a logit is not finite.
    """
    device = device_of(model)
    bracket, adversarial, n_forward = Bracket(len(images), radii), images.copy(), 0
    for start in range(0, len(images), batch_size):
        rows = np.arange(start, min(start + batch_size, len(images)))
        origins, target = _on_device(device, images[rows], labels[rows])
        logits, gradient = _look(model, origins, target)
        wrong, margins = _wrong(model, origins, target, logits), logit_margin(logits, target)
        guess = _first_order_guess(margins, balls.slope(gradient), radii)
        directions = balls.steepest(gradient)
        rows = rows[~bracket.learn(rows, wrong)]
        bracket.trial[rows] = guess[rows - start]
        while rows.size:
            (slots,) = _on_device(device, rows - start)
            sizes = _per_image(bracket.radii_of(rows), device)
            moved = torch.addcmul(origins[slots], directions[slots], sizes).clamp_(*balls.value_range)
            with torch.inference_mode():
                broke = _wrong(model, moved, target[slots], model(moved))
            n_forward += len(rows)
            worth_keeping = broke | bracket.at_last(rows)
            adversarial[rows[worth_keeping]] = moved.cpu().numpy()[worth_keeping]
            rows = rows[~bracket.learn(rows, broke)]
    return Sweep(bracket.breaks, adversarial, n_forward, len(images))


def pgd_sweep(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    radii: np.ndarray,
    balls: Balls,
    batch_size: int,
    n_steps: int,
    relative_step: float,
    n_restarts: int,
    seed: int,
    numbers: np.ndarray,
    precision: Precision = "float32",
) -> Sweep:
    """Smallest radius at which projected gradient descent on the margin breaks each image (Madry et al. 2018).

    With two classes, the gradient of the margin (true logit minus the largest other) has the direction of the
    cross-entropy's, and does not vanish where the softmax saturates. The first start in a ball is where the search
    comes from: a step of the ball's radius from the image, or the end of the attack at the radius before.

    Args:
        model: takes images, returns logits ``(N, K)``; in evaluation mode, parameters frozen.
        images: float32 ``(N, 1, H, W)`` within the value range.
        labels: true classes, int64 ``(N,)``.
        radii: rising, in units of the value range, ``(R,)``.
        balls: their norm, and the value range.
        batch_size: images a pass.
        n_steps: gradient steps of every start.
        relative_step: size of a step over the radius.
        n_restarts: random starts, after the first, of images that hold.
        seed: of the random starts.
        numbers: of the images, ``(N,)``; an image's random starts depend on its number and the seed alone.
        precision: of convolutions and matrix products in the gradients.

    Raises:
        NotFinite: a logit is not finite.
    """
    device = device_of(model)
    bracket, adversarial, n_forward, n_gradient = Bracket(len(images), radii), images.copy(), 0, 0
    rows = np.arange(min(batch_size, len(images)))
    n_taken = len(rows)
    steps, restarts = np.zeros_like(rows), np.zeros_like(rows)
    origins, target = _on_device(device, images[rows], labels[rows])
    moved = origins.clone()
    while rows.size:
        # the first pass over an image is over the image itself
        fresh = bracket.trial[rows] < 0
        logits, gradient = _look(model, moved, target, precision)
        n_gradient += len(rows)
        if precision != "float32":
            says_safe = (logit_margin(logits, target) > 0).cpu().numpy()
            doubtful = np.flatnonzero(fresh | (steps == n_steps) | ~says_safe)
            if doubtful.size:
                (slots,) = _on_device(device, doubtful)
                with torch.inference_mode():
                    logits[slots] = model(moved[slots])
                n_forward += len(doubtful)
        broke = _wrong(model, moved, target, logits)
        held = ~broke & ~fresh & (steps == n_steps)
        again = held & (restarts < n_restarts)
        ended = fresh | broke | (held & ~again)

        worth_keeping = ~fresh & ended & (broke | bracket.at_last(rows))
        adversarial[rows[worth_keeping]] = moved[torch.from_numpy(worth_keeping)].cpu().numpy()
        if fresh.any():
            guess = _first_order_guess(logit_margin(logits, target), balls.slope(gradient), radii)
        done = np.zeros(len(rows), dtype=bool)
        done[ended] = bracket.learn(rows[ended], broke[ended])
        starting = fresh & ~done
        if starting.any():
            bracket.trial[rows[starting]] = guess[starting]
        steps = np.where(ended | again, 0, steps + 1)
        restarts = np.where(ended, 0, restarts + again)

        if done.any():
            (stay,) = _on_device(device, np.flatnonzero(~done))
            origins, moved, target, gradient = (held[stay] for held in (origins, moved, target, gradient))
            rows, steps, restarts = (held[~done] for held in (rows, steps, restarts))
            fresh, again = fresh[~done], again[~done]

        on_trial = bracket.radii_of(rows)
        sizes = _per_image(on_trial, device)
        strides = _per_image(on_trial * np.where(fresh, 1, relative_step), device)
        moved = balls.project(moved.addcmul_(balls.steepest(gradient), strides), origins, sizes)
        if again.any():
            (slots,) = _on_device(device, np.flatnonzero(again))
            starts = numbers[rows[again]], restarts[again]
            moved[slots] = balls.random_starts(origins[slots], sizes[slots], seed, *starts)

        new = np.arange(n_taken, min(n_taken + batch_size - len(rows), len(images)))
        if new.size:
            n_taken += len(new)
            new_images, new_labels = _on_device(device, images[new], labels[new])
            origins, moved = torch.cat([origins, new_images]), torch.cat([moved, new_images])
            target = torch.cat([target, new_labels])
            rows = np.append(rows, new)
            steps, restarts = (np.pad(count, (0, len(new))) for count in (steps, restarts))
    return Sweep(bracket.breaks, adversarial, n_forward, n_gradient)


class Bracket:
    """For each image the largest radius known to hold, the smallest known to break, and the one on trial, by index.

    Index -1 is the image as it is.
    """

    def __init__(self, n_images: int, radii: np.ndarray) -> None:
        self.radii = radii
        self.holds = np.full(n_images, -2)
        self.breaks = np.full(n_images, len(radii))
        self.trial = np.full(n_images, -1)

    def learn(self, rows: np.ndarray, broke: np.ndarray) -> np.ndarray:
        """Take in how the trials of these images ended, choose the next; whether each image is done, bool."""
        trial = self.trial[rows]
        self.breaks[rows[broke]] = trial[broke]
        self.holds[rows[~broke]] = trial[~broke]
        self.trial[rows] = np.where(broke, trial - 1, trial + 1)
        done: np.ndarray = self.breaks[rows] - self.holds[rows] == 1
        return done

    def radii_of(self, rows: np.ndarray) -> np.ndarray:
        """Radius on trial for each of these images."""
        of_rows: np.ndarray = self.radii[self.trial[rows]]
        return of_rows

    def at_last(self, rows: np.ndarray) -> np.ndarray:
        """Whether the largest radius is on trial."""
        last: np.ndarray = self.trial[rows] == len(self.radii) - 1
        return last


def _look(model: nn.Module, images: Tensor, labels: Tensor, precision: Precision = "float32") -> tuple[Tensor, Tensor]:
    """Logits ``(N, K)``, and the gradient ``(N, 1, H, W)`` along which margins fall, both as float32."""
    with torch.enable_grad():
        variable = images.detach().requires_grad_()
        with in_precision(precision, images.device):
            logits = model(variable).float()
        (gradient,) = torch.autograd.grad(-logit_margin(logits, labels).sum(), variable)
    return logits.detach(), gradient


def _first_order_guess(margins: Tensor, slopes: Tensor, radii: np.ndarray) -> np.ndarray:
    """Index of the radius that would just break each image if the margin were linear; the last if none would."""
    needed = (margins / slopes.clamp_min(torch.finfo(slopes.dtype).tiny)).cpu().numpy()
    guess: np.ndarray = np.searchsorted(radii, needed).clip(0, len(radii) - 1)
    return guess


def _wrong(model: nn.Module, images: Tensor, labels: Tensor, logits: Tensor) -> np.ndarray:
    """Where another class is predicted, bool ``(N,)``."""
    wrong: np.ndarray = misclassified(model, images, labels, logits).cpu().numpy()
    return wrong


def _per_image(values: np.ndarray, device: torch.device) -> Tensor:
    """Numbers ``(N,)`` as float32 ``(N, 1, 1, 1)``."""
    return torch.from_numpy(values.astype(np.float32)).to(device)[:, None, None, None]


def _on_device(device: torch.device, *arrays: np.ndarray) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(array).to(device) for array in arrays)
