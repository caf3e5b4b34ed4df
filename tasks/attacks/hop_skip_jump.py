"""HopSkipJump, a decision-based attack (Chen et al. 2020, arXiv 1904.02144), as implemented in ART."""

import math
from contextlib import suppress

import art
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.attacks.art_estimator import ART_NORMS, art_estimator, numpy_seeded
from tasks.attacks.batch import AttackBatch, MinimumEps
from tasks.attacks.gradient.losses import misclassified
from tasks.defences.randomness import AveragedPredictions
from tasks.models.compute import device_of

INITIAL_EVALUATIONS = 24
"""Queries of the first estimate of a direction; later estimates take more, by the square root of their number (100 in
the paper)."""
BATCH_SIZE = 64


def run_hop_skip_jump(
    batch: AttackBatch, chosen: np.ndarray, is_misclassified: np.ndarray, n_queries: int
) -> MinimumEps:
    """Search for small perturbations with HopSkipJump.

    The start for each image is the nearest other image of the batch that is predicted as another class.

    Args:
        batch: model and images.
        chosen: row numbers of the images to attack, ``(n,)``; the others are returned as surviving.
        is_misclassified: whether each image is misclassified unchanged, bool ``(N,)``.
        n_queries: maximum number of queries of each image.
    """
    index, adversarial = np.where(is_misclassified, -1, len(batch.radii)), batch.images.copy()
    flat = batch.images.reshape(len(index), -1).astype(np.float64)
    squared_norms = (flat**2).sum(axis=1)
    distances = squared_norms[:, None] + squared_norms - 2 * flat @ flat.T
    distances[batch.labels[:, None] == batch.predictions()] = np.inf
    rows = chosen[~is_misclassified[chosen] & np.isfinite(distances[chosen]).any(axis=1)]
    if rows.size:
        found = hop_skip_jump(
            batch.model,
            batch.images[rows],
            batch.labels[rows],
            batch.images[distances[rows].argmin(axis=1)],
            batch.n_classes,
            batch.ball.norm,
            batch.ball.value_range,
            n_queries,
            batch.seed,
        )
        at = batch.smallest_index(rows, found)
        inside = at < len(batch.radii)
        index[rows[inside]], adversarial[rows[inside]] = at[inside], found[inside]
    return MinimumEps(index, np.full(len(index), "hop_skip_jump", dtype=object), adversarial)


def hop_skip_jump(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    starts: np.ndarray,
    n_classes: int,
    norm: str,
    value_range: tuple[float, float],
    n_queries: int,
    seed: int,
) -> np.ndarray:
    """Move misclassified starts as near to the images as the queries allow; returns float32 ``(N, C, H, W)``.

    A random model may sometimes predict the true class for a start; the attack then queries it again. A start that is
    always predicted as the true class is returned unchanged.

    Args:
        model: takes images, returns logits ``(N, K)``; in evaluation mode.
        images: float32 ``(N, C, H, W)`` within the value range.
        labels: true classes, int ``(N,)``.
        starts: misclassified images, float32 ``(N, C, H, W)``.
        n_classes: K.
        norm: to minimise, ``linf`` or ``l2``.
        value_range: lowest and highest value of a pixel.
        n_queries: maximum number of predictions of each image, without the confirmations of
            :func:`tasks.attacks.gradient.losses.misclassified`.
        seed: of numpy's global generator, from which ART draws.
    """
    found = starts.astype(np.float32)
    with numpy_seeded(seed % 2**32):
        for row, image in enumerate(images):
            device = device_of(model)
            known = torch.from_numpy(image).to(device), torch.from_numpy(found[row]).to(device)
            counted = _QueryCounter(model, *known, int(labels[row]), norm, n_queries)
            estimator = art_estimator(counted, images.shape[1:], n_classes, value_range)
            attack = art.attacks.evasion.HopSkipJump(
                estimator,
                norm=ART_NORMS[norm],
                max_iter=n_queries,
                init_eval=INITIAL_EVALUATIONS,
                batch_size=BATCH_SIZE,
                verbose=False,
            )
            # otherwise ART draws other starts, from a generator that is not seeded
            attack.init_size = 0
            label = np.eye(n_classes, dtype=np.float32)[labels[row : row + 1]]
            with suppress(_QueriesSpent):
                while True:
                    attack.generate(image[None], label, x_adv_init=found[row : row + 1])
            found[row] = counted.nearest().cpu().numpy()
    return found


class _QueriesSpent(Exception):
    """The number of queries is used up."""


class _QueryCounter(nn.Module):
    """A model that counts the queries for one image and keeps the nearest misclassified images.

    A prediction of a random model that is wrong by chance is returned as the true class; otherwise ART would continue
    from an image that is not adversarial. ART's search for a step size does not end where the decision boundary is not
    smooth (JPEG, few grey levels); the limit of queries ends it.
    """

    def __init__(self, model: nn.Module, image: Tensor, start: Tensor, label: int, norm: str, n_queries: int) -> None:
        super().__init__()
        self.model, self.image, self.label, self.n_left = model, image, label, n_queries
        self.order = ART_NORMS[norm]
        self.nearest_so_far = [start]
        self.distance = float((start - image).flatten().norm(self.order))

    def forward(self, images: Tensor) -> Tensor:
        if self.n_left < len(images):
            raise _QueriesSpent
        self.n_left -= len(images)
        logits: Tensor = self.model(images)
        labels = torch.full((len(images),), self.label, device=images.device)
        wrong = misclassified(self.model, images, labels, logits)
        distances = (images - self.image).flatten(1).norm(self.order, dim=1)
        distances[~wrong] = math.inf
        if distances.min() < self.distance:
            self.distance = float(distances.min())
            self.nearest_so_far.append(images[distances.argmin()].clone())
        return torch.where(wrong[:, None], logits, F.one_hot(labels, logits.shape[1]))

    def nearest(self) -> Tensor:
        """The nearest misclassified image; for a random target the nearest that is confirmed by further predictions."""
        if not isinstance(self.model, AveragedPredictions):
            return self.nearest_so_far[-1]
        latest = torch.stack(self.nearest_so_far[-BATCH_SIZE:])
        labels = torch.full((len(latest),), self.label, device=latest.device)
        with torch.inference_mode():
            wrong = misclassified(self.model, latest, labels, self.model(latest)).nonzero()[:, 0]
        return latest[wrong[-1]] if len(wrong) else self.nearest_so_far[0]
