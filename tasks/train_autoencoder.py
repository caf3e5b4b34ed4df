"""Step ``train_autoencoder``: a denoising autoencoder, trained on noise and never on adversarial examples."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks import paths
from tasks.dataset.prepared import load_prepared
from tasks.models.autoencoder import build_autoencoder
from tasks.models.compute import set_up
from tasks.models.files import save_model
from tasks.models.noise import add_noise
from tasks.models.training import Objective, build_seeded, fit
from tasks.params import Params, TrainAutoencoder
from tasks.tracking import Tracker


def train_autoencoder(params: Params, tracker: Tracker) -> None:
    """Train to give back the originals of noisy images; write the weights and the history."""
    settings = params.train_autoencoder
    device = set_up(params.compute)
    data = load_prepared()
    rows = {split: data.indices(split) for split in ("train", "validation")}
    tracker.dataset(paths.PREPARE, "prepared", "training")

    model, history = fit(
        build_seeded(lambda: build_autoencoder(settings.architecture), params.seed),
        objective(settings),
        data.pixels,
        data.labels(),
        rows,
        settings,
        params.seed,
        device,
        paths.checkpoint_folder("train_autoencoder") / "state.pt",
        lambda epoch, metrics: tracker.metrics({f"train/{name}": value for name, value in metrics.items()}, epoch),
    )
    save_model(paths.AUTOENCODER, model, architecture=settings.architecture)
    history.to_csv(paths.AUTOENCODER_HISTORY, index=False)
    tracker.artifact(paths.AUTOENCODER_HISTORY)
    tracker.model("autoencoder", model, data.floats(np.arange(2)))


def objective(settings: TrainAutoencoder) -> Objective:
    """Mean squared error between the originals and what the network makes of noisy copies."""

    def measure(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        noisy = add_noise(images, settings.noises, settings.clean_share, generator)
        return {"loss": F.mse_loss(model(noisy), images)}

    return measure


if __name__ == "__main__":
    from tasks.runner import main

    main(train_autoencoder)
