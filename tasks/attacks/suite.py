"""The suite: stronger and other attacks, for the smallest eps of the grid that breaks each image.

Stock AutoAttack needs three logits. What works on two classes is put together here: Auto-PGD on the cross-entropy and
on the margin (with three classes or more also on the difference of logits ratios), DeepFool for small norms, Square for
scores alone and HopSkipJump for labels alone. Balls nest, so each of the white-box attacks is tried only where all
before it failed: on the largest ball that an image has withstood so far.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tasks.attacks.apgd import Loss, apgd, cross_entropy, dlr, negative_margin
from tasks.attacks.deepfool import deepfool, halved
from tasks.attacks.gradient.balls import Balls
from tasks.attacks.gradient.descent import FURTHER_LOOKS
from tasks.attacks.hop_skip_jump import hop_skip_jump
from tasks.attacks.square import square
from tasks.attacks.sweep import Bracket, pgd_sweep
from tasks.models.compute import device_of
from tasks.params import Precision
from tasks.records.perturbation_norms import TOLERANCE, perturbation_norms

Attempt = Callable[[np.ndarray, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Numbers of some images, the images, their labels and radii, to other images and which of these are misclassified."""


@dataclass(frozen=True)
class Case:
    """A target and N images that it is attacked on."""

    target: nn.Module
    """White box; takes images and returns logits ``(N, K)``; in evaluation mode, parameters frozen."""
    images: np.ndarray
    """float32 ``(N, 1, H, W)`` within the value range."""
    labels: np.ndarray
    """True classes, int64 ``(N,)``."""
    n_classes: int
    radii: np.ndarray
    """Of the grid, rising, in units of the value range, ``(R,)``."""
    balls: Balls
    batch_size: int
    seed: int
    rows: np.ndarray
    """In the prepared table, ``(N,)``; random starts depend on them."""


@dataclass(frozen=True)
class Broken:
    """What attacks found for N images and R radii."""

    at: np.ndarray
    """Index of the smallest radius that breaks the image, int64 ``(N,)``; -1: wrong as it is; R: none does."""
    by: np.ndarray
    """Name of the attack that did, ``(N,)``."""
    adversarial: np.ndarray
    """What breaks the image there, float32 ``(N, 1, H, W)``; the image itself where nothing does."""


def swept(case: Case, n_steps: int, relative_step: float, n_restarts: int, precision: Precision = "float32") -> Broken:
    """What the sweep finds, PGD on the margin: see :func:`tasks.attacks.sweep.pgd_sweep`."""
    how = n_steps, relative_step, n_restarts, case.seed, case.rows, precision
    found = pgd_sweep(case.target, case.images, case.labels, case.radii, case.balls, case.batch_size, *how)
    return Broken(found.broken_at, np.full(len(case.rows), "sweep", dtype=object), found.adversarial)


def white_box(case: Case, before: Broken, n_steps: int) -> Broken:
    """What Auto-PGD and DeepFool add to what was found before.

    Args:
        case: target and images.
        before: what others found.
        n_steps: gradients of each try.
    """
    at, by, adversarial = before.at.copy(), before.by.copy(), before.adversarial.copy()

    def keep(rows: np.ndarray, found: np.ndarray, index: np.ndarray, name: str) -> None:
        at[rows], by[rows], adversarial[rows] = index, name, found

    losses: dict[str, Loss] = {"apgd_ce": cross_entropy, "apgd_margin": negative_margin}
    if case.n_classes > 2:
        losses["apgd_dlr"] = dlr
    for number, (name, loss) in enumerate(losses.items()):
        rows = np.flatnonzero(at > 0)
        while rows.size:
            found, broke = _apgd(case, rows, case.radii[at[rows] - 1], loss, n_steps, number)
            rows, found = rows[broke], found[broke]
            keep(rows, found, at[rows] - 1, name)
            rows = rows[at[rows] > 0]

    rows = np.flatnonzero(at > 0)
    found, broke = _deepfool(case, rows, n_steps)
    index = _smallest_index(case, rows, found)
    # of the same radius of the grid, what is kept is of the attack that looks for small changes
    as_large = broke & (index == at[rows])
    adversarial[rows[as_large]] = found[as_large]
    smaller = broke & (index < at[rows])
    keep(rows[smaller], found[smaller], index[smaller], "deepfool")
    return Broken(at, by, adversarial)


def by_scores(case: Case, begin: np.ndarray, n_queries: int) -> Broken:
    """What the Square attack finds, without a look at gradients; up and down the grid from where one begins.

    Args:
        case: target and images.
        begin: index of the radius to begin with, ``(N,)``; -1 for what is wrong as it is.
        n_queries: of each image at each radius that is tried.
    """
    assert case.balls.norm == "linf"

    def attack(part: np.ndarray, images: Tensor, labels: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        value_range, numbers = case.balls.value_range, case.rows[part]
        return square(case.target, images, labels, sizes, value_range, n_queries, case.seed, numbers)

    bracket = Bracket(len(case.images), case.radii)
    adversarial = case.images.copy()
    rows = np.arange(len(case.images))
    rows = rows[~bracket.learn(rows, begin < 0)]
    bracket.trial[rows] = begin[rows].clip(0, len(case.radii) - 1)
    while rows.size:
        found, broke = _in_batches(case, rows, bracket.radii_of(rows), attack)
        adversarial[rows[broke]] = found[broke]
        rows = rows[~bracket.learn(rows, broke)]
    return Broken(bracket.breaks, np.full(len(begin), "square", dtype=object), adversarial)


def by_labels(case: Case, chosen: np.ndarray, is_wrong: np.ndarray, n_queries: int) -> Broken:
    """What HopSkipJump finds, without a look at scores.

    It begins for each image at the nearest of all others that the target takes for another class, at every look.

    Args:
        case: target and images.
        chosen: numbers of the images that it is tried on, ``(n,)``; others are left as withstanding.
        is_wrong: which are misclassified as they are, bool ``(N,)``.
        n_queries: of each image, at most.
    """
    at, adversarial = np.where(is_wrong, -1, len(case.radii)), case.images.copy()
    flat = case.images.reshape(len(at), -1).astype(np.float64)
    lengths = (flat**2).sum(axis=1)
    distances = lengths[:, None] + lengths - 2 * flat @ flat.T
    for _ in range(1 + FURTHER_LOOKS if getattr(case.target, "n_draws", 1) > 1 else 1):
        distances[case.labels[:, None] == _predicted(case, case.images)] = np.inf
    rows = chosen[~is_wrong[chosen] & np.isfinite(distances[chosen]).any(axis=1)]
    if rows.size:
        images, labels = case.images[rows], case.labels[rows]
        begin = case.images[distances[rows].argmin(axis=1)]
        setting = case.n_classes, case.balls.norm, case.balls.value_range
        found = hop_skip_jump(case.target, images, labels, begin, *setting, n_queries, case.seed)
        index = _smallest_index(case, rows, found)
        kept = index < len(case.radii)
        at[rows[kept]], adversarial[rows[kept]] = index[kept], found[kept]
    return Broken(at, np.full(len(at), "hop_skip_jump", dtype=object), adversarial)


def shortened(case: Case, broken: Broken) -> np.ndarray:
    """Sizes of perturbations, each shortened towards its image as far as it still breaks it, ``(N,)``.

    An upper bound of the distance to the nearest misclassified image, in units of the value range; 0 for what is wrong
    as it is, infinite for what nothing breaks, or where what does is not at hand.

    Args:
        case: target and images.
        broken: what attacks found.
    """
    sizes = np.where(broken.at < 0, 0, np.inf)
    is_at_hand = (broken.adversarial != case.images).any(axis=(1, 2, 3))
    rows = np.flatnonzero((broken.at >= 0) & (broken.at < len(case.radii)) & is_at_hand)

    def attack(part: np.ndarray, images: Tensor, labels: Tensor, _sizes: Tensor) -> tuple[Tensor, Tensor]:
        adversarial = torch.from_numpy(broken.adversarial[part]).to(images.device)
        return halved(case.target, images, labels, adversarial), torch.ones_like(labels, dtype=torch.bool)

    found, _ = _in_batches(case, rows, np.zeros(len(rows)), attack)
    sizes[rows] = perturbation_norms(case.images[rows], found)[case.balls.norm]
    return sizes


def _apgd(
    case: Case, rows: np.ndarray, radii: np.ndarray, loss: Loss, n_steps: int, restart: int
) -> tuple[np.ndarray, np.ndarray]:
    def attack(part: np.ndarray, images: Tensor, labels: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        starts = case.balls.random_starts(images, sizes, case.seed, case.rows[part], np.full(len(part), restart))
        return apgd(case.target, images, labels, sizes, case.balls, loss, n_steps, starts)

    return _in_batches(case, rows, radii, attack)


def _deepfool(case: Case, rows: np.ndarray, n_steps: int) -> tuple[np.ndarray, np.ndarray]:
    def attack(_part: np.ndarray, images: Tensor, labels: Tensor, _sizes: Tensor) -> tuple[Tensor, Tensor]:
        return deepfool(case.target, images, labels, case.balls, n_steps)

    return _in_batches(case, rows, np.zeros(len(rows)), attack)


def _in_batches(case: Case, rows: np.ndarray, radii: np.ndarray, attack: Attempt) -> tuple[np.ndarray, np.ndarray]:
    """Images ``(n, 1, H, W)`` of these rows after an attack, and which are misclassified, bool ``(n,)``."""
    found, broke = case.images[rows], np.zeros(len(rows), dtype=bool)
    device = device_of(case.target)
    for start in range(0, len(rows), case.batch_size):
        part = slice(start, start + case.batch_size)
        images, labels = (torch.from_numpy(of[rows[part]]).to(device) for of in (case.images, case.labels))
        sizes = torch.from_numpy(radii[part].astype(np.float32)).to(device)[:, None, None, None]
        adversarial, is_broken = attack(rows[part], images, labels, sizes)
        found[part], broke[part] = adversarial.cpu().numpy(), is_broken.cpu().numpy()
    return found, broke


def _predicted(case: Case, images: np.ndarray) -> np.ndarray:
    """Classes that the target sees, int64 ``(N,)``."""
    device = device_of(case.target)
    with torch.inference_mode():
        parts = [images[start : start + case.batch_size] for start in range(0, len(images), case.batch_size)]
        logits = torch.cat([case.target(torch.from_numpy(part).to(device)) for part in parts])
    predicted: np.ndarray = logits.argmax(dim=1).cpu().numpy()
    return predicted


def _smallest_index(case: Case, rows: np.ndarray, adversarial: np.ndarray) -> np.ndarray:
    """Index of the smallest radius of the grid that holds each change of these images; R where none does."""
    sizes = perturbation_norms(case.images[rows], adversarial)[case.balls.norm]
    index: np.ndarray = np.searchsorted(case.radii, sizes - TOLERANCE)
    return index
