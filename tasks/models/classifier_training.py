"""Training of a classifier on the prepared images, for the classifier under attack and for surrogates."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from tasks.core.checkpoints import Checkpoints
from tasks.dataset.prepared import Prepared
from tasks.models.classifier import build_classifier
from tasks.models.objectives import classification_objective
from tasks.models.seeding import build_seeded
from tasks.models.training import fit
from tasks.params import Precision, TrainClassifier


def fit_classifier(
    data: Prepared,
    settings: TrainClassifier,
    seed: int,
    device: torch.device,
    precision: Precision,
    checkpoints: Checkpoints,
    on_epoch: Callable[[int, dict[str, float]], None],
) -> tuple[nn.Module, dict[str, Any], pd.DataFrame]:
    """Train a classifier on ``train`` and keep the best epoch on ``validation``.

    Args:
        data: prepared images.
        settings: architecture and training.
        seed: of the initial weights, the order of the images and the augmentation.
        device: of the training.
        precision: of the training steps.
        checkpoints: of the step.
        on_epoch: called after every epoch with its number, from 1, and its metrics.

    Returns:
        The classifier of the best epoch, the arguments that build it, and the history of the training; see
        :func:`tasks.models.training.fit`.
    """
    rows = {split: data.indices(split) for split in ("train", "validation")}
    mean, std = mean_and_std(data.pixels, rows["train"])
    build_arguments: dict[str, Any] = {
        "architecture": settings.architecture,
        "n_classes": len(data.classes),
        "mean": mean,
        "std": std,
        **data.channel_argument,
    }
    untrained = build_seeded(lambda: build_classifier(pretrained=settings.pretrained, **build_arguments), seed)
    objective = classification_objective(settings.augmentation)
    trained, history = fit(
        untrained, objective, data.pixels, data.labels(), rows, settings, seed, device, precision, checkpoints, on_epoch
    )
    return trained, build_arguments, history


def mean_and_std(pixels: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of all pixels of some images, in [0, 1], without loading all images at once.

    Args:
        pixels: uint8 ``(N, C, H, W)``, may be memory-mapped.
        rows: row numbers of the images, at least one.
    """
    counts = np.zeros(256, dtype=np.int64)
    for row in rows:
        counts += np.bincount(pixels[row].ravel(), minlength=256)
    levels, fractions = np.arange(256), counts / counts.sum()
    mean = float(levels @ counts / counts.sum())
    return mean / 255, math.sqrt((levels - mean) ** 2 @ fractions) / 255
