"""Step ``train_defence``: what stands in front of the classifier, or takes its place, trained where it needs to be."""

from typing import Any

from tasks import paths
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


def train_defence(params: Params, tracker: Tracker, defence: str) -> None:
    """Write what a defence is made of: a purifier, a classifier or both, and the history of its training."""
    settings = params.defences[defence]
    match settings:
        case Autoencoder():
            copy_model(paths.AUTOENCODER, paths.purifier(defence))
        case Preprocessing():
            steps = [step.model_dump(mode="json") for step in settings.steps]
            assemble(defence, steps, settings.n_draws, settings.before == "autoencoder")
        case RandomizedSmoothing():
            assemble(defence, [{"method": "gaussian_noise", "std": settings.std}], settings.n_draws)
            train(params, settings, tracker, defence)
        case FinetunedClassifier():
            copy_model(paths.AUTOENCODER, paths.purifier(defence))
            train(params, settings, tracker, defence)
        case _:
            train(params, settings, tracker, defence)


def assemble(defence: str, steps: list[dict[str, Any]], n_draws: int, before_autoencoder: bool = False) -> None:
    """Write a purifier of image processing, with the study's autoencoder behind it if it is asked for."""
    from tasks.defences.preprocessing import build_purifier
    from tasks.models.autoencoder import build_autoencoder
    from tasks.models.files import load_model, save_model
    from tasks.models.seeding import build_seeded

    architecture = build_of(paths.AUTOENCODER)["architecture"] if before_autoencoder else None
    purifier = build_seeded(lambda: build_purifier(architecture, steps, n_draws))
    if architecture:
        trained = load_model(paths.AUTOENCODER, build_autoencoder)
        purifier.get_submodule(str(len(steps))).load_state_dict(trained.state_dict())
    save_model(paths.purifier(defence), purifier, architecture=architecture, steps=steps, n_draws=n_draws)


def train(params: Params, settings: Defence, tracker: Tracker, defence: str) -> None:
    """Train the autoencoder or the classifier of a defence, from what the steps before have trained."""
    from tasks.attacks.adversarial_training import feature_guided, joint_training, retraining, robust_training
    from tasks.dataset.prepared import load_prepared
    from tasks.models.autoencoder import build_autoencoder
    from tasks.models.classifier import build_classifier
    from tasks.models.compute import set_up
    from tasks.models.files import load_model, save_model
    from tasks.models.objectives import classification, denoising, noisy, purified
    from tasks.models.seeding import build_seeded
    from tasks.models.training import Seen, as_they_are, fit

    assert not isinstance(settings, Autoencoder | Preprocessing)
    device = set_up(params.compute)
    data = load_prepared()
    tracker.dataset(paths.PREPARE, "prepared", "training")

    if isinstance(settings, TrainedAutoencoder):
        path, build = paths.purifier(defence), {"architecture": settings.architecture}
        if build == build_of(paths.AUTOENCODER):
            model = load_model(paths.AUTOENCODER, build_autoencoder)
        else:
            model = build_seeded(lambda: build_autoencoder(settings.architecture), params.seed)
    else:
        path, build = paths.defended_classifier(defence), build_of(paths.CLASSIFIER)
        model = load_model(paths.CLASSIFIER, build_classifier)

    noise, augmentation = params.train_autoencoder, params.train_classifier.augmentation
    classifier = load_model(paths.CLASSIFIER, build_classifier).to(device)
    autoencoder = load_model(paths.AUTOENCODER, build_autoencoder).to(device)
    seen: Seen = as_they_are
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
            seen = purified(autoencoder, noise)
            objective = classification(augmentation, seen)
        case RandomizedSmoothing():
            seen = noisy(settings.std)
            objective = classification(augmentation, seen)
        case AdversarialTraining() | Trades():
            objective = robust_training(settings, augmentation)

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
        paths.checkpoint_folder("train_defence", defence) / "state.pt",
        lambda epoch, metrics: tracker.metrics({f"train/{name}": value for name, value in metrics.items()}, epoch),
        classifier,
        autoencoder,
        seen=seen,
    )
    save_model(path, trained, **build)
    history.to_csv(paths.defence_history(defence), index=False)
    tracker.artifact(paths.defence_history(defence))
    tracker.model(defence, trained, data.floats(data.indices("train")[:2]))


if __name__ == "__main__":
    from tasks.runner import main

    main(train_defence)
