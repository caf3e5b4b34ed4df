"""Step ``train_classifier``: train the classifier, a small CNN or any torchvision classifier."""

import math
from typing import Any

import numpy as np

from tasks.core.checkpoints import Checkpoints
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import load_prepared
from tasks.models.classifier import build_classifier
from tasks.models.compute import configure_torch
from tasks.models.files import save_model
from tasks.models.objectives import classification_objective
from tasks.models.seeding import build_seeded
from tasks.models.training import fit
from tasks.params import Params
from tasks.tracking import Tracker


def train_classifier(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    """Train on ``train``, keep the best epoch on ``validation``; write the weights and the history."""
    settings = params.train_classifier
    device = configure_torch(params.compute)
    data = load_prepared(workspace)
    rows = {split: data.indices(split) for split in ("train", "validation")}
    tracker.dataset(workspace.prepare, "prepared", "training")

    mean, std = mean_and_std(data.pixels, rows["train"])
    build_arguments: dict[str, Any] = {
        "architecture": settings.architecture,
        "n_classes": len(data.classes),
        "mean": mean,
        "std": std,
    }
    untrained = build_seeded(lambda: build_classifier(pretrained=settings.pretrained, **build_arguments), params.seed)

    checkpoints = Checkpoints(
        workspace.checkpoint_folder("train_classifier"),
        ("models", "dataset/prepared.py", "train_classifier.py"),
        parameters=params.of_step("train_classifier"),
        device=str(device),
    )
    model, history = fit(
        untrained,
        classification_objective(settings.augmentation),
        data.pixels,
        data.labels(),
        rows,
        settings,
        params.seed,
        device,
        params.compute.precision,
        checkpoints,
        lambda epoch, metrics: tracker.metrics({f"train/{name}": value for name, value in metrics.items()}, epoch),
    )
    save_model(workspace.classifier, model, **build_arguments)
    history.to_csv(workspace.classifier_history, index=False)
    tracker.artifact(workspace.classifier_history)
    tracker.model("classifier", model, data.floats(np.arange(2)))


def mean_and_std(pixels: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of all pixels of some images, in [0, 1], without loading all images at once.

    Args:
        pixels: uint8 ``(N, 1, H, W)``, may be memory-mapped.
        rows: row numbers of the images, at least one.
    """
    counts = np.zeros(256, dtype=np.int64)
    for row in rows:
        counts += np.bincount(pixels[row].ravel(), minlength=256)
    levels, fractions = np.arange(256), counts / counts.sum()
    mean = float(levels @ counts / counts.sum())
    return mean / 255, math.sqrt((levels - mean) ** 2 @ fractions) / 255


if __name__ == "__main__":
    from tasks.runner import main

    main(train_classifier)
