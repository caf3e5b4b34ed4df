"""Predictions of a target on given images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tasks.defences.preprocessing import AdditiveGaussianNoise
from tasks.defences.purified import Purified
from tasks.models.compute import device_of


@dataclass(frozen=True)
class Predictions:
    """Outputs of a target on N images."""

    logits: np.ndarray
    """float32 ``(N, K)``."""
    reconstruction_error: np.ndarray | None
    """Mean squared difference between purified and given image, averaged over all samples of a random purifier,
    float64 ``(N,)``; None without a purifier."""


def predict(model: nn.Module, images: np.ndarray) -> Predictions:
    """Logits of a target, and the reconstruction error of its purifier.

    Args:
        model: in evaluation mode, on any device.
        images: one batch, float32 ``(N, C, H, W)`` in [0, 1].
    """
    with torch.inference_mode():
        batch = torch.from_numpy(images).to(device_of(model))
        if not isinstance(model, Purified):
            return Predictions(model(batch).cpu().numpy(), None)
        purified = [model.purifier(batch) for _ in range(model.n_eot_samples)]
        error = torch.stack([(sample - batch).square().mean(dim=(1, 2, 3)) for sample in purified]).mean(dim=0)
        return Predictions(model.classify(purified).cpu().numpy(), error.cpu().numpy().astype(np.float64))


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """Predictions of several batches as one."""
    errors = [part.reconstruction_error for part in parts if part.reconstruction_error is not None]
    return Predictions(np.concatenate([part.logits for part in parts]), np.concatenate(errors) if errors else None)


def round_to_8_bits(images: np.ndarray) -> np.ndarray:
    """Images in [0, 1] rounded to the 256 levels of an 8-bit file, float32 ``(N, C, H, W)``."""
    rounded: np.ndarray = np.rint(images * np.float32(255)) / np.float32(255)
    return rounded


def seed_random_defences(model: nn.Module, seed: int, image_ids: np.ndarray | None = None) -> None:
    """Seed the random modules of a target, so that a part of an attack does not depend on the parts before it.

    Args:
        model: target; nothing happens if it is not random.
        seed: of the whole attack.
        image_ids: rows of the images of this part; the first of them is added to the seed.
    """
    first = [] if image_ids is None else [int(image_ids[0])]
    for module in model.modules():
        if isinstance(module, AdditiveGaussianNoise):
            module.reseed([seed, *first])
