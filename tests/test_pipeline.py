"""The whole pipeline at toy size by DVC: no unneeded work, and the runs in MLflow."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tasks.tracking import EXPERIMENT, digest_of
from tests.conftest import ROOT, with_overrides
from tests.two_steps import init_dvc_without_git

STEPS = [
    *("check_params", "acquire", "validate", "prepare", "train_classifier", "train_surrogates", "train_autoencoder"),
    *("train_defence@autoencoder", "train_defence@retrained_autoencoder", "simulate_labelling", "active_learning"),
    *("attack", "attack_defence@autoencoder", "attack_defence@retrained_autoencoder", "evaluate", "analyze", "report"),
]

TRAINING = ["train_autoencoder", "train_classifier", "train_defence@retrained_autoencoder"]

MAX_SECONDS = 900
"""Limit of a command in a toy workspace, many times what the longest one needs."""

TOY: dict[str, Any] = {
    "acquire.phantom": {"n_patients": 24, "n_slices_per_patient": 3},
    "compute": {"threads": 1, "device": "cpu", "precision": "float32"},
    "validate.min_images_per_class": 5,
    "prepare.image_size": 32,
    "train_classifier.epochs": 2,
    "train_classifier.batch_size": 8,
    "train_surrogates": [{"architecture": "cnn", "epochs": 1}],
    "train_autoencoder.epochs": 2,
    "train_autoencoder.batch_size": 8,
    "selected_defences": ["autoencoder", "retrained_autoencoder"],
    "defences.retrained_autoencoder.training.epochs": 1,
    "defences.retrained_autoencoder.adversary.pgd.n_steps": 1,
    "attack.eps": [1, 4],
    "attack.saved_eps": [4],
    "attack.max_images": 10,
    "attack.max_black_box_images": 4,
    "attack.max_validation_images": 4,
    "attack.max_art_reference_images": 4,
    "analyze.eps": 4,
    "analyze.detector_evasion.eps": [4],
    "analyze.detector_evasion.n_steps": 100,
    "analyze.detector_evasion.max_images": 3,
    "attack.pgd": {"n_steps": 2, "relative_step_size": 0.5, "n_random_starts": 1},
    "active_learning.downsampling_factor": 2,
    "active_learning.n_cycles": 1,
    "active_learning.training.epochs": 1,
    "active_learning.reference_training.epochs": 1,
    "active_learning.warm_start_epochs": 1,
}


def write_params(workspace: Path, overrides: dict[str, Any]) -> None:
    with (workspace / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(with_overrides({**TOY, **overrides}), file)


def make_workspace(folder: Path) -> Path:
    """Write a new workspace with the code of the repository and toy parameters, and return its folder."""
    folder.mkdir()
    for name in ("tasks", "flows", "images", "models", "plugins"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "environment.yaml", "prefect.toml"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "data").mkdir()
    shutil.copy(ROOT / "data" / "reference.csv", folder / "data")
    write_params(folder, {})
    init_dvc_without_git(folder)
    copy_settings(folder)
    return folder


def init_dvc(workspace: Path, *options: str) -> None:
    """Initialise DVC in a workspace, with the plot templates and the ignored files of the repository."""
    run(workspace, "dvc", "init", "--quiet", *options)
    copy_settings(workspace)


def copy_settings(workspace: Path) -> None:
    """Copy the plot templates and the list of ignored files of the repository."""
    shutil.copy(ROOT / ".dvcignore", workspace)
    shutil.copytree(ROOT / ".dvc" / "plots", workspace / ".dvc" / "plots", dirs_exist_ok=True)


def run(workspace: Path, *command: str, api: str | None = None) -> str:
    """Run a command of the environment in a workspace, and return its output and errors.

    Args:
        workspace: the current folder of the command.
        command: with its arguments.
        api: address of a Prefect server; by default flows start their own.
    """
    result = completed(workspace, *command, api=api)
    assert result.returncode == 0, result.stdout
    return result.stdout


def completed(workspace: Path, *command: str, api: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command as :func:`run` does, which may fail. A command that hangs prints the stacks of its threads."""
    environment = environment_of_commands() | ({"PREFECT_API_URL": api} if api else {})
    with subprocess.Popen(
        command,
        cwd=workspace,
        env=environment | {"PYTHONFAULTHANDLER": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            printed, _ = process.communicate(timeout=MAX_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGABRT)
            printed, _ = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, printed)


def environment_of_commands() -> dict[str, str]:
    """Variables of a command in a toy workspace: its own tracking store, one thread, and the programs of this one."""
    binaries = Path(sys.executable).parent
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_T", "PREFECT_API"))
    }
    return environment | {"PATH": f"{binaries}{os.pathsep}{environment['PATH']}", "OMP_NUM_THREADS": "1"}


def digests(workspace: Path) -> dict[str, str]:
    """Digest of the outputs of each step."""
    return {step: digest_of(workspace / "data" / step.replace("@", "/")) for step in STEPS}


def test_after_dvc_repro_dvc_finds_every_step_up_to_date(reproduced: Path) -> None:
    assert "up to date" in run(reproduced, "dvc", "repro")


def test_after_dvc_repro_the_flow_has_nothing_to_do_and_does_not_import_prefect(reproduced: Path) -> None:
    code = "import sys; from flows.pipeline import main; main(); print(*sys.modules)"
    *messages, modules = run(reproduced, sys.executable, "-c", code).splitlines()
    assert "Nothing to do" in messages[-1]
    assert {"dvc", "prefect"} & set(modules.split()) == {"dvc"}


def test_dvc_lock_has_the_digest_of_the_outputs_of_every_step(reproduced: Path) -> None:
    stages = YAML(typ="safe").load((reproduced / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    assert {step: stage["outs"][0]["md5"] for step, stage in stages.items()} == digests(reproduced)


@pytest.fixture(scope="module")
def runs(reproduced: Path) -> list[Any]:
    """All runs of the reproduced workspace in MLflow."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{reproduced / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def test_every_step_has_one_finished_run_with_the_digest_of_its_outputs(runs: list[Any], reproduced: Path) -> None:
    steps = {run.data.tags["step"]: run for run in runs if run.data.tags.get("kind") == "step"}
    assert set(steps) == set(STEPS)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {step: run.data.tags["outputs_md5"] for step, run in steps.items()} == digests(reproduced)
    assert {run.data.tags["orchestrator"] for run in steps.values()} == {"dvc"}


def test_every_curve_is_a_child_run_with_the_same_metric_keys(runs: list[Any]) -> None:
    parent = next(run for run in runs if run.data.tags.get("step") == "evaluate")
    curves = [run for run in runs if run.data.tags.get("kind") == "curve" and "acquisition" not in run.data.tags]
    assert {(run.data.tags["target"], run.data.tags["threat_model"], run.data.tags["attack"]) for run in curves} == {
        (target, threat_model, attack)
        for target, threat_model, attacks in [
            *((target, "adaptive", ("fgsm", "pgd", "suite")) for target in ("undefended", *TOY["selected_defences"])),
            # Square runs on a part of the images or on survivors, so it has no curve of its own
            *((target, "black_box", ()) for target in ("undefended", *TOY["selected_defences"])),
            *((defence, "transfer", ("fgsm", "pgd")) for defence in TOY["selected_defences"]),
        ]
        for attack in (*attacks, "worst_case")
    } | {("undefended", "transfer", "pgd")}
    assert {run.data.tags["mlflow.parentRunId"] for run in curves} == {parent.info.run_id}
    for run in curves:
        assert "robust/accuracy" in run.data.metrics
        # the four images of black-box attacks are too few groups for an interval
        has_interval = {"robust/accuracy_low", "robust/accuracy_high"} <= set(run.data.metrics)
        assert has_interval == (run.data.tags["threat_model"] != "black_box")
        if run.data.tags["attack"] == "worst_case":
            assert {"cost/n_parameters", "cost/multiply_adds"} <= set(run.data.metrics)
            assert {"check.gradients", "check.black_box"} <= set(run.data.tags)
        else:
            assert "robust/mean_entropy" in run.data.metrics


def test_every_acquisition_function_is_a_child_run_over_its_cycles(runs: list[Any], reproduced: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{reproduced / 'mlflow.db'}")
    parent = next(run for run in runs if run.data.tags.get("step") == "active_learning")
    curves = {name: run for run in runs if (name := run.data.tags.get("acquisition"))}
    assert set(curves) == {"random", "entropy"}
    for name, curve in curves.items():
        assert curve.data.tags["mlflow.parentRunId"] == parent.info.run_id
        history = client.get_metric_history(curve.info.run_id, "learning/clean_accuracy")
        assert [point.step for point in history] == [0, 1]
        assert [file.path for file in client.list_artifacts(curve.info.run_id)] == [f"{name}.png"]


def test_targets_can_be_filtered_by_the_status_of_a_check(reproduced: Path, runs: list[Any]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{reproduced / 'mlflow.db'}")
    experiment = runs[0].info.experiment_id
    found = client.search_runs(
        [experiment], filter_string="tags.`check.norm_bound` = 'PASS' and tags.attack = 'worst_case'"
    )
    assert {run.data.tags["target"] for run in found} == {"undefended", *TOY["selected_defences"]}


def test_the_run_of_the_report_has_every_parameter_and_links_to_the_runs_of_the_other_steps(runs: list[Any]) -> None:
    from tasks.params import parse_params

    report = next(run for run in runs if run.data.tags.get("step") == "report")
    flat = parse_params(with_overrides(TOY)).flat()
    assert report.data.params == {key: str(value) for key, value in flat.items()}
    for step in set(STEPS) - {"report"}:
        linked = next(run for run in runs if run.info.run_id == report.data.tags[f"run.{step.replace('@', '.')}"])
        assert linked.data.tags["step"] == step
    assert "clean/accuracy" in report.data.metrics
    assert "mlflow.note.content" in report.data.tags


def test_the_run_of_the_report_has_the_data_set_the_models_and_the_artifacts(runs: list[Any], reproduced: Path) -> None:
    from mlflow import MlflowClient

    by_step = {run.data.tags["step"]: run for run in runs if run.data.tags.get("kind") == "step"}
    report = by_step["report"]
    assert [data.dataset.name for data in report.inputs.dataset_inputs] == ["phantoms"]
    trained = [by_step[step].outputs.model_outputs[0].model_id for step in TRAINING]
    assert sorted(model.model_id for model in report.outputs.model_outputs) == sorted(trained)
    client = MlflowClient(tracking_uri=f"sqlite:///{reproduced / 'mlflow.db'}")
    assert {file.path for file in client.list_artifacts(report.info.run_id)} == {
        "report.html",
        "comparison.csv",
        "worst_case.csv",
        "metrics.json",
        "checks.json",
        "figures",
        "images",
        "data_docs",
    }
    assert "data_docs/index.html" in {file.path for file in client.list_artifacts(report.info.run_id, "data_docs")}


def test_a_logged_model_has_the_same_logits_as_the_saved_model(
    reproduced: Path, runs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    import numpy as np
    import torch

    from tasks.core.workspace import Workspace
    from tasks.models.loading import load_classifier

    monkeypatch.chdir(reproduced)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{reproduced / 'mlflow.db'}")
    run = next(run for run in runs if run.data.tags.get("step") == "train_classifier")
    model_id = run.outputs.model_outputs[0].model_id
    images = torch.from_numpy(np.random.default_rng(0).random((3, 1, 32, 32), dtype=np.float32))
    logged = mlflow.pytorch.load_model(f"models:/{model_id}")
    torch.testing.assert_close(logged(images), load_classifier(Workspace(), Workspace().classifier)(images))
