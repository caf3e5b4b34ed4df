"""Step ``train_classifier``: a CNN, or any torchvision classifier, on the training slices."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks import paths
from tasks.dataset.prepared import load_prepared
from tasks.models.augmentation import augment
from tasks.models.classifier import build_classifier
from tasks.models.compute import set_up
from tasks.models.files import save_model
from tasks.models.training import Objective, build_seeded, fit
from tasks.params import Params, TrainClassifier
from tasks.tracking import Tracker


def train_classifier(params: Params, tracker: Tracker) -> None:
    """Train on ``train``, keep the best epoch on ``validation``; write the weights and the history."""
    settings = params.train_classifier
    device = set_up(params.compute)
    data = load_prepared()
    rows = {split: data.indices(split) for split in ("train", "validation")}
    tracker.dataset(paths.PREPARE, "prepared", "training")

    mean, std = mean_and_std(data.pixels, rows["train"])
    build: dict[str, Any] = {
        "architecture": settings.architecture,
        "n_classes": len(data.classes),
        "mean": mean,
        "std": std,
    }
    untrained = build_seeded(lambda: build_classifier(pretrained=settings.pretrained, **build), params.seed)

    model, history = fit(
        untrained,
        objective(settings),
        data.pixels,
        data.labels(),
        rows,
        settings,
        params.seed,
        device,
        paths.checkpoint_folder("train_classifier") / "state.pt",
        lambda epoch, metrics: tracker.metrics({f"train/{name}": value for name, value in metrics.items()}, epoch),
    )
    save_model(paths.CLASSIFIER, model, **build)
    history.to_csv(paths.CLASSIFIER_HISTORY, index=False)
    tracker.artifact(paths.CLASSIFIER_HISTORY)
    tracker.model("classifier", model, data.floats(np.arange(2)))


def objective(settings: TrainClassifier) -> Objective:
    """Cross-entropy and accuracy; images that are trained on are augmented."""

    def measure(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        if model.training:
            images = augment(images, settings.augmentation, generator)
        logits = model(images)
        return {"loss": F.cross_entropy(logits, labels), "accuracy": (logits.argmax(dim=1) == labels).float().mean()}

    return measure


def mean_and_std(pixels: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
    """Of all pixels of these images, in [0, 1]; one image after the other is read.

    Args:
        pixels: uint8 ``(N, 1, H, W)``, may be memory-mapped.
        rows: which images, at least one.
    """
    counts = np.zeros(256, dtype=np.int64)
    for row in rows:
        counts += np.bincount(pixels[row].ravel(), minlength=256)
    levels, shares = np.arange(256), counts / counts.sum()
    mean = float(levels @ counts / counts.sum())
    return mean / 255, math.sqrt((levels - mean) ** 2 @ shares) / 255


if __name__ == "__main__":
    from tasks.runner import main

    main(train_classifier)
