"""The audit of a trained classifier of the user's by one command: options, forecast, run, exit codes, export."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from ruamel.yaml import YAML

from flows.attack_limits import max_gradients
from flows.audit import main
from flows.audit_forecast import Costs, duration, forecast, forecast_text, has_autoencoder
from flows.audit_options import audit_params, change_value, classifier_section, command_line
from flows.audit_run import AUDITS, MISSED, Thresholds, describe_result, missed_thresholds
from flows.own_audit import classifier_audit, write_workspace
from tasks.attacks.effort import EFFORTS, doubled
from tasks.core.locks import locked
from tasks.core.workspace import Workspace
from tasks.params import UNDEFENDED, Params, load_params
from tests.conftest import ROOT, with_overrides
from tests.small_workspace import CLASSES, draw_images
from tests.test_import_pipeline import MODULE
from tests.test_pipeline import TOY

SMALL: dict[str, Any] = TOY | {
    "selected_defences": ["autoencoder"],
    "attack.max_images": 8,
    "analyze.detector_evasion.eps": [],
    "validate.min_side": 32,
}
COMMAND = ["--model", "models/ours.py:build", "--weights", "models/weights.safetensors", "--images", "pictures"]
COMMAND += ["--classes", *CLASSES, "--positive-class", "left"]

SMALL_EFFORT = """
import pytest
from tests.conftest import set_small_effort
set_small_effort(pytest.MonkeyPatch())
from flows.audit import main
main()
"""
"""The command ``python -m flows.audit`` with few steps and queries."""


def make_folder(folder: Path, small_workspace: Path) -> None:
    """Write what a user has: a parameter file, a trained classifier and images in subfolders."""
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(with_overrides(SMALL), file)
    (folder / "models").mkdir()
    (folder / "models" / "ours.py").write_text(MODULE)
    shutil.copyfile(Workspace(small_workspace).classifier, folder / "models" / "weights.safetensors")
    pixels, table = draw_images()
    for path, image in zip(table["path"], pixels, strict=True):
        (file_of := folder / "pictures" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(file_of)


@pytest.fixture
def folder(small_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder as the current one."""
    make_folder(tmp_path, small_workspace)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def audit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call the command with these arguments."""

    def call(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["audit", *arguments])
        main()

    return call


class TestRun:
    """One real run of the command, by all steps."""

    @pytest.fixture(scope="class")
    def ended(
        self, small_workspace: Path, empty_store: Path, server: str, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[Path, subprocess.CompletedProcess[str]]:
        folder = tmp_path_factory.mktemp("audit")
        make_folder(folder, small_workspace)
        shutil.copy(empty_store, folder)
        shutil.copy(ROOT / "environment.yaml", folder)
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "PREFECT_API_URL": server,
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        }
        command = [sys.executable, "-c", SMALL_EFFORT, *COMMAND, "--name", "mine", "--set", "seed=3"]
        command += ["--min-clean-accuracy", "0.01", "--min-robust-accuracy", "1", "--export", "examples"]
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        return folder, ended

    def test_a_missed_threshold_is_named_and_gives_the_exit_code_3(
        self, ended: tuple[Path, subprocess.CompletedProcess[str]]
    ) -> None:
        _, process = ended
        assert process.returncode == MISSED, process.stderr
        assert "robust balanced accuracy" in process.stderr.splitlines()[-1]
        assert process.stderr.splitlines()[-1].endswith("is below 100.0 %.")
        assert "clean accuracy" not in process.stderr.splitlines()[-1]

    def test_the_audit_ends_with_the_result_and_a_report_without_active_learning(
        self, ended: tuple[Path, subprocess.CompletedProcess[str]]
    ) -> None:
        folder, process = ended
        workspace = Workspace(folder / "audits" / "mine")
        assert "mine (undefended): clean accuracy" in process.stdout
        assert "Report: audits/mine/data/report/report.html" in process.stdout
        assert workspace.report_html.is_file()
        assert not workspace.active_learning.exists()
        assert "active learning" not in workspace.report_markdown.read_text().lower().split("parameters")[0]
        assert not (folder / "data").exists()

    def test_the_kept_parameter_file_has_the_classifier_the_images_and_all_other_values(
        self, ended: tuple[Path, subprocess.CompletedProcess[str]]
    ) -> None:
        folder, _ = ended
        kept, base = (load_params(path / "params.yaml") for path in (folder / "audits" / "mine", folder))
        assert (kept.classifier.source, kept.classifier.factory) == ("factory", "ours:build")
        assert (kept.acquire.source, kept.acquire.classes) == ("folder", tuple(CLASSES))
        assert kept.acquire.folder == str((folder / "pictures").resolve())
        assert (kept.seed, base.seed) == (3, 0)
        assert kept.attack == base.attack
        repeated = command_line().parse_args(["--params", str(folder / "audits" / "mine" / "params.yaml")])
        assert audit_params(repeated) == kept

    def test_thresholds_below_the_accuracies_are_not_missed(
        self, ended: tuple[Path, subprocess.CompletedProcess[str]]
    ) -> None:
        workspace = Workspace(ended[0] / "audits" / "mine")
        params = load_params(workspace.params_file)
        assert missed_thresholds(workspace, params, "undefended", Thresholds(0.0, 0.0)) == []

    def test_exported_examples_stay_in_their_ball_and_have_the_predictions_of_the_records(
        self, ended: tuple[Path, subprocess.CompletedProcess[str]]
    ) -> None:
        folder, _ = ended
        with (folder / "examples" / "adversarial_examples.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["file"] for row in rows} == {"fgsm-eps4.npy", "pgd-eps4.npy"}
        clean = np.load(folder / "examples" / "unchanged.npy")
        images = np.load(folder / "examples" / "pgd-eps4.npy")
        assert images.shape == clean.shape == (8, 1, 32, 32)
        assert images.dtype == np.float32
        assert 3.9 < 255 * np.abs(images - clean).max() <= 4 + 1e-3
        records = pd.read_parquet(Workspace(folder / "audits" / "mine").records("undefended"))
        records = records[
            (records["attack"] == "pgd") & (records["eps"] == 4) & (records["threat_model"] == "adaptive")
        ]
        predicted = dict(zip(records["path"], records["prediction"], strict=True))
        exported = {row["path"]: CLASSES.index(row["prediction"]) for row in rows if row["attack"] == "pgd"}
        # the images are rounded for storage, which may change a prediction near the boundary
        assert sum(predicted[path] == label for path, label in exported.items()) >= 7
        assert all(row["path"].startswith(f"{row['label']}/") for row in rows)


def test_plan_prints_the_parts_and_writes_nothing(
    folder: Path, audit: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.rglob("*"))
    audit(*COMMAND, "--plan")
    printed = capsys.readouterr().out
    assert "surrogate 1: cnn, 1 epochs" in printed
    assert "attack_defence@autoencoder" in printed
    assert "Known parts together:" in printed
    assert [path for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts] == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "pictures"], r"audit: --model: missing"),
        (["--model", "models/ours.py:build"], r"audit: acquire\.source: phantom\. An audit needs a folder"),
        (["--model", "model.pkl", "--images", "pictures"], r"audit: --model: 'model\.pkl'\. Allowed are"),
        (["--model", "model.onnx", "--images", "pictures"], r"audit: --model: model\.onnx not found"),
        (["--model", "models/ours.py:build", "--images", "missing"], r"audit: --images: missing is not a folder"),
        ([*COMMAND, "--classes", "left", "up"], r"--images: .*pictures has no images of the classes \['up'\]"),
        ([*COMMAND, "--set", "attack.epsilon=4"], r"attack\.epsilon: unknown key"),
        ([*COMMAND, "--set", "seed"], r"audit: --set: 'seed'\. Write KEY=VALUE"),
        ([*COMMAND, "--table", "params.yaml"], r"audit: --table: params\.yaml is not in pictures"),
        (["--model", "models/ours.py:other", "--images", "pictures"], r"classifier\.factory: ours:other cannot be"),
        (
            ["--model", "models/ours.py:build", "--images", "pictures", "--weights", "params.yaml"],
            r"is not in .*models",
        ),
    ],
)
def test_bad_input_gives_one_message_before_anything_is_written(
    arguments: list[str], message: str, folder: Path, audit: Callable[..., None]
) -> None:
    with pytest.raises(SystemExit, match=message):
        audit(*arguments)
    assert not (folder / "audits").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--min-robust-accuracy", "1.5"],
        ["--min-clean-accuracy", "many"],
        ["--name", "../data"],
        ["ct-robustness@champion"],
    ],
)
def test_wrong_options_give_the_exit_code_2(arguments: list[str], audit: Callable[..., None]) -> None:
    with pytest.raises(SystemExit) as ended:
        audit(*COMMAND, *arguments)
    assert ended.value.code == 2


def test_images_and_models_that_the_audit_would_delete_are_refused(folder: Path, audit: Callable[..., None]) -> None:
    data = folder / "audits" / "mine" / "data"
    images = shutil.copytree(folder / "pictures", data / "acquire" / "images")
    models = shutil.copytree(folder / "models", data / "models")
    with pytest.raises(SystemExit, match=r"audit: acquire\.folder: .*images is in audits/mine/data, which the"):
        audit("--model", "models/ours.py:build", "--images", str(images), "--name", "mine")
    with pytest.raises(SystemExit, match=r"audit: classifier\.folder: .*models is in audits/mine/data"):
        audit("--model", f"{models}/ours.py:build", "--images", "pictures", "--name", "mine")
    params = audit_params(command_line().parse_args(["--model", "models/ours.py:build", "--images", str(images)]))
    write_workspace("mine", params)
    with pytest.raises(ValueError, match=r"acquire\.folder: .*Move it, or use another --name"):
        classifier_audit.fn("mine")
    assert any(images.rglob("*.png"))


@pytest.mark.usefixtures("own_store")
def test_a_registered_model_that_does_not_exist_gives_one_message(audit: Callable[..., None]) -> None:
    with pytest.raises(SystemExit, match=r"audit: toy/1 is not in the registry"):
        audit("toy/1", "--min-robust-accuracy", "0.5")


def test_classes_and_columns_of_a_table_are_found(folder: Path) -> None:
    _, table = draw_images()
    table.assign(patient=[f"p{number // 2}" for number in range(len(table))])[["path", "class", "patient"]].to_csv(
        folder / "pictures" / "table.csv", index=False
    )
    arguments = ["--model", "models/ours.py:build", "--images", "pictures", "--table", "pictures/table.csv"]
    params = audit_params(command_line().parse_args(arguments))
    assert params.acquire.classes == ("left", "none", "right")
    assert params.acquire.positive_class == "right"
    assert (params.acquire.table.file, params.acquire.table.patient) == ("table.csv", "patient")
    assert params.acquire.table.split == ""


@pytest.mark.parametrize(
    ("model", "section"),
    [
        ("models:/name/3", {"source": "mlflow", "uri": "models:/name/3"}),
        ("http://localhost:1/x", {"source": "http", "address": "http://localhost:1/x"}),
        ("torchvision.models:resnet18", {"source": "factory", "factory": "torchvision.models:resnet18"}),
        ("models/net.pt2", {"source": "torch_export", "folder": "models", "file": "net.pt2"}),
        ("models/net.onnx", {"source": "onnx", "folder": "models", "file": "net.onnx"}),
        ("models/net.pt", {"source": "torchscript", "folder": "models", "file": "net.pt"}),
        ("models/ours.py:build", {"source": "factory", "folder": "models", "factory": "ours:build"}),
        ("models/card.yaml", {"source": "onnx", "folder": "models", "file": "net.onnx", "output": {"kind": "labels"}}),
    ],
)
def test_the_form_of_a_model_gives_its_source(model: str, section: dict[str, Any], folder: Path) -> None:
    for suffix in ("pt2", "onnx", "pt"):
        (folder / "models" / f"net.{suffix}").touch()
    card = "classifier:\n  source: onnx\n  file: net.onnx\n  output: {kind: labels}\n"
    (folder / "models" / "card.yaml").write_text(card)
    assert {"folder": "models"} | section == classifier_section(model, None)


def test_a_value_is_set_by_its_dotted_key() -> None:
    values: dict[str, Any] = {"attack": {"eps": [1]}}
    change_value(values, "attack.eps=[2, 4]")
    change_value(values, "classifier.input.channels=3")
    assert values == {"attack": {"eps": [2, 4]}, "classifier": {"input": {"channels": 3}}}


def test_the_forecast_of_trainings_and_attacks_is_the_number_of_passes_times_their_cost(
    params_with: Callable[..., Params],
) -> None:
    params = params_with(SMALL | {"attack.max_images": 10})
    costs = Costs(prediction=0.0, gradient=0.5, surrogates=(0.25,), autoencoder=0.125)
    parts = {part.step: part for part in forecast(params, 1000, costs)}
    # 1000 images: 200 for tests, 80 for validation
    assert parts["train_surrogates"].seconds == 1 * 720 * 0.25
    assert parts["train_autoencoder"].seconds == 2 * 720 * 0.125
    stages = EFFORTS["quick"]
    n_gradients = 3 * max_gradients(stages, 2, 2) + max_gradients([doubled(stages)], 2, 2) + 2 * (1 + 2)
    assert parts["attack"].seconds == 10 * n_gradients * 0.5
    assert parts["evaluate, analyze, report"].seconds is None
    # Square tries both radii at three operating points, and again on the 4 images of its sample
    n_queries = 3 * 2 * sum(stage.square_queries for stage in stages) * (10 + 4)
    of_defence = 10 * n_gradients * (0.5 + 0.125) + n_queries * 0.125 / 3
    assert parts["attack_defence@autoencoder"].seconds == pytest.approx(of_defence)
    text = forecast_text(list(parts.values()))
    assert "not known" in text.splitlines()[0]
    assert "3.0 min" in next(line for line in text.splitlines() if line.startswith("train_surrogates"))


def test_the_forecast_adds_an_autoencoder_only_to_targets_that_have_one(params_with: Callable[..., Params]) -> None:
    params = params_with()
    without = {"adversarial_training", "trades", "randomized_smoothing", "jpeg", "bit_depth", "median", "noise"}
    without |= {"total_variation", UNDEFENDED}
    assert {name for name in (UNDEFENDED, *params.defences) if not has_autoencoder(params, name)} == without


def test_the_forecast_of_a_trained_classifier_has_its_training_and_active_learning(
    params_with: Callable[..., Params],
) -> None:
    params = params_with(SMALL | {"classifier.source": "train", "train_classifier.epochs": 4})
    costs = Costs(prediction=0.0, gradient=0.5, surrogates=(0.25,), autoencoder=0.125)
    parts = {part.step: part for part in forecast(params, 1000, costs)}
    assert parts["train_classifier"].seconds == 4 * 720 * 0.5
    # 72 images at first, a cycle with 72 more for both functions, the reference on all; a quarter of the pixels
    assert parts["simulate_labelling"].seconds == (72 + 2 * 144 + 720) * 0.5 / 4
    assert "usually about" in forecast_text(list(parts.values())).splitlines()[-1]


@pytest.mark.parametrize(("seconds", "text"), [(5, "5.0 s"), (90, "90.0 s"), (120, "2.0 min"), (7200, "2.0 h")])
def test_a_duration_has_a_fitting_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_result_of_too_few_groups_has_no_intervals(tmp_path: Path, params_with: Callable[..., Params]) -> None:
    workspace, params = Workspace(tmp_path), params_with()
    workspace.evaluate.mkdir(parents=True)
    workspace.metrics.write_text(json.dumps({"clean": {"undefended": {"accuracy": 0.9}}}))
    row = {"target": "undefended", "threat_model": "adaptive", "operating_point": "as_trained", "eps": 1, "n": 4}
    bounds = {f"robust_{name}_{end}": None for name in ("accuracy", "balanced_accuracy") for end in ("low", "high")}
    values = {"robust_accuracy": 0.5, "robust_balanced_accuracy": 0.25}
    pd.DataFrame([row | values | bounds]).to_csv(workspace.comparison, index=False)
    workspace.checks.write_text("[]")
    result = describe_result(workspace, params, "undefended", "mine", 24)
    assert "clean accuracy 90.0 % [too few groups] (n = 24)" in result
    assert "50.0 % [too few groups] (n = 4), balanced 25.0 % [too few groups], at eps 1/255" in result


def test_an_audit_that_begins_beside_another_of_its_name_waits_before_it_writes(
    tmp_path: Path, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_workspace("classifier", params_with()).params_file
    with ThreadPoolExecutor() as pool:
        with locked(AUDITS / ".locks", ["classifier"]):
            second = pool.submit(write_workspace, "classifier", params_with({"seed": 7}))
            with pytest.raises(TimeoutError):
                second.result(timeout=1)
            assert load_params(file).seed == 0
        second.result(timeout=30)
    assert load_params(file).seed == 7


def test_accuracies_and_failed_checks_are_compared_with_the_thresholds(
    tmp_path: Path, params_with: Callable[..., Params]
) -> None:
    workspace, params = Workspace(tmp_path), params_with()
    workspace.evaluate.mkdir(parents=True)
    workspace.metrics.write_text(json.dumps({"clean": {"undefended": {"accuracy": 0.9}}}))
    row = {"target": "undefended", "threat_model": "adaptive", "operating_point": "as_trained", "eps": 1}
    row |= {"clean_balanced_accuracy": 0.9, "robust_balanced_accuracy": 0.45}
    pd.DataFrame([row | {"robust_accuracy": 0.4}]).to_csv(workspace.comparison, index=False)
    check = {"key": "noise", "status": "FAIL", "explanation": "Noise breaks more images.", "target": "undefended"}
    workspace.checks.write_text(json.dumps([check, check | {"target": "jpeg"}]))

    def missed(thresholds: Thresholds) -> list[str]:
        return missed_thresholds(workspace, params, "undefended", thresholds)

    assert missed(Thresholds()) == missed(Thresholds(0.9, 0.4)) == []
    assert missed(Thresholds(0.95, 0.5)) == [
        "clean accuracy 90.0 % is below 95.0 %.",
        "clean balanced accuracy 90.0 % is below 95.0 %.",
        "robust accuracy 40.0 % is below 50.0 %.",
        "robust balanced accuracy 45.0 % is below 50.0 %.",
    ]
    # 40.0 % is not below 40.0 %
    pd.DataFrame([row | {"robust_accuracy": 0.39996}]).to_csv(workspace.comparison, index=False)
    assert missed(Thresholds(None, 0.4)) == ["robust accuracy 39.996 % is below 40.0 %."]
    # of a constant prediction, where 90 % of the images are of one class
    pd.DataFrame([row | {"robust_accuracy": 0.9, "robust_balanced_accuracy": 0.5}]).to_csv(
        workspace.comparison, index=False
    )
    assert missed(Thresholds(None, 0.8)) == ["robust balanced accuracy 50.0 % is below 80.0 %."]
    assert missed(Thresholds(no_failed_checks=True)) == ["check noise failed: Noise breaks more images."]
