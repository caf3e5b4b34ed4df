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
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.fixture
def models(workspace: Workspace) -> tuple[nn.Module, nn.Module]:
    """An untrained classifier and autoencoder, saved in the workspace."""
    workspace.train_classifier.mkdir(parents=True)
    workspace.purifier("autoencoder").parent.mkdir(parents=True)
    build = {"architecture": "cnn", "n_classes": 3, "mean": 0.4, "std": 0.2}
    classifier, autoencoder = build_classifier(**build), build_autoencoder("plain")
    save_model(workspace.classifier, classifier, **build)
    save_model(workspace.purifier("autoencoder"), autoencoder, architecture="plain")
    return classifier.eval(), autoencoder.eval()


def test_a_target_is_the_classifier_with_or_without_a_purifier(
    workspace: Workspace, models: tuple[nn.Module, nn.Module]
) -> None:
    classifier, autoencoder = models
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(load_target(workspace, UNDEFENDED, CPU)(images), classifier(images))
        defended = load_target(workspace, "autoencoder", CPU)
        torch.testing.assert_close(defended(images), classifier(autoencoder(images)))


@pytest.mark.usefixtures("models")
def test_targets_are_frozen_and_in_evaluation_mode(workspace: Workspace) -> None:
    for name in (UNDEFENDED, "autoencoder"):
        target = load_target(workspace, name, CPU)
        assert not any(module.training for module in target.modules())
        assert not any(parameter.requires_grad for parameter in target.parameters())


@pytest.mark.usefixtures("models")
def test_gradients_reach_the_image_through_the_defence(workspace: Workspace) -> None:
    images = torch.rand(2, 1, 32, 32, requires_grad=True)
    target = load_target(workspace, "autoencoder", CPU)
    assert isinstance(target, Purified)
    target(images)[:, 0].sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("step", ["train_classifier", "train_defence@autoencoder"])
def test_the_error_about_a_missing_model_names_the_step(workspace: Workspace, step: str) -> None:
    missing = workspace.classifier if step == "train_classifier" else workspace.purifier("autoencoder")
    missing.unlink()
    with pytest.raises(FileNotFoundError, match=f"run the step {step} first"):
        load_target(workspace, "autoencoder", CPU)
