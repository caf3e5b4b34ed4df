"""Step ``train_defence``: what stands in front of the classifier, or takes its place, trained where it needs to be."""

from typing import Any

from tasks.core.workspace import Workspace
from tasks.models.files import build_of, copy_model
from tasks.params import (
    AdversarialTraining,
    Autoencoder,
    Defence,
    DenoisingAutoencoder,
    FeatureGuidedAutoencoder,
    FinetunedClassifier,
    JointAutoencoder,
    Params,
    Preprocessing,
    RandomizedSmoothing,
    RetrainedAutoencoder,
    Trades,
    TrainedAutoencoder,
)
from tasks.tracking import Tracker


def train_defence(workspace: Workspace, params: Params, tracker: Tracker, defence: str) -> None:
    """Write what a defence is made of: a purifier, a classifier or both, and the history of its training."""
    settings = params.defences[defence]
    match settings:
        case Autoencoder():
            copy_model(workspace.autoencoder, workspace.purifier(defence))
        case Preprocessing():
            steps = [step.model_dump(mode="json") for step in settings.steps]
            assemble(workspace, defence, steps, settings.n_draws, settings.before == "autoencoder")
        case RandomizedSmoothing():
            assemble(workspace, defence, [{"method": "gaussian_noise", "std": settings.std}], settings.n_draws)
            train(workspace, params, settings, tracker, defence)
        case FinetunedClassifier():
            copy_model(workspace.autoencoder, workspace.purifier(defence))
            train(workspace, params, settings, tracker, defence)
        case _:
            train(workspace, params, settings, tracker, defence)


def assemble(
    workspace: Workspace, defence: str, steps: list[dict[str, Any]], n_draws: int, before_autoencoder: bool = False
) -> None:
    """Write a purifier of image processing, with the study's autoencoder behind it if it is asked for."""
    from tasks.defences.preprocessing import build_purifier
    from tasks.models.autoencoder import build_autoencoder
    from tasks.models.files import load_model, save_model
    from tasks.models.seeding import build_seeded

    architecture = build_of(workspace.autoencoder)["architecture"] if before_autoencoder else None
    purifier = build_seeded(lambda: build_purifier(architecture, steps, n_draws))
    if architecture:
        trained = load_model(workspace.autoencoder, build_autoencoder)
        purifier.get_submodule(str(len(steps))).load_state_dict(trained.state_dict())
    save_model(workspace.purifier(defence), purifier, architecture=architecture, steps=steps, n_draws=n_draws)


def train(workspace: Workspace, params: Params, settings: Defence, tracker: Tracker, defence: str) -> None:
    """Train the autoencoder or the classifier of a defence, from what the steps before have trained."""
    from tasks.attacks.adversarial_training import feature_guided, joint_training, retraining, robust_training
    from tasks.core.checkpoints import Checkpoints
    from tasks.dataset.prepared import load_prepared
    from tasks.models.autoencoder import build_autoencoder
    from tasks.models.classifier import build_classifier
    from tasks.models.compute import set_up
    from tasks.models.files import load_model, save_model
    from tasks.models.objectives import classification, denoising, noisy, purified
    from tasks.models.seeding import build_seeded
    from tasks.models.training import InputTransform, fit, no_transform

    assert not isinstance(settings, Autoencoder | Preprocessing)
    device = set_up(params.compute)
    data = load_prepared(workspace)
    tracker.dataset(workspace.prepare, "prepared", "training")

    if isinstance(settings, TrainedAutoencoder):
        path, build = workspace.purifier(defence), {"architecture": settings.architecture}
        if build == build_of(workspace.autoencoder):
            model = load_model(workspace.autoencoder, build_autoencoder)
        else:
            model = build_seeded(lambda: build_autoencoder(settings.architecture), params.seed)
    else:
        path, build = workspace.defended_classifier(defence), build_of(workspace.classifier)
        model = load_model(workspace.classifier, build_classifier)

    noise, augmentation = params.train_autoencoder, params.train_classifier.augmentation
    classifier = load_model(workspace.classifier, build_classifier).to(device)
    autoencoder = load_model(workspace.autoencoder, build_autoencoder).to(device)
    input_transform: InputTransform = no_transform
    match settings:
        case DenoisingAutoencoder():
            objective = denoising(noise)
        case RetrainedAutoencoder():
            objective = retraining(classifier, settings, noise)
        case FeatureGuidedAutoencoder():
            objective = feature_guided(classifier, settings, noise)
        case JointAutoencoder():
            objective = joint_training(classifier, settings, augmentation)
        case FinetunedClassifier():
            input_transform = purified(autoencoder, noise)
            objective = classification(augmentation, input_transform)
        case RandomizedSmoothing():
            input_transform = noisy(settings.std)
            objective = classification(augmentation, input_transform)
        case AdversarialTraining() | Trades():
            objective = robust_training(settings, augmentation)

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
    save_model(path, trained, **build)
    history.to_csv(workspace.defence_history(defence), index=False)
    tracker.artifact(workspace.defence_history(defence))
    tracker.model(defence, trained, data.floats(data.indices("train")[:2]))


if __name__ == "__main__":
    from tasks.runner import main

    main(train_defence)
