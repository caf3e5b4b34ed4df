"""A workspace with prepared images of three classes and two small networks trained on them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.core.files import write_json
from tasks.core.workspace import SCHEMA_VERSION, Workspace
from tasks.models.autoencoder import build_autoencoder
from tasks.models.classifier import build_classifier
from tasks.models.files import save_model
from tests.conftest import VALUES
from tests.plausible_attack import write_leakage

CLASSES = ["none", "left", "right"]
SIDE = 32
DEFENCES = ["autoencoder", "retrained_autoencoder"]
SMALL = {
    "compute.threads": 1,
    "compute.device": "cpu",
    "attack.eps": [0.5, 4],
    "attack.saved_eps": [4],
    "analyze.eps": 4,
    "analyze.detector_evasion.eps": [],
    "attack.pgd.n_steps": 3,
    "attack.batch_size": 16,
}


def draw_images() -> tuple[np.ndarray, pd.DataFrame]:
    """96 noisy images of three classes: no half is brighter, the left half, or the right half; a third is for tests."""
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1, 2, 1], 24)
    pixels = rng.normal(110, 25, (96, 1, SIDE, SIDE))
    pixels[labels == 1, :, :, : SIDE // 2] += 9
    pixels[labels == 2, :, :, SIDE // 2 :] += 9
    table = pd.DataFrame(
        {
            "path": [f"{CLASSES[label]}/{i:03d} (a).png" for i, label in enumerate(labels)],
            "class": [CLASSES[label] for label in labels],
            "label": labels,
            "group": np.arange(96),
            "near_duplicate_group": np.arange(96),
            "split": ["train"] * 56 + ["validation"] * 8 + ["test"] * 32,
        }
    )
    return np.clip(pixels, 0, 255).astype(np.uint8), table


def make_small_workspace(folder: Path) -> None:
    """Write prepared images and two small networks trained on them below a folder."""
    workspace = Workspace(folder)
    defence_folders = [workspace.step_folder("train_defence", defence) for defence in DEFENCES]
    networks = (workspace.train_classifier, workspace.train_surrogates, workspace.train_autoencoder)
    for step in (workspace.prepare, *networks, *defence_folders):
        step.mkdir(parents=True)
    write_json([], workspace.surrogates)
    pixels, table = draw_images()
    np.save(workspace.pixels, pixels)
    table.to_parquet(workspace.split)
    info = {"schema_version": SCHEMA_VERSION, "classes": CLASSES, "positive_class": "left", "is_phantom": True}
    info["value_range"] = [0.0, 1.0]
    leakage = {"near_duplicate_in_train": 0.0, "group_in_train": 0.0}
    workspace.dataset_info.write_text(json.dumps(info | {"leakage": leakage}))
    write_leakage(workspace, np.flatnonzero(table["split"] == "test"))

    torch.manual_seed(0)
    torch.set_num_threads(1)
    images = torch.from_numpy(pixels[:32]).float() / 255
    labels = torch.from_numpy(table["label"].to_numpy(copy=True)[:32])
    build: dict[str, Any] = {"architecture": "cnn", "n_classes": 3, "mean": 0.45, "std": 0.1}
    classifier, autoencoder = build_classifier(**build), build_autoencoder("plain")
    trainings: list[tuple[nn.Module, Callable[[nn.Module], Tensor]]] = [
        (classifier, lambda model: functional.cross_entropy(model(images), labels)),
        (autoencoder, lambda model: functional.mse_loss(model(images + 0.1 * torch.randn_like(images)), images)),
    ]
    for model, loss_of in trainings:
        parameters = list(model.parameters())
        for _ in range(25):
            # sign descent: the optimisers of torch take seconds to import
            gradients = torch.autograd.grad(loss_of(model), parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(0.002 * gradient.sign())
    save_model(workspace.classifier, classifier, **build)
    for defence in DEFENCES:
        workspace.defence_settings(defence).write_text(json.dumps(VALUES["defences"][defence]))
    for path in (workspace.autoencoder, *map(workspace.purifier, DEFENCES)):
        save_model(path, autoencoder, architecture="plain")
        # each purifier has other weights
        with torch.no_grad():
            next(autoencoder.parameters()).mul_(0.9)
