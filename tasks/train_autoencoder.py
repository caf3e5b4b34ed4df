"""Step ``train_autoencoder``: train the denoising autoencoder on noise, without adversarial examples."""

from tasks.core.checkpoints import Checkpoints
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import load_prepared, signature_images
from tasks.models.autoencoder import build_autoencoder
from tasks.models.compute import configure_torch
from tasks.models.files import save_model
from tasks.models.objectives import denoising_objective
from tasks.models.seeding import build_seeded
from tasks.models.training import fit
from tasks.params import Params
from tasks.tracking import Tracker


def train_autoencoder(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    """Train on ``train``, keep the best epoch on ``validation``; write the weights and the history."""
    settings = params.train_autoencoder
    device = configure_torch(params.compute)
    data = load_prepared(workspace)
    rows = {split: data.indices(split) for split in ("train", "validation")}
    tracker.dataset(workspace.prepare, "prepared", "training")

    checkpoints = Checkpoints(
        workspace.checkpoint_folder("train_autoencoder"),
        ("models", "dataset/prepared.py", "train_autoencoder.py"),
        parameters=params.of_step("train_autoencoder"),
        device=str(device),
    )
    model, history = fit(
        build_seeded(lambda: build_autoencoder(settings.architecture, **data.channel_argument), params.seed),
        denoising_objective(settings),
        data.pixels,
        data.labels(),
        rows,
        settings,
        params.seed,
        device,
        params.compute.precision,
        checkpoints,
        tracker.epoch,
    )
    save_model(workspace.autoencoder, model, architecture=settings.architecture, **data.channel_argument)
    history.to_csv(workspace.autoencoder_history, index=False)
    tracker.artifact(workspace.autoencoder_history)
    tracker.model("autoencoder", model, signature_images(data))


if __name__ == "__main__":
    from tasks.runner import main

    main(train_autoencoder)
