"""Predictions of a target on given images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tasks.attacks.gradient.losses import N_SELECTION_SAMPLES
from tasks.defences.purified import Purified
from tasks.defences.randomness import random_modules
from tasks.models.compute import device_of
from tasks.records.expected import N_FRESH_SAMPLES


@dataclass(frozen=True)
class Predictions:
    """Outputs of a target on N images; of a random target, the averages of several predictions."""

    logits: np.ndarray
    """float32 ``(N, K)``; of a random target, the log of the mean probabilities of the fresh samples."""
    reconstruction_error: np.ndarray | None
    """Mean squared difference between purified and given image, averaged over all samples of a random purifier,
    float64 ``(N,)``; None without a purifier."""
    fresh: np.ndarray | None = None
    """Logits of the fresh samples of a random target, float32 ``(S, N, K)``; None for a deterministic target."""
    selection: np.ndarray | None = None
    """Logits of other samples, on which the strongest of several attacks is selected, float32 ``(T, N, K)``."""


def predict(model: nn.Module, images: np.ndarray, n_fresh: int = N_FRESH_SAMPLES, n_selection: int = 0) -> Predictions:
    """Logits of a target, and the reconstruction error of its purifier.

    Args:
        model: in evaluation mode, on any device.
        images: one batch, float32 ``(N, C, H, W)`` in [0, 1].
        n_fresh: predictions of a random target.
        n_selection: further predictions of a random target.
    """
    if not random_modules(model):
        return _predict_once(model, images)
    selection, fresh = ([_predict_once(model, images) for _ in range(n)] for n in (n_selection, n_fresh))
    logits = np.stack([sample.logits for sample in fresh])
    errors = [sample.reconstruction_error for sample in fresh if sample.reconstruction_error is not None]
    return Predictions(
        log_mean_probabilities(logits),
        np.mean(errors, axis=0) if errors else None,
        logits,
        np.stack([sample.logits for sample in selection]) if selection else None,
    )


def _predict_once(model: nn.Module, images: np.ndarray) -> Predictions:
    """One prediction, which of a random target is the average of ``n_eot_samples`` draws."""
    with torch.inference_mode():
        batch = torch.from_numpy(images).to(device_of(model))
        if not isinstance(model, Purified):
            return Predictions(model(batch).cpu().numpy(), None)
        purified = [model.purifier(batch) for _ in range(model.n_eot_samples)]
        error = torch.stack([(sample - batch).square().mean(dim=(1, 2, 3)) for sample in purified]).mean(dim=0)
        return Predictions(model.classify(purified).cpu().numpy(), error.cpu().numpy().astype(np.float64))


def log_mean_probabilities(logits: np.ndarray) -> np.ndarray:
    """Log of the mean predicted probabilities of several samples: ``(S, N, K)`` to float32 ``(N, K)``."""
    samples = torch.from_numpy(logits).double()
    averaged: np.ndarray = (samples.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(logits))).float().numpy()
    return averaged


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """Predictions of several batches as one."""

    def of_samples(name: str, axis: int) -> np.ndarray | None:
        arrays = [array for part in parts if (array := getattr(part, name)) is not None]
        return np.concatenate(arrays, axis=axis) if arrays else None

    return Predictions(
        np.concatenate([part.logits for part in parts]),
        of_samples("reconstruction_error", 0),
        of_samples("fresh", 1),
        of_samples("selection", 1),
    )


def predict_attacked(model: nn.Module, images: np.ndarray) -> tuple[Predictions, Predictions]:
    """Predictions on adversarial images, and on the images rounded to 8 bits.

    Of a random target they have samples for the selection among attacks, and fresh ones for the score.
    """
    predictions = predict(model, images, n_selection=N_SELECTION_SAMPLES)
    return predictions, predict(model, round_to_8_bits(images), n_fresh=N_SELECTION_SAMPLES)


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
    for module in random_modules(model):
        module.reseed([seed, *first])
