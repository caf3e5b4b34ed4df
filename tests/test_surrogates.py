"""Independent surrogates: their training, attacks on them, and the transfer of these attacks."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from tasks.attack import attack
from tasks.attack_defence import attack_defence
from tasks.attacks.attack_run import AttackRun
from tasks.attacks.surrogates import craft_on_surrogate
from tasks.core.digests import digest_of_model
from tasks.core.files import write_json
from tasks.core.workspace import Workspace
from tasks.models.classifier import build_classifier
from tasks.models.files import copy_model, load_build_arguments, save_model
from tasks.models.loading import load_classifier
from tasks.models.seeding import build_seeded, surrogate_seed
from tasks.outcomes.attack_outputs import read_records
from tasks.params import Params, ParamsError
from tasks.tracking import Tracker
from tasks.train_surrogates import train_surrogates
from tests.conftest import ROOT
from tests.small_workspace import SMALL

pytestmark = pytest.mark.usefixtures("few_channels")

TWO_CNNS = [{"architecture": "cnn", "epochs": 1}] * 2
FEW = SMALL | {
    "attack.attacks": ["pgd"],
    "attack.max_images": 6,
    "attack.max_validation_images": 3,
    "attack.max_black_box_images": 3,
    "attack.max_art_reference_images": 3,
}
EXACT = [
    "image",
    "label",
    "eps",
    "linf",
    "l2",
    "prediction",
    "entropy",
    "margin",
    "correct",
    "clean_correct",
    "success",
    "correct_8bit",
]


def train(workspace: Workspace, params: Params) -> dict[str, bytes]:
    """Run the step in an empty folder, as the runner does; the written files by name."""
    shutil.rmtree(workspace.train_surrogates)
    workspace.train_surrogates.mkdir()
    train_surrogates(workspace, params, Tracker())
    shutil.rmtree(workspace.root / "checkpoints", ignore_errors=True)
    return {file.name: file.read_bytes() for file in sorted(workspace.train_surrogates.iterdir())}


def digest(workspace: Workspace, name: str) -> str:
    return digest_of_model(load_classifier(workspace, workspace.surrogate(name)))


def test_every_row_gives_a_classifier_with_its_own_seed_and_weights(
    workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    params = params_with(SMALL | {"train_surrogates": [*TWO_CNNS, {"architecture": "shufflenet_v2_x0_5", "epochs": 1}]})
    files = train(workspace, params)
    names = ["cnn-1", "cnn-2", "shufflenet_v2_x0_5-3"]
    expected = {f"{name}.{suffix}" for name in names for suffix in ("csv", "json", "safetensors")}
    assert set(files) == expected | {"surrogates.json"}
    listed = json.loads(files["surrogates.json"])
    assert [(row["name"], row["architecture"]) for row in listed] == [
        ("cnn-1", "cnn"),
        ("cnn-2", "cnn"),
        ("shufflenet_v2_x0_5-3", "shufflenet_v2_x0_5"),
    ]
    assert len({params.seed, *(row["seed"] for row in listed)}) == 4
    assert all(0 <= row["validation_accuracy"] <= 1 for row in listed)
    # rows with the same settings differ by their seed alone
    assert digest(workspace, "cnn-1") != digest(workspace, "cnn-2")


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_weights(
    workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    params = params_with(SMALL | {"train_surrogates": TWO_CNNS[:1]})
    first = train(workspace, params)
    assert train(workspace, params) == first
    other = train(workspace, params.model_copy(update={"seed": params.seed + 1}))
    assert other["cnn-1.safetensors"] != first["cnn-1.safetensors"]


def test_seeds_of_surrogates_depend_on_the_seed_and_the_position() -> None:
    seeds = {surrogate_seed(seed, position) for seed in range(20) for position in range(1, 6)}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_a_surrogate_has_the_settings_of_the_classifier_except_for_its_own(params_with: Callable[..., Params]) -> None:
    overrides = {"train_classifier.architecture": "resnet18", "train_classifier.pretrained": True}
    params = params_with(SMALL | overrides | {"train_surrogates": TWO_CNNS[:1]})
    settings = params.train_surrogates[0].training(params.train_classifier)
    assert (settings.architecture, settings.epochs, settings.pretrained) == ("cnn", 1, False)
    assert settings.learning_rate == params.train_classifier.learning_rate
    assert settings.augmentation == params.train_classifier.augmentation
    assert settings.batch_size == params.train_classifier.batch_size
    faster = params_with({"train_surrogates": [TWO_CNNS[0] | {"learning_rate": 0.01}]}).train_surrogates[0]
    assert faster.training(params.train_classifier).learning_rate == 0.01


def test_a_row_needs_an_architecture_and_epochs(params_with: Callable[..., Params]) -> None:
    with pytest.raises(ParamsError, match=r"train_surrogates\[0\].epochs: missing"):
        params_with({"train_surrogates": [{"architecture": "cnn"}]})


def save_surrogates(workspace: Workspace) -> None:
    """Write two surrogates: a copy of the classifier, and one with other weights."""
    copy_model(workspace.classifier, workspace.surrogate("cnn-1"))
    arguments = load_build_arguments(workspace.classifier)
    save_model(workspace.surrogate("cnn-2"), build_seeded(lambda: build_classifier(**arguments), seed=1), **arguments)
    write_json([{"name": "cnn-1"}, {"name": "cnn-2"}], workspace.surrogates)


def test_transfer_from_a_copy_of_the_target_equals_the_direct_attack(
    workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    save_surrogates(workspace)
    for step, folder in ((attack, workspace.attack), (attack_defence, workspace.attack_defence / "autoencoder")):
        folder.mkdir(parents=True)
        step(workspace, params_with(FEW), Tracker(), *(["autoencoder"] if step is attack_defence else []))
    records = read_records(workspace, ["autoencoder"])
    names = records[["target", "threat_model", "attack", "surrogate"]].agg("/".join, axis=1)
    by_curve = {str(name): rows.sort_values(["eps", "image"]) for name, rows in records.groupby(names)}
    pairs = {
        "undefended/transfer/pgd/cnn-1": "undefended/adaptive/pgd/",
        "autoencoder/transfer/pgd/cnn-1": "autoencoder/transfer/pgd/undefended",
    }
    for copied, direct in pairs.items():
        first, second = (by_curve[name].reset_index() for name in (copied, direct))
        assert len(first) == 2 * 6
        np.testing.assert_array_equal(np.stack(list(first["logits"])), np.stack(list(second["logits"])))
        pd.testing.assert_frame_equal(first[EXACT], second[EXACT])
    # the weights matter
    other = by_curve["undefended/transfer/pgd/cnn-2"]
    assert (other["margin"].to_numpy() != by_curve["undefended/adaptive/pgd/"]["margin"].to_numpy()).all()
    # attacks that are not transferred have no surrogate, and the undefended classifier is no surrogate of itself
    assert set(records.loc[records["threat_model"] != "transfer", "surrogate"]) == {""}
    of_surrogates = records[records["threat_model"] == "transfer"].groupby("target")["surrogate"].unique()
    assert {target: set(found) for target, found in of_surrogates.items()} == {
        "undefended": {"cnn-1", "cnn-2"},
        "autoencoder": {"undefended", "cnn-1", "cnn-2"},
    }
    files = sorted(path.relative_to(workspace.attack).as_posix() for path in workspace.attack.glob("surrogates/*/*"))
    assert files == [f"surrogates/cnn-{i}/pgd-eps{eps}.npz" for i in (1, 2) for eps in ("0.5", "4")]


def test_the_attacks_on_surrogates_are_parts_that_workers_can_share(
    workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    def parts(target: str) -> list[Any]:
        run = AttackRun.load(workspace, params_with(SMALL), target)
        return [part for part in run.parts() if getattr(part, "func", None) is craft_on_surrogate]

    assert parts("undefended") == []
    save_surrogates(workspace)
    assert parts("autoencoder") == []
    # 32 images in batches of 16
    found = [part() for part in parts("undefended")]
    assert [list(folders) for folders in found] == [["cnn-1"], ["cnn-1"], ["cnn-2"], ["cnn-2"]]
    folders = [folder for by_name in found for folder in by_name.values()]
    assert len(set(folders)) == 4
    assert all(sorted(path.name for path in folder.glob("*.npz")) == ["eps0.5.npz", "eps4.npz"] for folder in folders)


def test_without_surrogates_nothing_is_transferred_to_the_undefended_classifier(
    workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    params = params_with(FEW | {"train_surrogates": []})
    assert list(train(workspace, params)) == ["surrogates.json"]
    workspace.attack.mkdir()
    attack(workspace, params, Tracker())
    records = read_records(workspace, [])
    assert set(records["threat_model"]) == {"none", "adaptive"}
    assert set(records["surrogate"]) == {""}


def test_an_attack_before_the_training_of_surrogates_names_the_step(
    workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    workspace.surrogates.unlink()
    with pytest.raises(FileNotFoundError, match=r"surrogates\.json not found\. Run the step train_surrogates first"):
        AttackRun.load(workspace, params_with(SMALL), "undefended")


def test_a_changed_row_makes_the_stage_stale_and_a_change_of_the_report_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dvc.repo import Repo

    monkeypatch.chdir(tmp_path)
    yaml = YAML(typ="safe")
    stage: dict[str, Any] = yaml.load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["train_surrogates"]
    with Path("dvc.yaml").open("w", encoding="utf-8") as file:
        yaml.dump({"stages": {"train_surrogates": stage}}, file)
    for name in ("params.yaml", "environment.yaml"):
        shutil.copyfile(ROOT / name, name)
    for path in map(Path, [*stage["deps"], *stage["outs"], "tasks/reporting", "tasks/evaluation"]):
        folder = path if not path.suffix else path.parent
        folder.mkdir(parents=True, exist_ok=True)
        (path if path.suffix else path / "file.py").write_text("1")
    repo = Repo.init(no_scm=True)
    repo.commit(force=True)
    assert repo.status() == {}
    for path in ("tasks/reporting/file.py", "tasks/evaluation/file.py"):
        Path(path).write_text("2")
    text = Path("params.yaml").read_text(encoding="utf-8")
    values = yaml.load(text)
    values["analyze"]["eps"] = values["attack"]["eps"][-1]
    with Path("params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(values, file)
    assert repo.status() == {}
    values["train_surrogates"][0]["epochs"] += 1
    with Path("params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(values, file)
    assert list(repo.status()) == ["train_surrogates"]
