"""Step ``train_surrogates``: train independent classifiers, as an attacker without access to ours would."""

from functools import partial
from typing import Any

from tasks.core.checkpoints import Checkpoints
from tasks.core.files import write_json
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import load_prepared
from tasks.models.classifier_training import fit_classifier
from tasks.models.compute import configure_torch
from tasks.models.files import save_model
from tasks.models.seeding import surrogate_seed
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
        name, seed = f"{row.architecture}-{position}", surrogate_seed(params.seed, position)
        model, build_arguments, history = fit_classifier(
            data,
            row.training(params.train_classifier),
            seed,
            device,
            params.compute.precision,
            checkpoints,
            partial(tracker.epoch, network=name),
        )
        save_model(workspace.surrogate(name), model, made_for={"classes": list(data.classes)}, **build_arguments)
        history.to_csv(workspace.surrogate_history(name), index=False)
        accuracy = float(history.loc[history["best"] == 1, "validation_accuracy"].iloc[0])
        trained.append({"name": name, "architecture": row.architecture, "seed": seed, "validation_accuracy": accuracy})
    write_json(trained, workspace.surrogates)
    tracker.artifact(workspace.train_surrogates)


if __name__ == "__main__":
    from tasks.runner import main

    main(train_surrogates)
