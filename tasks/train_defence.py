"""Step ``train_defence``: what stands in front of the classifier, trained where it needs to be."""

import shutil

from tasks import paths
from tasks.params import Params, RetrainedAutoencoder
from tasks.tracking import Tracker


def train_defence(params: Params, tracker: Tracker, defence: str) -> None:
    """Write the purifier of a defence, and the history of its training if it is trained further."""
    settings = params.defences[defence]
    if isinstance(settings, RetrainedAutoencoder):
        retrain(params, settings, tracker, defence)
    else:
        for suffix in (".safetensors", ".json"):
            shutil.copyfile(paths.AUTOENCODER.with_suffix(suffix), paths.purifier(defence).with_suffix(suffix))


def retrain(params: Params, settings: RetrainedAutoencoder, tracker: Tracker, defence: str) -> None:
    """Train the denoising autoencoder further, on noise and on adversarial examples of the undefended classifier."""
    from tasks.attacks.adversarial_training import retraining
    from tasks.dataset.prepared import load_prepared
    from tasks.models.autoencoder import build_autoencoder
    from tasks.models.classifier import build_classifier
    from tasks.models.compute import set_up
    from tasks.models.files import load_model, save_model
    from tasks.models.training import fit

    device = set_up(params.compute)
    data = load_prepared()
    tracker.dataset(paths.PREPARE, "prepared", "training")
    classifier = load_model(paths.CLASSIFIER, build_classifier).to(device)
    purifier, history = fit(
        load_model(paths.AUTOENCODER, build_autoencoder).requires_grad_(True),
        retraining(classifier, settings, params.train_autoencoder),
        data.pixels,
        data.labels(),
        {split: data.indices(split) for split in ("train", "validation")},
        settings,
        params.seed,
        device,
        paths.checkpoint_folder("train_defence", defence) / "state.pt",
        lambda epoch, metrics: tracker.metrics({f"train/{name}": value for name, value in metrics.items()}, epoch),
        classifier,
    )
    save_model(paths.purifier(defence), purifier, architecture=params.train_autoencoder.architecture)
    history.to_csv(paths.defence_history(defence), index=False)
    tracker.artifact(paths.defence_history(defence))
    tracker.model(defence, purifier, data.floats(data.indices("train")[:2]))


if __name__ == "__main__":
    from tasks.runner import main

    main(train_defence)
