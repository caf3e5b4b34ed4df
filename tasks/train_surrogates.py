"""Step ``train_surrogates``: train independent classifiers, as an attacker without access to ours would."""

from functools import partial
from typing import Any

import numpy as np

from tasks.core.checkpoints import Checkpoints
from tasks.core.files import write_json
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import load_prepared
from tasks.models.classifier_training import fit_classifier
from tasks.models.compute import configure_torch
from tasks.models.files import save_model
from tasks.params import Params
from tasks.tracking import Tracker


def train_surrogates(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    """Train every row of ``train_surrogates`` as ``train_classifier``; write the weights, the histories and a list."""
    device = configure_torch(params.compute)
    data = load_prepared(workspace)
    tracker.dataset(workspace.prepare, "prepared", "training")
    checkpoints = Checkpoints(
        workspace.checkpoint_folder("train_surrogates"),
        ("models", "dataset/prepared.py", "train_surrogates.py"),
        compute=[str(device), params.compute.threads],
    )
    trained: list[dict[str, Any]] = []
    for position, row in enumerate(params.train_surrogates, start=1):
        name, seed = f"{row.architecture}-{position}", seed_of(params.seed, position)
        model, build_arguments, history = fit_classifier(
            data,
            row.training(params.train_classifier),
            seed,
            device,
            params.compute.precision,
            checkpoints,
            partial(log_epoch, tracker, name),
        )
        save_model(workspace.surrogate(name), model, made_for={"classes": list(data.classes)}, **build_arguments)
        history.to_csv(workspace.surrogate_history(name), index=False)
        accuracy = float(history.loc[history["best"] == 1, "validation_accuracy"].iloc[0])
        trained.append({"name": name, "architecture": row.architecture, "seed": seed, "validation_accuracy": accuracy})
    write_json(trained, workspace.surrogates)
    tracker.artifact(workspace.train_surrogates)


def log_epoch(tracker: Tracker, name: str, epoch: int, metrics: dict[str, float]) -> None:
    """Log the metrics of an epoch of one surrogate."""
    tracker.metrics({f"train/{name}/{key}": value for key, value in metrics.items()}, epoch)


def seed_of(seed: int, position: int) -> int:
    """Seed of the surrogate at a position, counted from 1: a child of the project's seed, as NumPy spawns them."""
    return int(np.random.SeedSequence(seed, spawn_key=(position,)).generate_state(1)[0])


if __name__ == "__main__":
    from tasks.runner import main

    main(train_surrogates)
