"""Images that are attacked together, and the result: the smallest radius of a grid that breaks each image."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tasks.attacks.gradient.losses import misclassified
from tasks.attacks.gradient.norm_ball import NormBall
from tasks.models.compute import device_of
from tasks.records.perturbation_norms import TOLERANCE, perturbation_norms

Attempt = Callable[[np.ndarray, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""``(rows, images, labels, radii) -> (adversarial images, whether each is misclassified)``, all of one batch.

``rows`` are row numbers within an :class:`AttackBatch`, radii ``(N, 1, 1, 1)``.
"""

N_BISECTIONS = 8
"""Bisections of the line between an image and its adversarial example."""


@dataclass(frozen=True)
class AttackBatch:
    """A model and N images that it is attacked on."""

    model: nn.Module
    """White box: takes images and returns logits ``(N, K)``; in evaluation mode, parameters frozen."""
    images: np.ndarray
    """float32 ``(N, C, H, W)`` within the value range."""
    labels: np.ndarray
    """True classes, int64 ``(N,)``."""
    n_classes: int
    radii: np.ndarray
    """Radii of the grid, rising, in units of the value range, ``(R,)``."""
    ball: NormBall
    batch_size: int
    """Images of one forward pass."""
    seed: int
    image_ids: np.ndarray
    """Row numbers of the images in the prepared table, ``(N,)``; with the seed they determine the random starts."""

    def run(self, rows: np.ndarray, radii: np.ndarray, attempt: Attempt) -> tuple[np.ndarray, np.ndarray]:
        """Attack some of the images in batches.

        Args:
            rows: row numbers of the images, ``(n,)``.
            radii: radius of the ball of each, ``(n,)``.
            attempt: the attack.

        Returns:
            Adversarial images ``(n, C, H, W)``, and whether each is misclassified, bool ``(n,)``.
        """
        adversarial, broken = self.images[rows], np.zeros(len(rows), dtype=bool)
        device = device_of(self.model)
        for start in range(0, len(rows), self.batch_size):
            part = slice(start, start + self.batch_size)
            images, labels = (torch.from_numpy(of[rows[part]]).to(device) for of in (self.images, self.labels))
            sizes = torch.from_numpy(radii[part].astype(np.float32)).to(device)[:, None, None, None]
            found, success = attempt(rows[part], images, labels, sizes)
            adversarial[part], broken[part] = found.cpu().numpy(), success.cpu().numpy()
        return adversarial, broken

    def predictions(self) -> np.ndarray:
        """Predicted classes of all images, int64 ``(N,)``."""
        device = device_of(self.model)
        with torch.inference_mode():
            starts = range(0, len(self.images), self.batch_size)
            parts = [self.images[start : start + self.batch_size] for start in starts]
            logits = torch.cat([self.model(torch.from_numpy(part).to(device)) for part in parts])
        predicted: np.ndarray = logits.argmax(dim=1).cpu().numpy()
        return predicted

    def misclassified_unchanged(self) -> np.ndarray:
        """Return which images are misclassified unchanged, bool ``(N,)``."""

        def unchanged(_rows: np.ndarray, images: Tensor, labels: Tensor, _radii: Tensor) -> tuple[Tensor, Tensor]:
            with torch.inference_mode():
                return images, misclassified(self.model, images, labels, self.model(images))

        n_images = len(self.images)
        return self.run(np.arange(n_images), np.zeros(n_images), unchanged)[1]

    def extended(self, rows: np.ndarray, adversarial: np.ndarray, radii: np.ndarray) -> np.ndarray:
        """Return perturbed images whose perturbations fill larger balls, clipped to the value range.

        Args:
            rows: row numbers of the images, ``(n,)``.
            adversarial: perturbed images, each with a perturbation other than 0, ``(n, C, H, W)``.
            radii: radius of the ball of each, ``(n,)``.
        """
        images = torch.from_numpy(self.images[rows])
        changes = torch.from_numpy(adversarial) - images
        sizes = torch.from_numpy(radii.astype(np.float32))[:, None, None, None]
        changes *= sizes / self.ball.size(changes)[:, None, None, None]
        return self.ball.project(images + changes, images, sizes).numpy()

    def smallest_index(self, rows: np.ndarray, adversarial: np.ndarray) -> np.ndarray:
        """Index of the smallest radius of the grid that contains each perturbation, R if none does.

        Args:
            rows: row numbers of the images, ``(n,)``.
            adversarial: perturbed images, ``(n, C, H, W)``.
        """
        sizes = perturbation_norms(self.images[rows], adversarial)[self.ball.norm]
        index: np.ndarray = np.searchsorted(self.radii, sizes - TOLERANCE)
        return index


@dataclass(frozen=True)
class MinimumEps:
    """The result of attacks on N images over R radii."""

    index: np.ndarray
    """Index of the smallest radius that breaks the image, int64 ``(N,)``; -1: misclassified unchanged; R: none does."""
    found_by: np.ndarray
    """Name of the attack that broke the image there, ``(N,)``."""
    adversarial: np.ndarray
    """The image that is misclassified there, float32 ``(N, C, H, W)``; the image itself where no radius breaks it."""


def improve(batch: AttackBatch, found: MinimumEps, name: str, attempt: Attempt) -> MinimumEps:
    """Attack images in the largest ball that each has survived, and in the next smaller one while it is broken.

    Args:
        batch: model and images.
        found: result of the attacks before.
        name: of the attack.
        attempt: the attack in a ball.
    """
    index, found_by, adversarial = found.index.copy(), found.found_by.astype(object), found.adversarial.copy()
    rows = np.flatnonzero(index > 0)
    while rows.size:
        images, broken = batch.run(rows, batch.radii[index[rows] - 1], attempt)
        rows = rows[broken]
        index[rows], found_by[rows], adversarial[rows] = index[rows] - 1, name, images[broken]
        rows = rows[index[rows] > 0]
    return MinimumEps(index, found_by, adversarial)


def keep_smaller(
    batch: AttackBatch, found: MinimumEps, name: str, rows: np.ndarray, adversarial: np.ndarray
) -> MinimumEps:
    """Keep the adversarial images that are nearer to their images than those of an earlier result.

    Args:
        batch: model and images.
        found: result of the attacks before.
        name: of the attack.
        rows: row numbers of the images, ``(n,)``.
        adversarial: misclassified images, ``(n, C, H, W)``.
    """
    index, found_by, kept = found.index.copy(), found.found_by.astype(object), found.adversarial.copy()
    at = batch.smallest_index(rows, adversarial)
    known, sizes = (
        perturbation_norms(batch.images[rows], images)[batch.ball.norm] for images in (kept[rows], adversarial)
    )
    # an adversarial image that was not kept equals its image
    nearer = (at < index[rows]) | ((at == index[rows]) & (at < len(batch.radii)) & ((known == 0) | (sizes < known)))
    smaller = at < index[rows]
    found_by[rows[smaller]] = name
    index[rows[smaller]], kept[rows[nearer]] = at[smaller], adversarial[nearer]
    return MinimumEps(index, found_by, kept)


@torch.inference_mode()
def bisect_to_boundary(model: nn.Module, images: Tensor, labels: Tensor, adversarial: Tensor) -> Tensor:
    """Move misclassified images towards their originals for as long as they stay misclassified.

    The line between the two is bisected ``N_BISECTIONS`` times.

    Args:
        model: takes images, returns logits ``(N, K)``; in evaluation mode.
        images: float32 ``(N, C, H, W)``.
        labels: true classes, int64 ``(N,)``.
        adversarial: misclassified images, ``(N, C, H, W)``.
    """
    inner, outer = images, adversarial
    for _ in range(N_BISECTIONS):
        middle = (inner + outer) / 2
        success = misclassified(model, middle, labels, model(middle))[:, None, None, None]
        inner, outer = torch.where(success, inner, middle), torch.where(success, middle, outer)
    return outer


def shrink(batch: AttackBatch, found: MinimumEps) -> np.ndarray:
    """Norms of the perturbations, each moved towards its image while the image stays misclassified, ``(N,)``.

    An upper bound of the distance to the nearest misclassified image, in units of the value range; 0 for images that
    are misclassified unchanged; infinite where no attack succeeded or the adversarial image was not kept.

    Args:
        batch: model and images.
        found: result of attacks on the batch.
    """
    norms = np.where(found.index < 0, 0, np.inf)
    is_kept = (found.adversarial != batch.images).any(axis=(1, 2, 3))
    rows = np.flatnonzero((found.index >= 0) & (found.index < len(batch.radii)) & is_kept)

    def attempt(part: np.ndarray, images: Tensor, labels: Tensor, _radii: Tensor) -> tuple[Tensor, Tensor]:
        adversarial = torch.from_numpy(found.adversarial[part]).to(images.device)
        nearest = bisect_to_boundary(batch.model, images, labels, adversarial)
        return nearest, torch.ones_like(labels, dtype=torch.bool)

    nearest, _ = batch.run(rows, np.zeros(len(rows)), attempt)
    norms[rows] = perturbation_norms(batch.images[rows], nearest)[batch.ball.norm]
    return norms
