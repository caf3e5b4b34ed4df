"""Attack on features: move the penultimate features of an image towards those of an image of another class.

Sabour et al. 2016, "Adversarial Manipulation of Deep Representations" (arXiv 1511.05122). The loss does not use the
logits. So the attack has a gradient where the classification head has none, and a direction other than the margin's.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tasks.attacks.batch import AttackBatch
from tasks.attacks.objectives import Objective
from tasks.models.compute import device_of
from tasks.models.features import LogitsAndFeatures


@dataclass(frozen=True)
class FeatureTargets:
    """The model with its features, and for each image the images whose features the attack approaches."""

    model: LogitsAndFeatures
    features: np.ndarray
    """Features of the N images of the batch, unchanged, float32 ``(N, D)``."""
    guides: np.ndarray
    """Row numbers of the nearest images that are predicted as another class than the true class of the image, nearest
    first, int64 ``(N, G)``; G is the smallest number of such images."""

    @classmethod
    def of(cls, batch: AttackBatch, max_guides: int) -> "FeatureTargets | None":
        """Features and guides of a batch; None if the model has no features or an image has no guide.

        Args:
            batch: model and images; guides are images of the same batch.
            max_guides: maximum of G, at least 1.
        """
        try:
            model = LogitsAndFeatures(batch.model).eval()
        except ValueError:
            return None
        device, parts = device_of(batch.model), []
        with torch.inference_mode():
            for start in range(0, len(batch.images), batch.batch_size):
                images = torch.from_numpy(batch.images[start : start + batch.batch_size]).to(device)
                parts.append([output.cpu().numpy() for output in model(images)])
        logits, features = (np.concatenate(outputs) for outputs in zip(*parts, strict=True))
        is_other = batch.labels[:, None] != logits.argmax(axis=1)
        n_guides = min(int(is_other.sum(axis=1).min()), max_guides)
        if n_guides == 0:
            return None
        squared = np.square(features).sum(axis=1)
        distances = squared[:, None] + squared - 2 * features @ features.T
        nearest = np.argsort(np.where(is_other, distances, np.inf), axis=1, kind="stable")
        return cls(model, features, nearest[:, :n_guides])

    def objective(self, rows: np.ndarray, rank: int) -> Objective:
        """The progress of the features on the line from the unchanged image to a guide.

        Args:
            rows: row numbers of the images that are attacked, ``(n,)``.
            rank: of the guide, from 0 for the nearest; a rank of G begins again with the nearest.
        """
        guides = self.guides[rows, rank % self.guides.shape[1]]
        device = device_of(self.model)
        ends = torch.from_numpy(self.features[guides]).to(device)

        def objective(images: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
            logits, features = self.model(images)
            return -(features - ends[positions]).square().sum(dim=1), logits

        return objective
