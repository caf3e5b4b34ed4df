"""Logits and detector scores of images under one target."""

from threading import Lock

import numpy as np
import torch
from torch import nn

from tasks.analysis.detectors import change_of_probabilities
from tasks.defences.preprocessing import AdditiveGaussianNoise
from tasks.defences.purified import Purified
from tasks.models.compute import device_of

BATCH_SIZE = 32

_random_draws = Lock()
"""Held while a random target predicts, because its generator starts anew for every image."""


def predict(target: nn.Module, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Logits and detector scores of images.

    The score is the prediction change: the L1 distance between the probabilities of the image and of the purified image
    (:func:`tasks.analysis.detectors.prediction_change`).

    A random target predicts one image at a time and starts its generator anew for each of them. So the result of an
    image does not depend on the other images.

    Args:
        target: in evaluation mode, on any device.
        images: float32 ``(N, C, H, W)`` in [0, 1].

    Returns:
        Logits, float32 ``(N, K)``, and scores, float32 ``(N,)``; None for a target without a purifier.
    """
    random_layers = [module for module in target.modules() if isinstance(module, AdditiveGaussianNoise)]
    batch_size = 1 if random_layers else BATCH_SIZE
    parts = []
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(images[start : start + batch_size]).to(device_of(target))
        if not random_layers:
            parts.append(_predict_batch(target, batch))
            continue
        with _random_draws:
            for module in random_layers:
                module.reseed([0])
            parts.append(_predict_batch(target, batch))
    scores = [of_batch for _, of_batch in parts if of_batch is not None]
    return np.concatenate([logits for logits, _ in parts]), np.concatenate(scores) if scores else None


def _predict_batch(target: nn.Module, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray | None]:
    with torch.inference_mode():
        logits = target(images)
        if not isinstance(target, Purified):
            return logits.cpu().numpy(), None
        change = change_of_probabilities(target.classifier(images), logits)
        return logits.cpu().numpy(), change.cpu().numpy()
