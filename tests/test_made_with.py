"""Outputs that were made with other inputs than the present ones are refused: a step in between was left out."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.attack import attack
from tasks.attack_defence import attack_defence
from tasks.attacks.surrogates import load_surrogates
from tasks.core.workspace import Workspace
from tasks.defences.targets import load_target
from tasks.outcomes.attack_outputs import read_records
from tasks.params import Params
from tasks.runner import run_step
from tasks.tracking import Tracker
from tasks.train_classifier import train_classifier
from tasks.train_defence import train_defence
from tasks.train_surrogates import train_surrogates
from tests.conftest import ROOT
from tests.small_workspace import CLASSES, SMALL

pytestmark = pytest.mark.usefixtures("few_channels")

CPU = torch.device("cpu")
PLUGIN = """
from torch import nn

def ensemble(classifier):
    return nn.Sequential(classifier)
"""
TRAINED = SMALL | {
    "acquire.classes": CLASSES,
    "acquire.positive_class": "left",
    "train_classifier.epochs": 1,
    "train_surrogates": [{"architecture": "cnn", "epochs": 1}],
    "defences.trades.training.epochs": 1,
    "defences.trades.adversary.pgd.n_steps": 1,
    "defences.own": {"kind": "plugin", "factory": "mine:ensemble", "role": "classifier"},
}


def change_prepared(workspace: Workspace, **values: Any) -> None:
    """Let the prepared images have other classes, as after a step ``prepare`` by hand."""
    info = json.loads(workspace.dataset_info.read_text(encoding="utf-8"))
    workspace.dataset_info.write_text(json.dumps(info | values), encoding="utf-8")


@pytest.mark.parametrize(
    "classes", [["left", "none", "right"], ["none", "left side", "right"]], ids=["another order", "another name"]
)
def test_every_classifier_is_refused_if_it_was_made_for_other_classes(
    classes: list[str], workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    params = params_with(TRAINED)
    plugins = workspace.root / "plugins"
    plugins.mkdir()
    (plugins / "mine.py").write_text(PLUGIN)
    run_step(train_classifier, workspace, params)
    run_step(train_surrogates, workspace, params)
    for defence in ("trades", "own"):
        run_step(train_defence, workspace, params, defence=defence)
    for target in ("undefended", "trades", "own"):
        load_target(workspace, target, CPU)
    load_surrogates(workspace, CPU)

    change_prepared(workspace, classes=classes)
    for step, load in {
        "train_classifier": lambda: load_target(workspace, "undefended", CPU),
        "train_surrogates": lambda: load_surrogates(workspace, CPU),
        "train_defence@trades": lambda: load_target(workspace, "trades", CPU),
        "train_defence@own": lambda: load_target(workspace, "own", CPU),
    }.items():
        path = f"{workspace.data}/{step.replace('@', '/')}/"
        with pytest.raises(ValueError, match=rf"made with classes .* Run the step {step} again: dvc repro") as refused:
            load()
        assert str(refused.value).startswith(path)
        assert f"was made with classes {CLASSES}, and {workspace.dataset_info} has classes {classes}." in str(
            refused.value
        )


@pytest.mark.parametrize(
    "changed",
    [
        {"classes": ["left", "none", "right"]},
        {"classes": ["none", "left", "third"]},
        {"positive_class": "right"},
    ],
    ids=["order", "name", "positive class"],
)
def test_a_step_is_refused_if_the_images_were_prepared_for_other_classes(
    changed: dict[str, Any], workspace: Workspace, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    # without mlflow the runner does not track
    monkeypatch.setitem(sys.modules, "mlflow", None)
    shutil.copy(ROOT / "dvc.yaml", workspace.root)
    ran = []

    def train_autoencoder(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        ran.append(workspace)

    def prepare(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        ran.append(workspace)

    run_step(train_autoencoder, workspace, params_with(TRAINED))
    params = params_with(TRAINED | {f"acquire.{key}": value for key, value in changed.items()})
    with pytest.raises(ValueError, match=r"dataset\.json was made with .*params\.yaml has .*dvc repro prepare"):
        run_step(train_autoencoder, workspace, params)
    run_step(prepare, workspace, params)
    assert len(ran) == 2


@pytest.mark.parametrize("version", [0, None], ids=["another version", "before the first version"])
def test_outputs_of_another_version_are_refused(
    version: int | None, workspace: Workspace, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    shutil.copy(ROOT / "dvc.yaml", workspace.root)
    change_prepared(workspace, schema_version=version)

    def train_autoencoder(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        raise AssertionError

    with pytest.raises(ValueError, match=rf"has the schema_version {version}, and only 1 is supported\. .*dvc repro$"):
        run_step(train_autoencoder, workspace, params_with(TRAINED))


def test_an_imported_classifier_is_refused_for_another_positive_class(workspace: Workspace) -> None:
    path = workspace.classifier.with_suffix(".json")
    made_for = {"classes": CLASSES, "positive_class": "left"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"made_for": made_for}))
    load_target(workspace, "undefended", CPU)
    change_prepared(workspace, positive_class="right")
    with pytest.raises(ValueError, match=r"made with positive_class left, and .* has positive_class right"):
        load_target(workspace, "undefended", CPU)


def test_a_manifest_of_another_order_of_the_classes_is_refused(
    workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    from tasks.prepare import prepare

    workspace.validate.mkdir()
    pd.DataFrame({"class": ["left", "none"], "label": [0, 1]}).to_parquet(workspace.manifest)
    params = params_with({"acquire.classes": ["none", "left"], "acquire.positive_class": "left"})
    with pytest.raises(ValueError, match=r"manifest\.parquet was made with classes .*Run the step validate again"):
        prepare(workspace, params, Tracker())


FEW = TRAINED | {
    "attack.attacks": ["pgd"],
    "attack.max_images": 6,
    "attack.max_validation_images": 3,
    "attack.max_black_box_images": 3,
    "attack.max_art_reference_images": 3,
}


def test_records_are_refused_if_a_network_the_split_or_the_images_have_changed(
    workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    params = params_with(FEW)
    run_step(attack, workspace, params)
    run_step(attack_defence, workspace, params, defence="autoencoder")
    assert set(read_records(workspace, ["autoencoder"])["target"]) == {"undefended", "autoencoder"}

    def refused(file: Path, step: str, read: Callable[[], object]) -> None:
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        message = rf"records\.parquet was made with {file.relative_to(workspace.root)} .*Run the step {step} again"
        with pytest.raises(ValueError, match=message):
            read()
        file.write_bytes(content)
        read()

    for file in (workspace.classifier, workspace.split, workspace.pixels):
        refused(file, "attack", lambda: read_records(workspace, []))
    refused(
        workspace.purifier("autoencoder"),
        "attack_defence@autoencoder",
        lambda: read_records(workspace, ["autoencoder"]),
    )
    # of other parameters: the targets would be compared under different attacks
    run_step(attack, workspace, params_with(FEW | {"attack.norm": "l2"}))
    message = r"attack_defence/autoencoder/records\.parquet was made with another seed or other parameters"
    with pytest.raises(ValueError, match=message):
        read_records(workspace, ["autoencoder"])
    run_step(attack, workspace, params)
    read_records(workspace, ["autoencoder"])
    # its transfer attacks read the images that were crafted on the undefended classifier
    change_weights(workspace)
    with pytest.raises(ValueError, match=r"attack/records\.parquet was made with .*Run the step attack again"):
        run_step(attack_defence, workspace, params, defence="autoencoder")


def change_weights(workspace: Workspace) -> None:
    """Let the classifier have other weights, as after a step ``train_classifier`` by hand."""
    weights = load_file(workspace.classifier)
    name, first = next(iter(weights.items()))
    save_file(weights | {name: 1.01 * first}, workspace.classifier)
