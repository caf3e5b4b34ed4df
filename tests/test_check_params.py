"""The first step: nothing of params.yaml reaches a command, a path or a training before it is checked."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tasks.check_params import check_params
from tasks.core.workspace import Workspace
from tasks.params import Params
from tasks.tracking import Tracker
from tests.conftest import ROOT, with_overrides
from tests.test_pipeline import completed
from tests.two_steps import init_dvc_without_git


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x; touch pwned; '", "check_params: params.yaml is not valid:\n  defences."),
        ("../../labels", "output 'labels' is specified in"),
    ],
)
def test_a_name_of_a_defence_is_neither_a_command_nor_a_path_outside_of_data(
    name: str, message: str, tmp_path: Path
) -> None:
    for folder in ("tasks", "images"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("dvc.yaml", "environment.yaml"):
        shutil.copy(ROOT / file, tmp_path)
    values = with_overrides({"selected_defences": ["autoencoder", name]})
    with (tmp_path / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(values | {"defences": {**values["defences"], name: {"kind": "autoencoder"}}}, file)
    init_dvc_without_git(tmp_path)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "labels.csv").touch()
    done = completed(tmp_path, "dvc", "repro", "--keep-going")
    assert done.returncode
    assert message in done.stdout
    assert not (tmp_path / "pwned").exists()
    assert (tmp_path / "labels" / "labels.csv").exists()
    assert not (tmp_path / "data" / "acquire").exists()


def test_the_output_does_not_depend_on_the_parameters(tmp_path: Path, params_with: Callable[..., Params]) -> None:
    written = []
    for number, seed in enumerate((0, 1)):
        workspace = Workspace(tmp_path / str(number))
        workspace.check_params.mkdir(parents=True)
        check_params(workspace, params_with({"seed": seed}), Tracker())
        written.append([(path.name, path.read_bytes()) for path in workspace.check_params.iterdir()])
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("architecture", "factor", "message"),
    [
        ("vit_b_16", 1, "of prepare.image_size: 64 x 64 pixels .Wrong image height! .*Change prepare.image_size, or"),
        ("inception_v3", 1, "of prepare.image_size: 64 x 64 pixels .* Change prepare.image_size, or"),
        ("densenet121", 4, "of active_learning.downsampling_factor: 16 x 16 pixels .* Change active_learning.downs"),
        ("resnet", 1, "train_classifier.architecture: no classifier 'resnet'. Allowed are"),
    ],
)
def test_a_classifier_that_does_not_accept_the_images_is_refused_before_any_work(
    architecture: str, factor: int, message: str, tmp_path: Path, params_with: Callable[..., Params]
) -> None:
    workspace = Workspace(tmp_path)
    workspace.check_params.mkdir(parents=True)
    overrides = {"prepare.image_size": 64, "active_learning.downsampling_factor": factor, "train_surrogates": []}
    with pytest.raises(ValueError, match=message):
        check_params(workspace, params_with(overrides | {"train_classifier.architecture": architecture}), Tracker())
    assert not workspace.checked_params.exists()
    if "64 x 64" in message:
        surrogates = [{"architecture": "cnn", "epochs": 1}, {"architecture": architecture, "epochs": 1}]
        with pytest.raises(ValueError, match=message.replace("train_classifier", r"train_surrogates\[1\]")):
            check_params(workspace, params_with(overrides | {"train_surrogates": surrogates}), Tracker())
