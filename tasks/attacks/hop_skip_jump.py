"""HopSkipJump, which asks for labels alone (Chen et al. 2020, arXiv 1904.02144), by ART."""

import math
from contextlib import suppress

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.attacks.estimators import ORDERS, estimator_of, numpy_seeded
from tasks.attacks.gradient.descent import misclassified
from tasks.models.compute import device_of

FIRST_EVALUATIONS = 24
"""Queries of the first estimate of a direction; later ones take more, by the root of their number (the paper's 100)."""
BATCH_SIZE = 64


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

    A random model may take a start for the label at one look: then it is asked again. A start that is taken for it each
    time comes back as it is.

    Args:
        model: takes images, returns logits ``(N, K)``; in evaluation mode.
        images: float32 ``(N, 1, H, W)`` within the value range.
        labels: true classes, int ``(N,)``.
        begin: images of which the model says something else than the label, float32 ``(N, 1, H, W)``.
        n_classes: K.
        norm: that is to be small, ``linf`` or ``l2``.
        value_range: lowest and highest value of a pixel.
        n_queries: labels that are asked for, at most, of each image; without those by which
            :func:`tasks.attacks.gradient.descent.misclassified` makes sure of what a random model seems to get wrong.
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
                batch_size=BATCH_SIZE,
                verbose=False,
            )
            # where a look takes the start for the label, ART would draw others, from a generator that nothing seeds
            attack.init_size = 0
            label = np.eye(n_classes, dtype=np.float32)[labels[row : row + 1]]
            with suppress(_AllAsked):
                while True:
                    attack.generate(image[None], label, x_adv_init=found[row : row + 1])
            found[row] = asked.nearest().cpu().numpy()
    return found


class _AllAsked(Exception):
    """So many queries were allowed."""


class _Asked(nn.Module):
    """A target that counts what it is asked about one image, and remembers what it gets wrong, ever nearer.

    What a random target gets wrong by luck is told ART as the label: it would go on from there, where nothing breaks.

    ART's search for the size of a step never ends where the boundary is not smooth (JPEG, few grey levels): the count
    ends it.
    """

    def __init__(self, model: nn.Module, image: Tensor, begin: Tensor, label: int, norm: str, n_queries: int) -> None:
        super().__init__()
        self.model, self.image, self.label, self.n_left = model, image, label, n_queries
        self.order = ORDERS[norm]
        self.trail = [begin]
        self.distance = float((begin - image).flatten().norm(self.order))

    def forward(self, images: Tensor) -> Tensor:
        if self.n_left < len(images):
            raise _AllAsked
        self.n_left -= len(images)
        logits: Tensor = self.model(images)
        labels = torch.full((len(images),), self.label, device=images.device)
        wrong = misclassified(self.model, images, labels, logits)
        distances = (images - self.image).flatten(1).norm(self.order, dim=1)
        distances[~wrong] = math.inf
        if distances.min() < self.distance:
            self.distance = float(distances.min())
            self.trail.append(images[distances.argmin()].clone())
        return torch.where(wrong[:, None], logits, F.one_hot(labels, logits.shape[1]))

    def nearest(self) -> Tensor:
        """The nearest that is wrong; of a random target at further looks, too: of many at the boundary, luck chose."""
        if getattr(self.model, "n_draws", 1) == 1:
            return self.trail[-1]
        latest = torch.stack(self.trail[-BATCH_SIZE:])
        labels = torch.full((len(latest),), self.label, device=latest.device)
        with torch.inference_mode():
            wrong = misclassified(self.model, latest, labels, self.model(latest)).nonzero()[:, 0]
        return latest[wrong[-1]] if len(wrong) else self.trail[0]
