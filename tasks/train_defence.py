"""Step ``train_defence``: build one defence, and train its autoencoder or classifier if the defence needs it."""

from tasks.core.files import write_json
from tasks.core.workspace import Workspace
from tasks.defences.building import initial_network, save_untrained_parts
from tasks.params import Autoencoder, Defence, DenoisingAutoencoder, Params, PluginDefence, Preprocessing
from tasks.tracking import Tracker


def train_defence(workspace: Workspace, params: Params, tracker: Tracker, defence: str) -> None:
    """Write the purifier or the classifier of a defence, or both, its settings, and the history of its training."""
    settings = params.defences[defence]
    write_json(settings.model_dump(mode="json"), workspace.defence_settings(defence))
    save_untrained_parts(workspace, params, defence)
    if not isinstance(settings, Autoencoder | Preprocessing | PluginDefence):
        train_networks(workspace, params, settings, tracker, defence)


def train_networks(workspace: Workspace, params: Params, settings: Defence, tracker: Tracker, defence: str) -> None:
    """Train the autoencoder or the classifier of a defence and write it."""
    # imported here since they are slow, and a defence without a training needs none of them
    import torch

    from tasks.attacks.adversarial_training import objective_of
    from tasks.core.checkpoints import Checkpoints
    from tasks.dataset.prepared import load_prepared, signature_images
    from tasks.models.autoencoder import build_autoencoder
    from tasks.models.compute import configure_torch
    from tasks.models.files import load_model, save_model
    from tasks.models.loading import check_trainable, load_classifier
    from tasks.models.training import fit

    assert not isinstance(settings, Autoencoder | Preprocessing | PluginDefence)
    device = configure_torch(params.compute)
    data = load_prepared(workspace)
    tracker.dataset(workspace.prepare, "prepared", "training")

    path, model, build_arguments = initial_network(workspace, settings, defence, data, params.seed)
    classifier = load_classifier(workspace, workspace.classifier).to(device)
    if not isinstance(settings, DenoisingAutoencoder):
        check_trainable(classifier, defence, settings.kind)
    autoencoder = load_model(workspace.autoencoder, build_autoencoder).to(device)
    objective, input_transform = objective_of(
        settings, params.train_autoencoder, params.train_classifier.augmentation, classifier, autoencoder
    )

    code = ("attacks/adversarial_training.py", "attacks/gradient", "dataset/prepared.py", "defences", "models")
    checkpoints = Checkpoints(
        workspace.checkpoint_folder("train_defence", defence),
        (*code, "train_defence.py"),
        parameters=params.of_step("train_defence", defence),
        device=str(device),
    )
    trained, history = fit(
        model.requires_grad_(True),
        objective,
        data.pixels,
        data.labels(),
        {split: data.indices(split) for split in ("train", "validation")},
        settings.training,
        params.seed,
        device,
        params.compute.precision,
        checkpoints,
        tracker.epoch,
        classifier,
        autoencoder,
        input_transform=input_transform,
    )
    save_model(path, trained, **build_arguments)
    history.to_csv(workspace.defence_history(defence), index=False)
    tracker.artifact(workspace.defence_history(defence))
    # a TorchScript archive of the user cannot be exported
    if not any(isinstance(module, torch.jit.ScriptModule) for module in trained.modules()):
        tracker.model(defence, trained, signature_images(data))


if __name__ == "__main__":
    from tasks.runner import main

    main(train_defence)
