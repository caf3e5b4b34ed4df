"""Experiments of DVC in temporary copies of the repository: a data set of the user's own, and the tracking store."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from PIL import Image

from flows.dvc_pipeline import metrics_of
from tasks.acquire import acquire
from tasks.core.workspace import Workspace
from tasks.params import Params
from tasks.tracking import Tracker, tracking_uri
from tasks.tracking.outbox import outbox
from tests.conftest import ROOT, VALUES
from tests.test_experiment_table import commit
from tests.test_pipeline import init_dvc, run, write_params


@pytest.fixture
def copy_of_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary copy at the place where DVC makes it, as the current folder."""
    folder = tmp_path / ".dvc" / "tmp" / "exps" / "tmpabc"
    (folder / "images").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("CT_ROBUSTNESS_OUTBOX", raising=False)
    return folder


def test_the_store_and_the_outbox_of_a_temporary_copy_are_those_of_the_repository(
    copy_of_repository: Path, tmp_path: Path
) -> None:
    assert tracking_uri() == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert outbox() == tmp_path / "tracking-outbox"


def test_images_that_git_ignores_are_missing_in_a_temporary_copy_and_the_message_says_what_to_do(
    copy_of_repository: Path, params_with: Any
) -> None:
    params: Params = params_with({"acquire.source": "folder", "acquire.folder": "images"})
    with pytest.raises(ValueError, match=r"temporary copy of the repository.* Put the images under DVC"):
        acquire(Workspace(), params, Tracker())


def test_two_queued_experiments_run_at_a_time_with_images_under_dvc_and_are_found_in_the_store(
    empty_store: Path, tmp_path: Path
) -> None:
    for name in ("tasks", "plugins", "models"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "environment.yaml", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "data").mkdir()
    shutil.copy(ROOT / "data" / ".gitignore", tmp_path / "data")
    for name in VALUES["acquire"]["classes"]:
        (tmp_path / "sets" / "ct" / name).mkdir(parents=True)
        Image.new("L", (64, 64)).save(tmp_path / "sets" / "ct" / name / "1.png")
    shutil.copy(empty_store, tmp_path)
    write_params(tmp_path, {"acquire.source": "folder", "acquire.folder": "sets/ct"})
    run(tmp_path, "git", "init", "--quiet")
    run(tmp_path, "git", "config", "user.name", "a")
    run(tmp_path, "git", "config", "user.email", "a@b.c")
    init_dvc(tmp_path)
    run(tmp_path, "dvc", "add", "--quiet", "sets/ct")
    run(tmp_path, "git", "add", ".")
    run(tmp_path, "git", "commit", "--quiet", "--message", "my images")

    for name, seed in (("first", 1), ("second", 2)):
        run(tmp_path, "dvc", "exp", "run", "--queue", "--name", name, "--set-param", f"seed={seed}", "acquire")
    run(tmp_path, "dvc", "exp", "run", "--run-all", "-j", "2")
    assert set(run(tmp_path, "dvc", "exp", "list", "--name-only").split()) == {"first", "second"}
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'ct-robustness'")
    runs = client.search_runs([experiment.experiment_id], "tags.step = 'acquire'")
    assert {run.data.tags["dvc_experiment"] for run in runs} == {"first", "second"}


def test_metrics_of_an_experiment_are_read_without_the_results_of_the_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics.json").write_text('{"clean": {"jpeg": 0.5}}')
    command = "mkdir data/evaluate && cp metrics.json data/evaluate"
    (tmp_path / "dvc.yaml").write_text(f"stages:\n  evaluate: {{cmd: {command}, outs: [data/evaluate]}}\n")
    (tmp_path / "data").mkdir()
    run(tmp_path, "git", "init", "--quiet")
    init_dvc(tmp_path)
    run(tmp_path, "dvc", "repro", "--quiet")
    commit(tmp_path, "an experiment")
    lock = (tmp_path / "dvc.lock").read_text()
    (tmp_path / "dvc.lock").write_text(re.sub(r"md5: \w{32}\.dir", f"md5: {'0' * 32}.dir", lock))
    shutil.rmtree(tmp_path / "data" / "evaluate")
    commit(tmp_path, "results that are not here")
    monkeypatch.chdir(tmp_path)
    assert metrics_of("HEAD~1") == {"clean.jpeg": 0.5}
