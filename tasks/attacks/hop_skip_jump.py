"""HopSkipJump, which asks for labels alone (Chen et al. 2020, arXiv 1904.02144), by ART."""

import math
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor, nn

from tasks.attacks.estimators import ORDERS, estimator_of, numpy_seeded
from tasks.models.compute import device_of

FIRST_EVALUATIONS = 24
"""Queries of the first estimate of a direction; later ones take more, by the root of their number (the paper's 100)."""


def hop_skip_jump(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    begin: np.ndarray,
    n_classes: int,
    norm: str,
    value_range: tuple[float, float],
    n_queries: int,
    seed: int,
) -> np.ndarray:
    """Misclassified images as near to the originals as so many queries bring them, float32 ``(N, 1, H, W)``.

    Args:
        model: takes images, returns logits ``(N, K)``; in evaluation mode.
        images: float32 ``(N, 1, H, W)`` within the value range.
        labels: true classes, int ``(N,)``.
        begin: images of which the model says something else than the label, float32 ``(N, 1, H, W)``.
        n_classes: K.
        norm: that is to be small, ``linf`` or ``l2``.
        value_range: lowest and highest value of a pixel.
        n_queries: labels that are asked for, at most, of each image.
        seed: of numpy's global generator, from which ART draws.
    """
    import art

    found = begin.astype(np.float32)
    with numpy_seeded(seed):
        for row, image in enumerate(images):
            device = device_of(model)
            known = torch.from_numpy(image).to(device), torch.from_numpy(found[row]).to(device)
            asked = _Asked(model, *known, int(labels[row]), norm, n_queries)
            estimator = estimator_of(asked, images.shape[1:], n_classes, value_range)
            attack = art.attacks.evasion.HopSkipJump(
                estimator,
                norm=ORDERS[norm],
                max_iter=n_queries,
                init_eval=FIRST_EVALUATIONS,
                batch_size=64,
                verbose=False,
            )
            label = np.eye(n_classes, dtype=np.float32)[labels[row : row + 1]]
            with suppress(_AllAsked):
                attack.generate(image[None], label, x_adv_init=found[row : row + 1])
            found[row] = asked.nearest.cpu().numpy()
    return found


class _AllAsked(Exception):
    """So many queries were allowed."""


class _Asked(nn.Module):
    """A target that counts what it is asked about one image, and remembers the nearest that it gets wrong.

    ART's search for the size of a step never ends where the boundary is not smooth (JPEG, few grey levels): the count
    ends it.
    """

    def __init__(self, model: nn.Module, image: Tensor, begin: Tensor, label: int, norm: str, n_queries: int) -> None:
        super().__init__()
        self.model, self.image, self.label, self.n_left = model, image, label, n_queries
        self.order = ORDERS[norm]
        self.nearest = begin
        self.distance = float((begin - image).flatten().norm(self.order))

    def forward(self, images: Tensor) -> Tensor:
        if self.n_left < len(images):
            raise _AllAsked
        self.n_left -= len(images)
        logits: Tensor = self.model(images)
        distances = (images - self.image).flatten(1).norm(self.order, dim=1)
        distances[logits.argmax(dim=1) == self.label] = math.inf
        if distances.min() < self.distance:
            self.distance = float(distances.min())
            self.nearest = images[distances.argmin()].clone()
        return logits
