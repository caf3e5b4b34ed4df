"""The step train_defence and the objectives of its trainings."""

import io
import logging
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from tasks.attacks.adversarial_training import (
    adversarial_examples,
    feature_guided_objective,
    joint_training_objective,
    retraining_objective,
    robust_training_objective,
)
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import load_prepared
from tasks.defences.purified import Purified
from tasks.defences.targets import load_target
from tasks.models.autoencoder import build_autoencoder
from tasks.models.classifier import build_classifier
from tasks.models.features import LogitsAndFeatures
from tasks.models.files import load_model, save_model
from tasks.models.training import Objective
from tasks.params import (
    AdversarialTraining,
    FeatureGuidedAutoencoder,
    JointAutoencoder,
    Params,
    RetrainedAutoencoder,
    Trades,
    parse_params,
)
from tasks.tracking import Tracker
from tasks.train_defence import train_defence
from tests.conftest import with_overrides
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
ATTACKED = [
    "retrained_autoencoder",
    "joint_autoencoder",
    "feature_guided_autoencoder",
    "adversarial_training",
    "trades",
]
"""Defences that are trained on adversarial examples."""
SHORT = SMALL | {f"defences.{name}.training.epochs": 2 for name in TRAINED}
SHORT |= {f"defences.{name}.adversary.pgd.n_steps": 1 for name in ATTACKED}
SLOW_LEARNING = SHORT | {f"defences.{name}.training.learning_rate": 1e-4 for name in TRAINED}
"""Rounding errors grow with the distance from the initial weights."""
NO_CHANGE = {f"defences.{name}.training.learning_rate": 1e-12 for name in TRAINED}
"""A learning rate so small that the weights stay the same."""
BFLOAT16_TOLERANCE = {"finetuned_classifier": 0.25, "trades": 0.4}
"""Relative tolerance of the losses in bfloat16, if not 0.1.

The classifier of the small workspace is overconfident, and this amplifies rounding errors.
"""


def run(params: Params, defence: str) -> dict[str, bytes]:
    """Run the step from the beginning; return the bytes of each output."""
    folder = Workspace().step_folder("train_defence", defence)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    train_defence(Workspace(), params, Tracker(), defence)
    shutil.rmtree(Workspace().checkpoint_folder("train_defence", defence), ignore_errors=True)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def first_run(small_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, bytes]]:
    """The outputs of the first run with the parameters SLOW_LEARNING, for each defence; each runs once."""
    folder = tmp_path_factory.mktemp("first_run")
    shutil.copytree(small_workspace / "data", folder / "data")
    params = parse_params(with_overrides(SLOW_LEARNING))

    @cache
    def outputs_of(defence: str) -> dict[str, bytes]:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            return run(params, defence)

    return outputs_of


class InputRecorder(nn.Module):
    """Autoencoder that returns its input and records it."""

    def forward(self, images: Tensor) -> Tensor:
        self.inputs = images.detach().clone()
        return images


def settings_with(params_with: Callable[..., Params], **changed: object) -> RetrainedAutoencoder:
    overrides = {f"defences.retrained_autoencoder.{name}": value for name, value in changed.items()}
    settings = params_with(overrides).defences["retrained_autoencoder"]
    assert isinstance(settings, RetrainedAutoencoder)
    return settings


def test_the_defence_autoencoder_is_a_copy_of_the_trained_autoencoder(
    small_folder: Path, params_with: Callable[..., Params]
) -> None:
    files = run(params_with(SMALL), "autoencoder")
    assert sorted(files) == ["purifier.json", "purifier.safetensors", "settings.json"]
    assert files["purifier.safetensors"] == Workspace().autoencoder.read_bytes()


@pytest.mark.parametrize("defence", TRAINED)
def test_a_second_run_gives_the_same_bytes(
    defence: str, small_folder: Path, params_with: Callable[..., Params], first_run: Callable[[str], dict[str, bytes]]
) -> None:
    assert run(params_with(SLOW_LEARNING), defence) == first_run(defence)
    assert len(pd.read_csv(Workspace().defence_history(defence))) == 2
    target = load_target(Workspace(), defence, torch.device("cpu"))
    assert target(torch.rand(2, 1, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize("defence", TRAINED)
def test_losses_in_bfloat16_are_close_to_those_in_float32(
    defence: str, small_folder: Path, params_with: Callable[..., Params], first_run: Callable[[str], dict[str, bytes]]
) -> None:
    runs = [first_run(defence), run(params_with(SLOW_LEARNING | {"compute.precision": "bfloat16"}), defence)]
    weights = [{name: file for name, file in files.items() if name.endswith(".safetensors")} for files in runs]
    assert weights[0] != weights[1]
    histories = [pd.read_csv(io.BytesIO(files["history.csv"])) for files in runs]
    exact, reduced = (history.filter(regex="_loss$").to_numpy() for history in histories)
    assert exact.size >= 4
    assert reduced == pytest.approx(exact, rel=BFLOAT16_TOLERANCE.get(defence, 0.1))


@pytest.mark.parametrize(
    ("defence", "path", "initial"),
    [
        ("retrained_autoencoder", Workspace().purifier("retrained_autoencoder"), Workspace().autoencoder),
        ("finetuned_classifier", Workspace().defended_classifier("finetuned_classifier"), Workspace().classifier),
        ("randomized_smoothing", Workspace().defended_classifier("randomized_smoothing"), Workspace().classifier),
        ("adversarial_training", Workspace().defended_classifier("adversarial_training"), Workspace().classifier),
        ("trades", Workspace().defended_classifier("trades"), Workspace().classifier),
    ],
)
def test_training_starts_from_the_weights_of_the_earlier_steps(
    defence: str, path: Path, initial: Path, small_folder: Path, params_with: Callable[..., Params]
) -> None:
    run(params_with(SHORT | NO_CHANGE), defence)
    builder = build_autoencoder if initial == Workspace().autoencoder else build_classifier
    before = dict(load_model(initial, builder).named_parameters())
    for name, weights in load_model(path, builder).named_parameters():
        torch.testing.assert_close(weights, before[name], rtol=0, atol=1e-6)


def test_an_autoencoder_of_another_architecture_starts_from_random_weights(
    small_folder: Path, params_with: Callable[..., Params]
) -> None:
    params = params_with(SHORT | NO_CHANGE | {"defences.joint_autoencoder.architecture": "residual"})
    run(params, "joint_autoencoder")
    images = torch.rand(2, 1, 32, 32)
    purifier = load_model(Workspace().purifier("joint_autoencoder"), build_autoencoder)
    # an untrained residual autoencoder returns its input
    torch.testing.assert_close(purifier(images), images)


def test_the_finetuned_classifier_is_behind_the_trained_autoencoder(
    small_folder: Path, params_with: Callable[..., Params]
) -> None:
    files = run(params_with(SHORT), "finetuned_classifier")
    assert files["purifier.safetensors"] == Workspace().autoencoder.read_bytes()
    assert files["classifier.safetensors"] != Workspace().classifier.read_bytes()
    target = load_target(Workspace(), "finetuned_classifier", torch.device("cpu"))
    images = torch.rand(2, 1, 32, 32)
    autoencoder = load_model(Workspace().autoencoder, build_autoencoder)
    finetuned = load_model(Workspace().defended_classifier("finetuned_classifier"), build_classifier)
    # convolutions round differently in another memory format
    torch.testing.assert_close(target(images), finetuned(autoencoder(images)), rtol=1e-5, atol=1e-5)


def test_randomized_smoothing_adds_noise_in_front_of_its_own_classifier(
    small_folder: Path, params_with: Callable[..., Params]
) -> None:
    run(params_with(SHORT | {"defences.randomized_smoothing.n_eot_samples": 3}), "randomized_smoothing")
    target = load_target(Workspace(), "randomized_smoothing", torch.device("cpu"))
    assert isinstance(target, Purified)
    assert target.n_eot_samples == 3
    grey = torch.full((4, 1, 32, 32), 0.5)
    noisy = target.purifier(grey)
    # a standard deviation of 0.25, clamped at two standard deviations
    assert float(noisy.std()) == pytest.approx(0.235, abs=0.01)
    assert not torch.equal(noisy, target.purifier(grey))


@pytest.mark.parametrize("defence", ["randomized_smoothing", "finetuned_classifier"])
def test_batch_norm_statistics_are_those_of_the_output_of_the_purifier(
    defence: str, small_folder: Path, params_with: Callable[..., Params]
) -> None:
    run(params_with(SHORT), defence)
    data, target = load_prepared(Workspace()), load_target(Workspace(), defence, torch.device("cpu"))
    assert isinstance(target, Purified)
    norm = next(module for module in target.classifier.modules() if isinstance(module, nn.BatchNorm2d))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    inputs: list[Tensor] = []
    norm.register_forward_hook(lambda _module, arguments, _output: inputs.append(arguments[0]))
    images = torch.from_numpy(data.floats(data.indices("train")))
    with torch.no_grad():
        target.classifier(target.purifier(images))
        target.classifier(images)
    distance_behind_purifier, distance_without = (
        float((norm.running_var - each.var(dim=(0, 2, 3))).abs().mean() / each.var(dim=(0, 2, 3)).mean())
        for each in inputs
    )
    assert distance_behind_purifier < 0.1
    assert distance_without > 2 * distance_behind_purifier


@pytest.mark.parametrize("defence", ["adversarial_training", "trades"])
def test_a_robustly_trained_classifier_has_no_purifier(
    defence: str, small_folder: Path, params_with: Callable[..., Params]
) -> None:
    files = run(params_with(SHORT), defence)
    assert sorted(files) == ["classifier.json", "classifier.safetensors", "history.csv", "settings.json"]
    assert not isinstance(load_target(Workspace(), defence, torch.device("cpu")), Purified)


def test_a_training_does_not_resume_from_a_checkpoint_of_another_classifier(
    small_folder: Path, params_with: Callable[..., Params], caplog: pytest.LogCaptureFixture
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


@pytest.mark.parametrize(("fraction", "n_attacked"), [(0.5, 4), (0.3, 3), (1.0, 8)])
def test_the_first_part_of_a_batch_is_adversarial_and_the_rest_is_noisy(
    fraction: float, n_attacked: int, small_folder: Path, params_with: Callable[..., Params]
) -> None:
    params = params_with({"train_autoencoder.clean_fraction": 0.9})
    settings = settings_with(params_with, **{"adversarial_fraction": fraction, "adversary.eps_range": [4, 4]})
    classifier = load_model(Workspace().classifier, build_classifier)
    images, labels = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    recorder = InputRecorder()
    loss = retraining_objective(classifier, settings, params.train_autoencoder)(
        recorder, images, labels, torch.Generator().manual_seed(1), 1.0
    )["loss"]
    linf_norms = (recorder.inputs - images).abs().amax(dim=(1, 2, 3))
    assert linf_norms[:n_attacked].numpy() == pytest.approx(np.full(n_attacked, 4 / 255), abs=1e-6)
    # the noise is much larger than eps, and most of the other images are clean
    assert not torch.isclose(linf_norms[n_attacked:], torch.tensor(4 / 255), atol=1e-4).any()
    assert float(loss) == pytest.approx(float((recorder.inputs - images).square().mean()))
    with torch.no_grad():
        clean_loss = nn.functional.cross_entropy(classifier(images[:n_attacked]), labels[:n_attacked])
        adversarial_loss = nn.functional.cross_entropy(classifier(recorder.inputs[:n_attacked]), labels[:n_attacked])
    assert adversarial_loss > clean_loss


def test_every_batch_has_another_eps_and_the_same_seed_gives_the_same_ones(
    small_folder: Path, params_with: Callable[..., Params]
) -> None:
    settings = settings_with(params_with, **{"adversary.eps_range": [0.25, 8]})
    objective = retraining_objective(
        load_model(Workspace().classifier, build_classifier), settings, params_with().train_autoencoder
    )
    images, labels = torch.full((4, 1, 32, 32), 0.5), torch.arange(4) % 3
    recorder = InputRecorder()

    def eps_of_batches(seed: int) -> list[float]:
        generator = torch.Generator().manual_seed(seed)
        eps = []
        for _ in range(20):
            objective(recorder, images, labels, generator, 1.0)
            eps.append(float((recorder.inputs[0] - images[0]).abs().max()) * 255)
        return eps

    eps = eps_of_batches(0)
    assert eps == eps_of_batches(0)
    assert len(set(eps)) == 20
    assert 0.25 <= min(eps) < 1 < 2 < max(eps) <= 8.001


class LinearClassifier(nn.Module):
    """Classifier with the logits 0 and ``weight * (mean pixel - 0.5)``; it records its inputs."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.inputs: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.inputs.append(images.detach().clone())
        second = self.weight * (images.mean(dim=(1, 2, 3)) - 0.5)
        return torch.stack([torch.zeros_like(second), second], dim=1)


def robust_objective(params_with: Callable[..., Params], name: str, **changed: object) -> Objective:
    """Return the objective of a robust training whose PGD steps are so large that every pixel changes by eps."""
    changed = {"adversary.pgd.relative_step_size": 2.0, **changed}
    params = params_with({f"defences.{name}.{key}": value for key, value in changed.items()})
    settings = params.defences[name]
    assert isinstance(settings, AdversarialTraining | Trades)
    return robust_training_objective(settings, params.train_classifier.augmentation)


GREY = torch.full((2, 1, 32, 32), 0.5)
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize("clean_weight", [0.0, 0.3])
def test_clean_weight_is_the_weight_of_the_clean_images_in_the_loss_of_adversarial_training(
    clean_weight: float, params_with: Callable[..., Params]
) -> None:
    objective = robust_objective(
        params_with, "adversarial_training", **{"adversary.eps_range": [8, 8], "clean_weight": clean_weight}
    )
    metrics = objective(
        LinearClassifier(30.0).eval().requires_grad_(False), GREY, LABELS, torch.Generator().manual_seed(0), 1.0
    )
    # every pixel changes by 8/255, which changes the second logit by 30 * 8/255 in the wrong direction
    attacked = torch.nn.functional.softplus(torch.tensor(30 * 8 / 255))
    clean = torch.nn.functional.softplus(torch.tensor(0.0))
    assert float(metrics["loss"]) == pytest.approx(
        float(clean_weight * clean + (1 - clean_weight) * attacked), rel=1e-4
    )
    assert float(metrics["robust_accuracy"]) == 0


def test_the_loss_of_trades_is_the_clean_loss_plus_beta_times_the_divergence(
    params_with: Callable[..., Params],
) -> None:
    objective = robust_objective(params_with, "trades", **{"adversary.eps_range": [8, 8], "beta": 3.0})
    model = LinearClassifier(30.0).eval()
    metrics = objective(model, GREY, LABELS, torch.Generator().manual_seed(0), 1.0)
    clean, attacked = (model(images).softmax(dim=1) for images in model.inputs[-1].chunk(2))
    divergence = (clean * (clean / attacked).log()).sum(dim=1).mean()
    assert divergence > 0.1
    expected = -clean[[0, 1], LABELS].log().mean() + 3 * divergence
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("warmup_fraction", "progress", "eps"), [(0.5, 0.25, 4), (0.5, 0.5, 8), (0.0, 0.01, 8), (0.5, 1.0, 8)]
)
def test_eps_rises_linearly_over_the_warmup(
    warmup_fraction: float, progress: float, eps: float, params_with: Callable[..., Params]
) -> None:
    objective = robust_objective(
        params_with, "adversarial_training", **{"adversary.eps_range": [8, 8], "eps_warmup_fraction": warmup_fraction}
    )
    model = LinearClassifier(30.0).eval()
    objective(model, GREY, LABELS, torch.Generator().manual_seed(0), progress)
    clean, attacked = model.inputs[-1].chunk(2)
    assert float((attacked - clean).abs().max()) * 255 == pytest.approx(eps, rel=1e-4)


def test_joint_training_attacks_the_autoencoder_and_the_classifier_end_to_end(
    params_with: Callable[..., Params],
) -> None:
    params = params_with({"defences.joint_autoencoder.clean_weight": 0.25})
    settings = params.defences["joint_autoencoder"]
    assert isinstance(settings, JointAutoencoder)

    class Inverted(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            self.inputs = images.detach().clone()
            return 1 - images

    classifier, autoencoder = LinearClassifier(30.0), Inverted().eval()
    objective = joint_training_objective(classifier, settings, params.train_classifier.augmentation)
    metrics = objective(autoencoder, GREY, LABELS, torch.Generator().manual_seed(0), 1.0)
    clean, attacked = autoencoder.inputs.chunk(2)
    assert torch.equal(clean, GREY)
    # the classifier predicts class 1 for bright images; the inversion reverses this, so the attack on class 1 brightens
    assert attacked[1].mean() > 0.5 > attacked[0].mean()
    assert float(metrics["robust_accuracy"]) == 0
    squared = float((1 - autoencoder.inputs - torch.cat([GREY, GREY])).square().mean())
    clean_loss, loss = (torch.nn.functional.cross_entropy(classifier(1 - each), LABELS) for each in (clean, attacked))
    expected = 0.25 * float(clean_loss) + 0.75 * float(loss) + settings.reconstruction_weight * squared
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["squared_error"]) == pytest.approx(squared, rel=1e-5)


@pytest.mark.parametrize("layer", ["logits", "features"])
def test_the_loss_of_a_guided_autoencoder_is_the_distance_of_the_guidance_layer(
    layer: str, small_folder: Path, params_with: Callable[..., Params]
) -> None:
    params = params_with({"defences.feature_guided_autoencoder.guidance_layer": layer})
    settings = params.defences["feature_guided_autoencoder"]
    assert isinstance(settings, FeatureGuidedAutoencoder)
    classifier = load_model(Workspace().classifier, build_classifier)
    objective = feature_guided_objective(classifier, settings, params.train_autoencoder)
    images, labels, recorder = torch.rand(4, 1, 32, 32), torch.arange(4) % 3, InputRecorder()
    metrics = objective(recorder, images, labels, torch.Generator().manual_seed(0), 1.0)
    index = ["logits", "features"].index(layer)
    actual, clean = (LogitsAndFeatures(classifier)(each)[index] for each in (recorder.inputs, images))
    assert float(metrics["loss"]) == pytest.approx(float((actual - clean).abs().mean()), rel=1e-5)
    assert float(metrics["loss"]) > 0


def test_adversarial_examples_move_away_from_the_given_probabilities(params_with: Callable[..., Params]) -> None:
    settings = params_with({"defences.trades.adversary.eps_range": [8, 8]}).defences["trades"]
    assert isinstance(settings, Trades)
    model = LinearClassifier(30.0)
    probabilities = torch.tensor([[0.99, 0.01], [0.01, 0.99]])
    adversarial = adversarial_examples(model, GREY, probabilities, settings.adversary, torch.Generator().manual_seed(0))
    assert adversarial[0].mean() > 0.5 > adversarial[1].mean()
