"""Logits and detector scores of images under one target."""

import secrets
from threading import Lock

import numpy as np
import torch
from torch import nn

from tasks.analysis.detectors import change_of_probabilities
from tasks.defences.purified import Purified
from tasks.defences.randomness import random_modules
from tasks.models.compute import device_of

BATCH_SIZE = 32

_random_draws = Lock()
"""Held while a random target predicts, because its generator starts anew for every image."""


def predict(target: nn.Module, images: np.ndarray, seed: int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Logits and detector scores of images.

    The score is the prediction change: the L1 distance between the probabilities of the image and of the purified image
    (:func:`tasks.analysis.detectors.prediction_change`).

    A random target predicts one image at a time, and its generator is restarted for each image. So the result of an
    image does not depend on the other images. A server passes no seed, because an attacker with the seed could compute
    the draws in advance.

    Args:
        target: in evaluation mode, on any device.
        images: float32 ``(N, C, H, W)`` in [0, 1].
        seed: of the draws for each image, for the same result at every call. None: seeds from the operating system.

    Returns:
        Logits, float32 ``(N, K)``, and scores, float32 ``(N,)``; None for a target without a purifier.
    """
    batch_size = 1 if (random := random_modules(target)) else BATCH_SIZE
    parts = []
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(images[start : start + batch_size]).to(device_of(target))
        if not random:
            parts.append(_predict_batch(target, batch))
            continue
        with _random_draws:
            for module in random:
                # numbers of 32 bits, as in an attack: a plug-in may take one for torch
                module.reseed([secrets.randbits(32) for _ in range(4)] if seed is None else [seed])
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
