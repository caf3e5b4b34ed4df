"""Attack on features: move the penultimate features of an image in the direction of an image of another class.

The direction is that of Sabour et al. 2016, "Adversarial Manipulation of Deep Representations" (arXiv 1511.05122), the
loss the projection on it, as in the intermediate level attack (Huang et al. 2019, arXiv 1907.10823). The squared
distance of Sabour et al. breaks fewer images near their decision boundary. The loss does not use the logits. So the
attack has a gradient where the classification head has none, and a direction other than that of the margin.
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
    """A model with its features, and for each image of a batch the images whose features the attack approaches."""

    model: LogitsAndFeatures
    features: np.ndarray
    """Features of the N images of the batch, unchanged, float32 ``(N, D)``."""
    guides: np.ndarray
    """Row numbers of all images by their distance in features, nearest first, int64 ``(N, N)``. The first ``n_guides``
    are predicted as another class than the true class of the image."""
    n_guides: np.ndarray
    """int64 ``(N,)``, at least 1."""

    @classmethod
    def of(cls, batch: AttackBatch) -> "FeatureTargets | None":
        """Features and guides of a batch; None if the model has no features, or an image has no guide in the batch."""
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
        n_guides = is_other.sum(axis=1)
        if not n_guides.all():
            return None
        squared = np.square(features).sum(axis=1)
        distances = squared[:, None] + squared - 2 * features @ features.T
        return cls(model, features, np.where(is_other, distances, np.inf).argsort(axis=1, kind="stable"), n_guides)

    def objective(self, rows: np.ndarray, rank: int) -> Objective:
        """The projection of the change of the features on the line to the features of a guide.

        Args:
            rows: row numbers of the images that are attacked, ``(n,)``.
            rank: of the guide, from 0 for the nearest; after the last guide follows the nearest.
        """
        guides = self.guides[rows, rank % self.n_guides[rows]]
        device = device_of(self.model)
        unchanged, ends = (torch.from_numpy(self.features[of]).to(device) for of in (rows, guides))
        directions = ends - unchanged

        def objective(images: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
            logits, features = self.model(images)
            return ((features - unchanged[positions]) * directions[positions]).sum(dim=1), logits

        return objective
