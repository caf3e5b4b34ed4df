import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from tasks import paths
from tasks.attacks.adversarial_training import retraining
from tasks.models.autoencoder import build_autoencoder
from tasks.models.classifier import build_classifier
from tasks.models.files import load_model, save_model
from tasks.params import Params, RetrainedAutoencoder
from tasks.tracking import Tracker
from tasks.train_defence import train_defence
from tests.small_workspace import SMALL

RETRAINED = SMALL | {"defences.retrained_autoencoder.epochs": 2, "defences.retrained_autoencoder.pgd.n_steps": 1}


def run(params: Params, defence: str) -> dict[str, bytes]:
    folder = paths.step_folder("train_defence", defence)
    shutil.rmtree(folder)
    folder.mkdir()
    train_defence(params, Tracker(), defence)
    shutil.rmtree(paths.checkpoint_folder("train_defence", defence), ignore_errors=True)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


class Given(nn.Module):
    """Gives back what it is given, and remembers it."""

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images.detach().clone()
        return images


def settings_with(params_with: Callable[..., Params], **changed: object) -> RetrainedAutoencoder:
    overrides = {f"defences.retrained_autoencoder.{name}": value for name, value in changed.items()}
    settings = params_with(overrides).defences["retrained_autoencoder"]
    assert isinstance(settings, RetrainedAutoencoder)
    return settings


def test_the_studys_autoencoder_stands_in_front_as_it_was_trained(
    workspace: Path, params_with: Callable[..., Params]
) -> None:
    files = run(params_with(SMALL), "autoencoder")
    assert sorted(files) == ["purifier.json", "purifier.safetensors"]
    assert files["purifier.safetensors"] == paths.AUTOENCODER.read_bytes()


def test_retraining_begins_with_the_autoencoder_and_gives_the_same_bytes_twice(
    workspace: Path, params_with: Callable[..., Params]
) -> None:
    # steps too small to lead away
    still = RETRAINED | {"defences.retrained_autoencoder.learning_rate": 1e-12}
    run(params_with(still), "retrained_autoencoder")
    begun = load_model(paths.AUTOENCODER, build_autoencoder).state_dict()
    for name, weights in load_model(paths.purifier("retrained_autoencoder"), build_autoencoder).state_dict().items():
        torch.testing.assert_close(weights, begun[name], rtol=0, atol=1e-6)

    params = params_with(RETRAINED)
    files = run(params, "retrained_autoencoder")
    assert run(params, "retrained_autoencoder") == files
    assert files["purifier.safetensors"] != paths.AUTOENCODER.read_bytes()
    assert len(pd.read_csv(paths.defence_history("retrained_autoencoder"))) == 2


def test_a_training_against_another_classifier_does_not_go_on_from_a_killed_one(
    workspace: Path, params_with: Callable[..., Params], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    params = params_with(RETRAINED)
    train_defence(params, Tracker(), "retrained_autoencoder")
    train_defence(params, Tracker(), "retrained_autoencoder")
    assert "resumed after epoch 2" in caplog.text

    caplog.clear()
    other = build_classifier(architecture="cnn", n_classes=3, mean=0.45, std=0.1)
    save_model(paths.CLASSIFIER, other, architecture="cnn", n_classes=3, mean=0.45, std=0.1)
    train_defence(params, Tracker(), "retrained_autoencoder")
    assert "resumed" not in caplog.text


@pytest.mark.parametrize(("share", "n_attacked"), [(0.5, 4), (0.3, 3), (1.0, 8)])
def test_the_first_part_of_a_batch_is_adversarial_in_its_ball_and_the_rest_is_noisy(
    share: float, n_attacked: int, workspace: Path, params_with: Callable[..., Params]
) -> None:
    params = params_with({"train_autoencoder.clean_share": 0.9})
    settings = settings_with(params_with, adversarial_share=share, eps=[4, 4])
    classifier = load_model(paths.CLASSIFIER, build_classifier)
    images, labels = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    given = Given()
    loss = retraining(classifier, settings, params.train_autoencoder)(
        given, images, labels, torch.Generator().manual_seed(1)
    )["loss"]
    changes = (given.seen - images).abs().amax(dim=(1, 2, 3))
    assert changes[:n_attacked].numpy() == pytest.approx(np.full(n_attacked, 4 / 255), abs=1e-6)
    # noise is much larger, and most are left clean
    assert not torch.isclose(changes[n_attacked:], torch.tensor(4 / 255), atol=1e-4).any()
    assert float(loss) == pytest.approx(float((given.seen - images).square().mean()))
    with torch.no_grad():
        clean_loss = nn.functional.cross_entropy(classifier(images[:n_attacked]), labels[:n_attacked])
        attacked_loss = nn.functional.cross_entropy(classifier(given.seen[:n_attacked]), labels[:n_attacked])
    assert attacked_loss > clean_loss


def test_every_batch_meets_other_examples_and_the_same_generator_the_same(
    workspace: Path, params_with: Callable[..., Params]
) -> None:
    settings = settings_with(params_with, eps=[0.25, 8])
    measure = retraining(load_model(paths.CLASSIFIER, build_classifier), settings, params_with().train_autoencoder)
    images, labels = torch.full((4, 1, 32, 32), 0.5), torch.arange(4) % 3
    given = Given()

    def sizes(seed: int) -> list[float]:
        generator = torch.Generator().manual_seed(seed)
        found = []
        for _ in range(20):
            measure(given, images, labels, generator)
            found.append(float((given.seen[0] - images[0]).abs().max()) * 255)
        return found

    drawn = sizes(0)
    assert drawn == sizes(0)
    assert len(set(drawn)) == 20
    assert 0.25 <= min(drawn) < 1 < 2 < max(drawn) <= 8.001
