from pathlib import Path

import pytest
import torch
from torch import nn

from tasks.core.workspace import Workspace
from tasks.defences.purified import Purified
from tasks.defences.targets import load_target
from tasks.models.autoencoder import build_autoencoder
from tasks.models.classifier import build_classifier
from tasks.models.files import save_model
from tasks.params import UNDEFENDED

CPU = torch.device("cpu")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, nn.Module]:
    """An untrained classifier and autoencoder, saved in a workspace."""
    monkeypatch.chdir(tmp_path)
    Workspace().train_classifier.mkdir(parents=True)
    Workspace().purifier("autoencoder").parent.mkdir(parents=True)
    build = {"architecture": "cnn", "n_classes": 3, "mean": 0.4, "std": 0.2}
    classifier, autoencoder = build_classifier(**build), build_autoencoder("plain")
    save_model(Workspace().classifier, classifier, **build)
    save_model(Workspace().purifier("autoencoder"), autoencoder, architecture="plain")
    return classifier.eval(), autoencoder.eval()


def test_a_target_is_the_classifier_or_that_with_a_defence_in_front_of_it(models: tuple[nn.Module, nn.Module]) -> None:
    classifier, autoencoder = models
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(load_target(Workspace(), UNDEFENDED, CPU)(images), classifier(images))
        torch.testing.assert_close(
            load_target(Workspace(), "autoencoder", CPU)(images), classifier(autoencoder(images))
        )


def test_targets_are_frozen_and_in_evaluation_mode(models: tuple[nn.Module, nn.Module]) -> None:
    for name in (UNDEFENDED, "autoencoder"):
        target = load_target(Workspace(), name, CPU)
        assert not any(module.training for module in target.modules())
        assert not any(parameter.requires_grad for parameter in target.parameters())


def test_gradients_reach_the_image_through_the_defence(models: tuple[nn.Module, nn.Module]) -> None:
    images = torch.rand(2, 1, 32, 32, requires_grad=True)
    target = load_target(Workspace(), "autoencoder", CPU)
    assert isinstance(target, Purified)
    target(images)[:, 0].sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("path", "step"),
    [(Workspace().classifier, "train_classifier"), (Workspace().purifier("autoencoder"), "train_defence@autoencoder")],
)
def test_a_missing_model_names_its_step(models: tuple[nn.Module, nn.Module], path: Path, step: str) -> None:
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"run the step {step} first"):
        load_target(Workspace(), "autoencoder", CPU)
