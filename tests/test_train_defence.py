import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from tasks.attacks.adversarial_training import examples, feature_guided, joint_training, retraining, robust_training
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import load_prepared
from tasks.defences.purified import Purified
from tasks.defences.targets import load_target
from tasks.models.autoencoder import build_autoencoder
from tasks.models.classifier import build_classifier
from tasks.models.features import Features
from tasks.models.files import load_model, save_model
from tasks.models.training import Objective
from tasks.params import (
    AdversarialTraining,
    FeatureGuidedAutoencoder,
    JointAutoencoder,
    Params,
    RetrainedAutoencoder,
    Trades,
)
from tasks.tracking import Tracker
from tasks.train_defence import train_defence
from tests.small_workspace import SMALL

TRAINED = [
    "retrained_autoencoder",
    "joint_autoencoder",
    "feature_guided_autoencoder",
    "unet_autoencoder",
    "variational_autoencoder",
    "finetuned_classifier",
    "randomized_smoothing",
    "adversarial_training",
    "trades",
]
SHORT = SMALL | {f"defences.{name}.training.epochs": 2 for name in TRAINED}
STILL = {f"defences.{name}.training.learning_rate": 1e-12 for name in TRAINED}
"""Steps too small to lead away."""


def run(params: Params, defence: str) -> dict[str, bytes]:
    folder = Workspace().step_folder("train_defence", defence)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    train_defence(Workspace(), params, Tracker(), defence)
    shutil.rmtree(Workspace().checkpoint_folder("train_defence", defence), ignore_errors=True)
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
    assert files["purifier.safetensors"] == Workspace().autoencoder.read_bytes()


@pytest.mark.parametrize("defence", TRAINED)
def test_a_defence_is_trained_and_gives_the_same_bytes_twice(
    defence: str, workspace: Path, params_with: Callable[..., Params]
) -> None:
    params = params_with(SHORT)
    files = run(params, defence)
    assert run(params, defence) == files
    assert len(pd.read_csv(Workspace().defence_history(defence))) == 2
    target = load_target(Workspace(), defence, torch.device("cpu"))
    assert target(torch.rand(2, 1, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize("defence", TRAINED)
def test_in_bfloat16_a_defence_learns_as_in_float32(
    defence: str, workspace: Path, params_with: Callable[..., Params]
) -> None:
    histories, weights = [], []
    for precision in ("float32", "bfloat16"):
        files = run(params_with(SHORT | {"compute.precision": precision}), defence)
        histories.append(pd.read_csv(Workspace().defence_history(defence)))
        weights.append({name: file for name, file in files.items() if name.endswith(".safetensors")})
    assert weights[0] != weights[1]
    exact, reduced = (history.filter(regex="_loss$").to_numpy() for history in histories)
    assert exact.size >= 4
    assert reduced == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize(
    ("defence", "path", "begun"),
    [
        ("retrained_autoencoder", Workspace().purifier("retrained_autoencoder"), Workspace().autoencoder),
        ("finetuned_classifier", Workspace().defended_classifier("finetuned_classifier"), Workspace().classifier),
        ("randomized_smoothing", Workspace().defended_classifier("randomized_smoothing"), Workspace().classifier),
        ("adversarial_training", Workspace().defended_classifier("adversarial_training"), Workspace().classifier),
        ("trades", Workspace().defended_classifier("trades"), Workspace().classifier),
    ],
)
def test_training_begins_with_what_the_steps_before_have_trained(
    defence: str, path: Path, begun: Path, workspace: Path, params_with: Callable[..., Params]
) -> None:
    run(params_with(SHORT | STILL), defence)
    build = build_autoencoder if begun == Workspace().autoencoder else build_classifier
    before = dict(load_model(begun, build).named_parameters())
    for name, weights in load_model(path, build).named_parameters():
        torch.testing.assert_close(weights, before[name], rtol=0, atol=1e-6)


def test_an_autoencoder_of_another_architecture_begins_with_its_own_weights(
    workspace: Path, params_with: Callable[..., Params]
) -> None:
    run(params_with(SHORT | STILL | {"defences.joint_autoencoder.architecture": "residual"}), "joint_autoencoder")
    images = torch.rand(2, 1, 32, 32)
    purifier = load_model(Workspace().purifier("joint_autoencoder"), build_autoencoder)
    # untrained, a residual one changes nothing
    torch.testing.assert_close(purifier(images), images)


def test_a_classifier_is_tuned_behind_the_studys_autoencoder(
    workspace: Path, params_with: Callable[..., Params]
) -> None:
    files = run(params_with(SHORT), "finetuned_classifier")
    assert files["purifier.safetensors"] == Workspace().autoencoder.read_bytes()
    assert files["classifier.safetensors"] != Workspace().classifier.read_bytes()
    target = load_target(Workspace(), "finetuned_classifier", torch.device("cpu"))
    images = torch.rand(2, 1, 32, 32)
    autoencoder = load_model(Workspace().autoencoder, build_autoencoder)
    tuned = load_model(Workspace().defended_classifier("finetuned_classifier"), build_classifier)
    torch.testing.assert_close(target(images), tuned(autoencoder(images)))


def test_smoothing_looks_through_noise_at_a_classifier_of_its_own(
    workspace: Path, params_with: Callable[..., Params]
) -> None:
    run(params_with(SHORT | {"defences.randomized_smoothing.n_draws": 3}), "randomized_smoothing")
    target = load_target(Workspace(), "randomized_smoothing", torch.device("cpu"))
    assert isinstance(target, Purified)
    assert target.n_draws == 3
    grey = torch.full((4, 1, 32, 32), 0.5)
    noisy = target.purifier(grey)
    # a standard deviation of 0.25, cut at two of them
    assert float(noisy.std()) == pytest.approx(0.235, abs=0.01)
    assert not torch.equal(noisy, target.purifier(grey))


@pytest.mark.parametrize("defence", ["randomized_smoothing", "finetuned_classifier"])
def test_batch_norm_expects_what_stands_in_front_of_the_classifier(
    defence: str, workspace: Path, params_with: Callable[..., Params]
) -> None:
    run(params_with(SHORT), defence)
    data, target = load_prepared(Workspace()), load_target(Workspace(), defence, torch.device("cpu"))
    assert isinstance(target, Purified)
    norm = next(module for module in target.classifier.modules() if isinstance(module, nn.BatchNorm2d))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    inputs: list[Tensor] = []
    norm.register_forward_hook(lambda _module, given, _output: inputs.append(given[0]))
    images = torch.from_numpy(data.floats(data.indices("train")))
    with torch.no_grad():
        target.classifier(target.purifier(images))
        target.classifier(images)
    (shown, as_it_is) = (
        float((norm.running_var - each.var(dim=(0, 2, 3))).abs().mean() / each.var(dim=(0, 2, 3)).mean())
        for each in inputs
    )
    assert shown < 0.1
    assert as_it_is > 2 * shown


@pytest.mark.parametrize("defence", ["adversarial_training", "trades"])
def test_robust_training_leaves_nothing_in_front_of_the_classifier(
    defence: str, workspace: Path, params_with: Callable[..., Params]
) -> None:
    files = run(params_with(SHORT), defence)
    assert sorted(files) == ["classifier.json", "classifier.safetensors", "history.csv"]
    assert not isinstance(load_target(Workspace(), defence, torch.device("cpu")), Purified)


def test_a_training_against_another_classifier_does_not_go_on_from_a_killed_one(
    workspace: Path, params_with: Callable[..., Params], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    params = params_with(SHORT)
    train_defence(Workspace(), params, Tracker(), "retrained_autoencoder")
    train_defence(Workspace(), params, Tracker(), "retrained_autoencoder")
    assert "resumed after epoch 2" in caplog.text

    caplog.clear()
    other = build_classifier(architecture="cnn", n_classes=3, mean=0.45, std=0.1)
    save_model(Workspace().classifier, other, architecture="cnn", n_classes=3, mean=0.45, std=0.1)
    train_defence(Workspace(), params, Tracker(), "retrained_autoencoder")
    assert "resumed" not in caplog.text


@pytest.mark.parametrize(("share", "n_attacked"), [(0.5, 4), (0.3, 3), (1.0, 8)])
def test_the_first_part_of_a_batch_is_adversarial_in_its_ball_and_the_rest_is_noisy(
    share: float, n_attacked: int, workspace: Path, params_with: Callable[..., Params]
) -> None:
    params = params_with({"train_autoencoder.clean_share": 0.9})
    settings = settings_with(params_with, **{"adversarial_share": share, "adversary.eps": [4, 4]})
    classifier = load_model(Workspace().classifier, build_classifier)
    images, labels = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    given = Given()
    loss = retraining(classifier, settings, params.train_autoencoder)(
        given, images, labels, torch.Generator().manual_seed(1), 1.0
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
    settings = settings_with(params_with, **{"adversary.eps": [0.25, 8]})
    measure = retraining(
        load_model(Workspace().classifier, build_classifier), settings, params_with().train_autoencoder
    )
    images, labels = torch.full((4, 1, 32, 32), 0.5), torch.arange(4) % 3
    given = Given()

    def sizes(seed: int) -> list[float]:
        generator = torch.Generator().manual_seed(seed)
        found = []
        for _ in range(20):
            measure(given, images, labels, generator, 1.0)
            found.append(float((given.seen[0] - images[0]).abs().max()) * 255)
        return found

    drawn = sizes(0)
    assert drawn == sizes(0)
    assert len(set(drawn)) == 20
    assert 0.25 <= min(drawn) < 1 < 2 < max(drawn) <= 8.001


class Linear(nn.Module):
    """Logits 0 and ``weight`` times the mean pixel minus a half; remembers what it is given."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach().clone())
        second = self.weight * (images.mean(dim=(1, 2, 3)) - 0.5)
        return torch.stack([torch.zeros_like(second), second], dim=1)


def robust(params_with: Callable[..., Params], name: str, **changed: object) -> Objective:
    # steps so large that every pixel ends at the border of its ball
    changed = {"adversary.pgd.relative_step": 2.0, **changed}
    params = params_with({f"defences.{name}.{key}": value for key, value in changed.items()})
    settings = params.defences[name]
    assert isinstance(settings, AdversarialTraining | Trades)
    return robust_training(settings, params.train_classifier.augmentation)


GREY = torch.full((2, 1, 32, 32), 0.5)
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize("clean_weight", [0.0, 0.3])
def test_adversarial_training_weighs_the_loss_on_examples_against_that_on_clean_images(
    clean_weight: float, params_with: Callable[..., Params]
) -> None:
    measure = robust(params_with, "adversarial_training", **{"adversary.eps": [8, 8], "clean_weight": clean_weight})
    found = measure(Linear(30.0).eval().requires_grad_(False), GREY, LABELS, torch.Generator().manual_seed(0), 1.0)
    # every pixel goes 8/255 the wrong way, and the logit with it
    attacked = torch.nn.functional.softplus(torch.tensor(30 * 8 / 255))
    clean = torch.nn.functional.softplus(torch.tensor(0.0))
    assert float(found["loss"]) == pytest.approx(float(clean_weight * clean + (1 - clean_weight) * attacked), rel=1e-4)
    assert float(found["robust_accuracy"]) == 0


def test_trades_adds_the_divergence_of_what_is_predicted_from_what_was(params_with: Callable[..., Params]) -> None:
    measure = robust(params_with, "trades", **{"adversary.eps": [8, 8], "beta": 3.0})
    model = Linear(30.0).eval()
    found = measure(model, GREY, LABELS, torch.Generator().manual_seed(0), 1.0)
    clean, attacked = (model(images).softmax(dim=1) for images in model.seen[-1].chunk(2))
    divergence = (clean * (clean / attacked).log()).sum(dim=1).mean()
    assert divergence > 0.1
    expected = -clean[[0, 1], LABELS].log().mean() + 3 * divergence
    assert float(found["loss"]) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(("ramp", "progress", "radius"), [(0.5, 0.25, 4), (0.5, 0.5, 8), (0.0, 0.01, 8), (0.5, 1.0, 8)])
def test_radii_rise_over_the_ramp(
    ramp: float, progress: float, radius: float, params_with: Callable[..., Params]
) -> None:
    measure = robust(params_with, "adversarial_training", **{"adversary.eps": [8, 8], "ramp": ramp})
    model = Linear(30.0).eval()
    measure(model, GREY, LABELS, torch.Generator().manual_seed(0), progress)
    clean, attacked = model.seen[-1].chunk(2)
    assert float((attacked - clean).abs().max()) * 255 == pytest.approx(radius, rel=1e-4)


def test_joint_training_attacks_what_the_classifier_makes_of_the_autoencoders_images(
    params_with: Callable[..., Params],
) -> None:
    params = params_with({"defences.joint_autoencoder.clean_weight": 0.25})
    settings = params.defences["joint_autoencoder"]
    assert isinstance(settings, JointAutoencoder)

    class Inverted(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            self.seen = images.detach().clone()
            return 1 - images

    classifier, autoencoder = Linear(30.0), Inverted().eval()
    measure = joint_training(classifier, settings, params.train_classifier.augmentation)
    found = measure(autoencoder, GREY, LABELS, torch.Generator().manual_seed(0), 1.0)
    clean, attacked = autoencoder.seen.chunk(2)
    assert torch.equal(clean, GREY)
    # class 1 is bright to the classifier, so dark to whoever stands before the inversion: its attacker brightens
    assert attacked[1].mean() > 0.5 > attacked[0].mean()
    assert float(found["robust_accuracy"]) == 0
    squared = float((1 - autoencoder.seen - torch.cat([GREY, GREY])).square().mean())
    clean_loss, loss = (torch.nn.functional.cross_entropy(classifier(1 - each), LABELS) for each in (clean, attacked))
    expected = 0.25 * float(clean_loss) + 0.75 * float(loss) + settings.reconstruction_weight * squared
    assert float(found["loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(found["squared_error"]) == pytest.approx(squared, rel=1e-5)


@pytest.mark.parametrize("guide", ["logits", "features"])
def test_a_guided_autoencoder_is_judged_by_what_the_classifier_sees(
    guide: str, workspace: Path, params_with: Callable[..., Params]
) -> None:
    params = params_with({"defences.feature_guided_autoencoder.guide": guide})
    settings = params.defences["feature_guided_autoencoder"]
    assert isinstance(settings, FeatureGuidedAutoencoder)
    classifier = load_model(Workspace().classifier, build_classifier)
    measure = feature_guided(classifier, settings, params.train_autoencoder)
    images, labels, given = torch.rand(4, 1, 32, 32), torch.arange(4) % 3, Given()
    found = measure(given, images, labels, torch.Generator().manual_seed(0), 1.0)
    index = ["logits", "features"].index(guide)
    seen, wanted = (Features(classifier)(each)[index] for each in (given.seen, images))
    assert float(found["loss"]) == pytest.approx(float((seen - wanted).abs().mean()), rel=1e-5)
    assert float(found["loss"]) > 0


def test_examples_lead_away_from_given_probabilities(params_with: Callable[..., Params]) -> None:
    settings = params_with({"defences.trades.adversary.eps": [8, 8]}).defences["trades"]
    assert isinstance(settings, Trades)
    model = Linear(30.0)
    sure_of_first = torch.tensor([[0.99, 0.01], [0.01, 0.99]])
    found = examples(model, GREY, sure_of_first, settings.adversary, torch.Generator().manual_seed(0))
    assert found[0].mean() > 0.5 > found[1].mean()
