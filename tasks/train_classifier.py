"""Step ``train_classifier``: train the classifier, or import a trained classifier of the user."""

import tempfile
from pathlib import Path

import torch

from tasks.core.checkpoints import Checkpoints
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import Prepared, load_prepared, signature_images
from tasks.models.classifier_training import fit_classifier
from tasks.models.compute import configure_torch
from tasks.models.files import save_model
from tasks.models.loading import import_classifier
from tasks.models.parity import compare_with_original, history_of_import
from tasks.params import Params
from tasks.tracking import Tracker
from tasks.tracking.imported import download_program


def train_classifier(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    """Train on ``train`` and keep the best epoch on ``validation``, or import; write the weights and the history."""
    device = configure_torch(params.compute)
    data = load_prepared(workspace)
    tracker.dataset(workspace.prepare, "prepared", "training")
    if params.classifier.source != "train":
        import_trained(workspace, params, data, device)
        tracker.artifact(workspace.parity)
        return
    checkpoints = Checkpoints(
        workspace.checkpoint_folder("train_classifier"),
        ("models", "dataset/prepared.py", "train_classifier.py"),
        parameters=params.of_step("train_classifier"),
        device=str(device),
    )
    model, build_arguments, history = fit_classifier(
        data,
        params.train_classifier,
        params.seed,
        device,
        params.compute.precision,
        checkpoints,
        tracker.epoch,
    )
    save_model(workspace.classifier, model, made_for={"classes": list(data.classes)}, **build_arguments)
    history.to_csv(workspace.classifier_history, index=False)
    tracker.artifact(workspace.classifier_history)
    tracker.model("classifier", model, signature_images(data))


def import_trained(workspace: Workspace, params: Params, data: Prepared, device: torch.device) -> None:
    """Import a trained classifier, and compare it with the original one.

    Raises:
        FileNotFoundError: a file of the classifier is missing.
        ValueError: a file is refused, or the outputs differ from those of the original.
    """
    classifier, (n_channels, height, width) = params.classifier, data.pixels.shape[1:]
    with tempfile.TemporaryDirectory() as folder:
        downloaded = download_program(classifier.uri, Path(folder)) if classifier.uri else None
        model, build_arguments = import_classifier(
            classifier, data.classes, data.classes[data.positive], (height, width), n_channels, workspace, downloaded
        )
    compare_with_original(workspace, classifier, model.to(device), data)
    made_for = {"classes": list(data.classes), "positive_class": data.classes[data.positive]}
    save_model(workspace.classifier, model, made_for=made_for, **build_arguments)
    history_of_import(model, data).to_csv(workspace.classifier_history, index=False)


if __name__ == "__main__":
    from tasks.runner import main

    main(train_classifier)
