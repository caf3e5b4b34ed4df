"""Step ``train_defence``: what stands in front of the classifier, trained where it needs to be."""

from tasks import paths
from tasks.attacks.adversarial_training import retraining
from tasks.dataset.prepared import load_prepared
from tasks.models.autoencoder import build_autoencoder
from tasks.models.classifier import build_classifier
from tasks.models.compute import set_up
from tasks.models.files import load_model, save_model
from tasks.models.training import fit
from tasks.params import Params, RetrainedAutoencoder
from tasks.tracking import Tracker


def train_defence(params: Params, tracker: Tracker, defence: str) -> None:
    """Write the purifier of a defence, and the history of its training if it is trained further."""
    settings, noise = params.defences[defence], params.train_autoencoder
    device = set_up(params.compute)
    purifier = load_model(paths.AUTOENCODER, build_autoencoder)
    if isinstance(settings, RetrainedAutoencoder):
        data = load_prepared()
        tracker.dataset(paths.PREPARE, "prepared", "training")
        classifier = load_model(paths.CLASSIFIER, build_classifier).to(device)
        purifier, history = fit(
            purifier.requires_grad_(True),
            retraining(classifier, settings, noise),
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
        history.to_csv(paths.defence_history(defence), index=False)
        tracker.artifact(paths.defence_history(defence))
        tracker.model(defence, purifier, data.floats(data.indices("train")[:2]))
    save_model(paths.purifier(defence), purifier, architecture=noise.architecture)


if __name__ == "__main__":
    from tasks.runner import main

    main(train_defence)
