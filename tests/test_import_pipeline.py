"""The steps run on imported classifiers: one with gradients, and one that is only queried."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tasks.attack import attack
from tasks.attack_defence import attack_defence
from tasks.core.workspace import Workspace
from tasks.evaluation.import_checks import import_checks
from tasks.models.files import save_model
from tasks.models.imported import ImportedClassifier
from tasks.models.loading import load_classifier
from tasks.params import Params, parse_params
from tasks.runner import run_step
from tasks.train_classifier import train_classifier
from tasks.train_defence import train_defence
from tests.conftest import with_overrides
from tests.small_workspace import CLASSES, SIDE, SMALL

MODULE = """
from tasks.models.classifier import build_classifier

def build():
    return build_classifier("cnn", 3, 0.45, 0.1)

class Scores:
    def __init__(self, network):
        self.network = network.eval()

    def __call__(self, batch):
        import torch
        with torch.inference_mode():
            return list(self.network(torch.stack([torch.as_tensor(image) for image in batch])))

def scores(weights):
    from safetensors.torch import load_file
    network = build()
    network.load_state_dict(load_file(weights))
    return Scores(network)
"""


def toy(small_workspace: Path, folder: Path) -> Workspace:
    """The small workspace, whose classifier lies as the user's files in ``models``."""
    workspace = Workspace(folder)
    shutil.copytree(small_workspace / "data", workspace.data)
    (folder / "models").mkdir()
    (folder / "models" / "ours.py").write_text(MODULE)
    shutil.copyfile(workspace.classifier, folder / "models" / "weights.safetensors")
    workspace.train_surrogates.mkdir(exist_ok=True)
    save_model(workspace.surrogate("cnn-1"), load_classifier(workspace, workspace.classifier), **BUILD)
    row = {"name": "cnn-1", "architecture": "cnn", "seed": 1, "validation_accuracy": 1.0}
    workspace.surrogates.write_text(json.dumps([row]))
    return workspace


BUILD: dict[str, Any] = {"architecture": "cnn", "n_classes": 3, "mean": 0.45, "std": 0.1}


def parameters(**classifier: Any) -> Params:
    return parse_params(
        with_overrides(
            SMALL | {"acquire.classes": CLASSES, "acquire.positive_class": "left", "attack.max_images": 12}
            | {"classifier": {"folder": "models", "weights": "weights.safetensors"} | classifier}
        )
    )  # fmt: skip


def test_a_classifier_with_gradients_is_imported_attacked_and_trained_further(
    small_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    workspace = toy(small_workspace, tmp_path)
    before = load_classifier(workspace, workspace.classifier)
    table = pd.read_parquet(workspace.split)
    images = torch.rand(4, 1, SIDE, SIDE)
    with pytest.raises(ValueError, match=r"classifier\.expected_accuracy: 0\.9 is expected"):
        run_step(
            train_classifier,
            workspace,
            parameters(source="factory", factory="ours:build", weights=None, expected_accuracy=0.9),
        )
    params = parameters(source="factory", factory="ours:build")
    run_step(train_classifier, workspace, params)
    assert not (workspace.classifier_files / "weights.safetensors").exists()
    torch.testing.assert_close(load_classifier(workspace, workspace.classifier)(images), before(images))
    first = {path.name: path.read_bytes() for path in workspace.train_classifier.rglob("*") if path.is_file()}
    run_step(train_classifier, workspace, params)
    assert first == {path.name: path.read_bytes() for path in workspace.train_classifier.rglob("*") if path.is_file()}
    assert [check.status for check in import_checks(json.loads(workspace.parity.read_text()))] == ["WARN"]

    run_step(attack, workspace, params)
    records = pd.read_parquet(workspace.records("undefended"))
    assert {"adaptive", "transfer"} <= set(records["threat_model"])
    assert len(records[records["attack"] == "clean"]) == (table["split"] == "test").sum()

    training = {"epochs": 1, "batch_size": 16, "learning_rate": 0.001, "learning_rate_schedule": "constant"}
    training |= {"early_stopping_patience": 0, "ema_decay": 0.0}
    tuned = params.model_copy(update={"defences": dict(params.defences)})
    tuned.defences["finetuned_classifier"] = type(params.defences["finetuned_classifier"]).model_validate_json(
        json.dumps({"kind": "finetuned_classifier", "training": training})
    )
    run_step(train_defence, workspace, tuned, defence="finetuned_classifier")
    trained = load_classifier(workspace, workspace.defended_classifier("finetuned_classifier"))
    assert isinstance(trained, ImportedClassifier)
    assert not torch.equal(trained(images), before(images))


def test_a_classifier_that_is_only_queried_is_attacked_with_the_gradients_of_surrogates(
    small_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    workspace = toy(small_workspace, tmp_path)
    params = parameters(source="maite", factory="ours:scores")
    run_step(train_classifier, workspace, params)
    checks = {check.key: check for check in import_checks(json.loads(workspace.parity.read_text()))}
    assert checks["white_box_access"].status == "WARN"
    assert "no attack uses its gradients" in checks["white_box_access"].explanation
    run_step(attack, workspace, params)
    records = pd.read_parquet(workspace.records("undefended"))
    broken = records[(records["attack"] == "pgd") & (records["eps"] == 4)]
    clean = records[(records["attack"] == "clean") & records["image"].isin(broken["image"])]
    # the surrogate has the weights of the target, so its gradients break images
    assert (broken["prediction"] == broken["label"]).mean() < (clean["prediction"] == clean["label"]).mean()
    run_step(attack_defence, workspace, params, defence="autoencoder")
    assert "transfer" in set(pd.read_parquet(workspace.records("autoencoder"))["threat_model"])
    with pytest.raises(ValueError, match="can only be queried"):
        run_step(train_defence, workspace, params, defence="trades")
