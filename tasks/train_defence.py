"""Step ``train_defence``: build one defence, and train its autoencoder or classifier if the defence needs it."""

from typing import Any

from tasks.core.files import write_json
from tasks.core.workspace import Workspace
from tasks.models.files import copy_model, load_build_arguments
from tasks.params import (
    AdversarialTraining,
    Autoencoder,
    Defence,
    DenoisingAutoencoder,
    FeatureGuidedAutoencoder,
    FinetunedClassifier,
    JointAutoencoder,
    Params,
    PluginDefence,
    Preprocessing,
    RandomizedSmoothing,
    RetrainedAutoencoder,
    Trades,
    TrainedAutoencoder,
)
from tasks.tracking import Tracker


def train_defence(workspace: Workspace, params: Params, tracker: Tracker, defence: str) -> None:
    """Write the purifier or the classifier of a defence, or both, its settings, and the history of its training."""
    settings = params.defences[defence]
    write_json(settings.model_dump(mode="json"), workspace.defence_settings(defence))
    match settings:
        case Autoencoder():
            copy_model(workspace.autoencoder, workspace.purifier(defence))
        case Preprocessing():
            steps = [transform.model_dump(mode="json") for transform in settings.transforms]
            has_autoencoder = settings.applied_before == "autoencoder"
            save_preprocessing(workspace, defence, steps, settings.n_eot_samples, has_autoencoder)
        case PluginDefence():
            from tasks.dataset.prepared import load_prepared
            from tasks.defences.plugins import save_plugin
            from tasks.models.compute import configure_torch

            configure_torch(params.compute)
            save_plugin(workspace, settings, load_prepared(workspace), defence, params.seed)
        case RandomizedSmoothing():
            steps = [{"kind": "gaussian_noise", "std": settings.std}]
            save_preprocessing(workspace, defence, steps, settings.n_eot_samples)
            train_networks(workspace, params, settings, tracker, defence)
        case FinetunedClassifier():
            copy_model(workspace.autoencoder, workspace.purifier(defence))
            train_networks(workspace, params, settings, tracker, defence)
        case _:
            train_networks(workspace, params, settings, tracker, defence)


def save_preprocessing(
    workspace: Workspace, defence: str, steps: list[dict[str, Any]], n_eot_samples: int, has_autoencoder: bool = False
) -> None:
    """Write a purifier of transforms, optionally followed by the autoencoder of ``train_autoencoder``.

    Args:
        workspace: where inputs are read and outputs written.
        defence: name of the defence.
        steps: transforms as in ``params.yaml``.
        n_eot_samples: number of forward passes whose predictions are averaged; 1 if no transform is random.
        has_autoencoder: append the autoencoder.
    """
    from tasks.defences.preprocessing import build_purifier
    from tasks.models.autoencoder import build_autoencoder
    from tasks.models.files import load_model, save_model
    from tasks.models.seeding import build_seeded

    # its architecture, and its channels unless they are grey
    of_autoencoder = load_build_arguments(workspace.autoencoder) if has_autoencoder else {"architecture": None}
    arguments = of_autoencoder | {"steps": steps, "n_eot_samples": n_eot_samples}
    purifier = build_seeded(lambda: build_purifier(**arguments))
    if has_autoencoder:
        trained = load_model(workspace.autoencoder, build_autoencoder)
        purifier.get_submodule(str(len(steps))).load_state_dict(trained.state_dict())
    save_model(workspace.purifier(defence), purifier, **arguments)


def train_networks(workspace: Workspace, params: Params, settings: Defence, tracker: Tracker, defence: str) -> None:
    """Train the autoencoder or the classifier of a defence and write it.

    A classifier starts from the weights of ``train_classifier``. An autoencoder starts from those of
    ``train_autoencoder`` if it has the same architecture, otherwise from random weights.
    """
    import torch

    from tasks.attacks.adversarial_training import (
        feature_guided_objective,
        joint_training_objective,
        retraining_objective,
        robust_training_objective,
    )
    from tasks.core.checkpoints import Checkpoints
    from tasks.dataset.prepared import load_prepared, signature_images
    from tasks.models.autoencoder import build_autoencoder
    from tasks.models.compute import configure_torch
    from tasks.models.files import load_model, save_model
    from tasks.models.loading import check_trainable, load_classifier
    from tasks.models.objectives import (
        classification_objective,
        denoising_objective,
        gaussian_noise_transform,
        purified_noise_transform,
    )
    from tasks.models.seeding import build_seeded
    from tasks.models.training import InputTransform, fit, no_transform

    assert not isinstance(settings, Autoencoder | Preprocessing | PluginDefence)
    device = configure_torch(params.compute)
    data = load_prepared(workspace)
    tracker.dataset(workspace.prepare, "prepared", "training")

    if isinstance(settings, TrainedAutoencoder):
        path = workspace.purifier(defence)
        build_arguments: dict[str, Any] = {"architecture": settings.architecture, **data.channel_argument}
        if build_arguments == load_build_arguments(workspace.autoencoder):
            model = load_model(workspace.autoencoder, build_autoencoder)
        else:
            model = build_seeded(lambda: build_autoencoder(**build_arguments), params.seed)
    else:
        path, build_arguments = workspace.defended_classifier(defence), load_build_arguments(workspace.classifier)
        model = load_classifier(workspace, workspace.classifier)

    noise_settings, augmentation = params.train_autoencoder, params.train_classifier.augmentation
    classifier = load_classifier(workspace, workspace.classifier).to(device)
    if not isinstance(settings, DenoisingAutoencoder):
        check_trainable(classifier, defence, settings.kind)
    autoencoder = load_model(workspace.autoencoder, build_autoencoder).to(device)
    input_transform: InputTransform = no_transform
    match settings:
        case DenoisingAutoencoder():
            objective = denoising_objective(noise_settings)
        case RetrainedAutoencoder():
            objective = retraining_objective(classifier, settings, noise_settings)
        case FeatureGuidedAutoencoder():
            objective = feature_guided_objective(classifier, settings, noise_settings)
        case JointAutoencoder():
            objective = joint_training_objective(classifier, settings, augmentation)
        case FinetunedClassifier():
            input_transform = purified_noise_transform(autoencoder, noise_settings)
            objective = classification_objective(augmentation, input_transform)
        case RandomizedSmoothing():
            input_transform = gaussian_noise_transform(settings.std)
            objective = classification_objective(augmentation, input_transform)
        case AdversarialTraining() | Trades():
            objective = robust_training_objective(settings, augmentation)

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
        lambda epoch, metrics: tracker.metrics({f"train/{name}": value for name, value in metrics.items()}, epoch),
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
