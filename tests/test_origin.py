"""Tags that say with which code and on which machine a run was computed, and the documented searches."""

import platform
import re
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient

from tasks.core.workspace import Workspace
from tasks.params import Params
from tasks.runner import run_step
from tasks.tracking import Tracker, origin
from tasks.tracking.origin import origin_tags
from tests.conftest import ROOT

HEADLINE = "worst_case/autoencoder_as_trained_eps_1"


@pytest.fixture
def client(own_store: str) -> MlflowClient:
    return MlflowClient(tracking_uri=own_store)


def prepare(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    tracker.metrics({"data/n": 3})


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with one commit as the current folder."""
    folder = tmp_path / "repository"
    (folder / "data").mkdir(parents=True)
    for name in ("params.yaml", "dvc.lock", "data/metrics.json"):
        (folder / name).write_text("seed: 0\n")
    monkeypatch.chdir(folder)
    git("init", "--quiet")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "--message", "first")
    return folder


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def test_a_run_has_the_commit_and_its_state_and_versions_and_processor(repository: Path) -> None:
    tags = origin_tags()
    assert tags["mlflow.source.git.commit"] == git("rev-parse", "HEAD")
    assert tags["mlflow.source.git.dirty"] == "false"
    assert tags["version.python"] == platform.python_version()
    assert tags["version.torch"] == version("torch")
    assert "dvc_experiment" not in tags


@pytest.mark.parametrize(
    ("file", "dirty"),
    [("params.yaml", "true"), ("dvc.lock", "false"), ("data/metrics.json", "false"), ("new.txt", "false")],
)
def test_a_changed_file_of_the_commit_makes_it_dirty_but_files_of_the_pipeline_and_a_new_file_do_not(
    file: str, dirty: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / file).write_text("seed: 1\n")
    assert origin_tags()["mlflow.source.git.dirty"] == dirty
    monkeypatch.chdir("data")
    assert origin_tags()["mlflow.source.git.dirty"] == dirty


def test_outside_of_a_repository_there_are_no_tags_of_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert not [tag for tag in origin_tags() if "git" in tag]


def test_the_processor_is_the_model_name_of_the_first_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "CPU_FACTS", tmp_path / "cpuinfo")
    assert origin.processor() in (platform.processor(), platform.machine())
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A: 1\n\nprocessor\t: 1\nmodel name\t: B\n")
    assert origin.processor() == "A: 1"


def test_the_run_of_a_step_is_in_the_named_experiment_and_has_the_name_of_the_dvc_experiment(
    client: MlflowClient, tmp_path: Path, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "lung")
    monkeypatch.setenv("DVC_EXP_NAME", "five-epochs")
    run_step(prepare, Workspace(tmp_path), params_with())
    experiment = client.get_experiment_by_name("lung")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "tags.dvc_experiment = 'five-epochs'")
    assert run.data.tags.items() >= {"step": "prepare", "processor": origin.processor()}.items()


def test_a_deleted_experiment_is_refused(
    client: MlflowClient, tmp_path: Path, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    client.delete_experiment(client.create_experiment("lung"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "lung")
    with pytest.raises(ValueError, match=r"MLFLOW_EXPERIMENT_NAME: 'lung' was deleted.*mlflow experiments restore"):
        run_step(prepare, Workspace(tmp_path), params_with())


def test_the_searches_of_the_documentation_find_the_runs(
    client: MlflowClient, tmp_path: Path, repository: Path, params_with: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def report(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        tracker.metrics({HEADLINE: 0.25 + params.seed})

    def evaluate(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        tags = {"target": "autoencoder", "threat_model": "adaptive", "attack": "worst_case"}
        tags["operating_point"] = "as_trained"
        tracker.curve("autoencoder adaptive worst_case", tags, [(1000, {"robust/balanced_accuracy": 0.5})])

    for seed in (0, 1):
        monkeypatch.setenv("DVC_EXP_NAME", f"seed-{seed}")
        for step in (evaluate, report):
            run_step(step, Workspace(tmp_path), params_with({"seed": seed}))
    page = (ROOT / "docs" / "how-to" / "compare-runs.md").read_text(encoding="utf-8")
    found: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE):
        exec(block, found)
    (documented,) = re.findall(r"^```\n(tags\..*)$", page, flags=re.MULTILINE)
    by_version = documented.replace("2.15.0", version("torch"))
    # two runs of each step, and their curves
    assert len(mlflow.search_runs(experiment_names=["ct-robustness"], filter_string=by_version)) == 6
    pipelines, curves = found["pipelines"], found["curves"]
    assert isinstance(pipelines, pd.DataFrame)
    assert list(pipelines[f"metrics.{HEADLINE}"]) == [1.25, 0.25]
    assert list(pipelines["tags.dvc_experiment"]) == ["seed-1", "seed-0"]
    assert list(curves["metrics.robust/balanced_accuracy"]) == [0.5, 0.5]
    assert list(curves["tags.dvc_experiment"]) == ["seed-1", "seed-0"]
