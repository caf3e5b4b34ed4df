"""Attacks on independent surrogates, the classifiers of the step train_surrogates, for transfer to other targets."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tasks.attacks.attacked import Attacked, digest_of_images
from tasks.attacks.gradient.pgd import pgd
from tasks.core.workspace import Workspace
from tasks.models.compute import device_of
from tasks.models.loading import load_classifier, surrogate_names
from tasks.records.adversarial_images import merge_perturbations, quantize, save_perturbations
from tasks.records.perturbation_norms import perturbation_norms

TRANSFERRED = "pgd"
"""The attack on surrogates."""


def load_surrogates(workspace: Workspace, device: torch.device) -> dict[str, nn.Module]:
    """Independent surrogates by name, in evaluation mode, with frozen parameters, in the channels-last layout.

    Raises:
        FileNotFoundError: the step train_surrogates has not run.
    """
    loaded = {name: load_classifier(workspace, workspace.surrogate(name)) for name in surrogate_names(workspace)}
    # torch's stub has no overload with both arguments
    layout: dict[str, Any] = {"device": device, "memory_format": torch.channels_last}
    return {name: model.to(**layout) for name, model in loaded.items()}


def craft_on_surrogate(
    attacked: Attacked, name: str, surrogate: nn.Module, digest: str, rows: np.ndarray
) -> dict[str, Path]:
    """Part: PGD on one surrogate and one batch at every eps; returns the folder of its checkpoint by the name."""
    settings = attacked.settings
    folder = attacked.checkpoints.get_or_compute(
        f"{TRANSFERRED} on {name}, {len(rows)} images at {len(settings.eps)} eps",
        partial(_write_perturbations, attacked, name, surrogate, rows),
        surrogate=[name, digest],
        crafting=settings.pgd.model_dump(mode="json"),
        images=digest_of_images(attacked.data, rows),
    )
    return {name: folder}


def save_transferred(attacked: Attacked, workspace: Workspace, finished: Mapping[str, list[Path]]) -> None:
    """Write the perturbations of each surrogate at every eps, from the checkpoints of its parts."""
    for name, folders in finished.items():
        for eps in attacked.settings.eps:
            path = workspace.transferred_file(name, TRANSFERRED, eps)
            path.parent.mkdir(parents=True, exist_ok=True)
            merge_perturbations([folder / f"eps{eps:g}.npz" for folder in folders], path)


def _write_perturbations(attacked: Attacked, name: str, surrogate: nn.Module, rows: np.ndarray, folder: Path) -> None:
    """Write the perturbations of one batch at every eps, with the random starts of a direct attack."""
    settings, data, device = attacked.settings, attacked.data, device_of(surrogate)
    images = data.floats(rows)
    batch = torch.from_numpy(images).to(device), torch.from_numpy(data.labels(rows)).to(device)
    radii = [attacked.radius(eps) for eps in settings.eps]
    with attacked.naming_images(rows, f"{TRANSFERRED} on the surrogate {name}"):
        crafted = pgd(surrogate, *batch, radii, attacked.ball, settings.pgd, attacked.seed, rows)
        for eps, adversarial in zip(settings.eps, crafted, strict=True):
            perturbations = quantize(data, rows, images, adversarial.cpu().numpy(), settings.norm)
            quantized = perturbations.images()
            attacked.check(eps, quantized, perturbation_norms(images, quantized)[settings.norm], rows)
            save_perturbations(folder / f"eps{eps:g}.npz", perturbations)
