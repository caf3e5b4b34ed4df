"""What MLflow hears, in a real SQLite store."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Barrier, Event, Thread
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from tasks.core.workspace import Workspace
from tasks.params import Params
from tasks.runner import run_step
from tasks.tracking import EXPERIMENT, Tracker, digest_of, open_run
from tasks.tracking.open_runs import noted
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def client(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.chdir(tmp_path)
    Workspace().data.mkdir()
    return MlflowClient(tracking_uri=store)


def runs_of(client: MlflowClient, step: str) -> list[Any]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], filter_string=f"tags.step = '{step}'"))


def test_a_run_carries_its_own_parameters_the_digest_of_its_outputs_and_its_end(
    client: MlflowClient, params_with: Callable[..., Params]
) -> None:
    def prepare(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        (Workspace().prepare / "out.txt").write_text("1")
        tracker.metrics({"data/n": 3}, step=250)

    run_step(prepare, Workspace(), params_with(), "prefect")
    (run,) = runs_of(client, "prepare")
    assert run.info.status == "FINISHED"
    assert run.data.tags["orchestrator"] == "prefect"
    assert run.data.tags["outputs_md5"] == digest_of(Workspace().prepare)
    assert run.data.params["prepare.split.strategy"] == "stratified"
    assert "attack.norm" not in run.data.params
    assert [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "data/n")] == [
        (250, 3)
    ]


def test_a_step_that_raises_is_marked_failed_and_its_exception_comes_out(
    client: MlflowClient, params_with: Callable[..., Params]
) -> None:
    def validate(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        raise ValueError("no images")

    with pytest.raises(ValueError, match="no images"):
        run_step(validate, Workspace(), params_with())
    (run,) = runs_of(client, "validate")
    assert run.info.status == "FAILED"
    assert "outputs_md5" not in run.data.tags


SLEEPER = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from tasks.runner import run_step
from tests.conftest import parse_params, with_overrides

def prepare(workspace: Workspace, params, tracker):
    tracker.metrics({{"data/n": 3}})
    print("said", flush=True)
    time.sleep(600)

run_step(prepare, Workspace(), parse_params(with_overrides({{}})))
"""


def test_the_run_of_a_killed_step_is_ended_by_the_next_step_and_one_that_still_runs_is_not(
    client: MlflowClient, params_with: Callable[..., Params]
) -> None:
    def validate(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        pass

    def status() -> str:
        run = max(runs_of(client, "prepare"), key=lambda run: run.info.start_time)
        said = client.get_metric_history(run.info.run_id, "data/n")[-1].timestamp
        assert run.info.end_time in (None, said)
        return str(run.info.status)

    with subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"said\n"
        run_step(validate, Workspace(), params_with())
        assert status() == "RUNNING"
        process.kill()
    assert status() == "RUNNING"
    run_step(validate, Workspace(), params_with())
    assert status() == "KILLED"
    assert not list(Workspace().open_runs.iterdir())


def test_the_run_of_a_step_that_could_not_say_its_end_is_ended_by_the_next_step(
    client: MlflowClient, params_with: Callable[..., Params]
) -> None:
    def evaluate(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        pass

    def status() -> str:
        return str(min(runs_of(client, "evaluate"), key=lambda run: run.info.start_time).info.status)

    # no note: the step is interrupted after its run is opened
    unreadable = Workspace().open_runs / "a folder"
    unreadable.mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        run_step(evaluate, Workspace(), params_with())
    assert status() == "RUNNING"
    unreadable.rmdir()
    run_step(evaluate, Workspace(), params_with())
    assert status() == "KILLED"
    assert not list(Workspace().open_runs.iterdir())


def test_a_note_that_another_step_takes_for_left_is_made_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Workspace().open_runs.mkdir(parents=True)
    note, inside, through = Workspace().open_runs / "run", Event(), Event()

    def step() -> None:
        with noted(Workspace(), "run"):
            assert note.exists()
            inside.set()
        through.set()

    with note.open("w") as file:
        # as if this step had found the note before that one could lock it
        fcntl.flock(file, fcntl.LOCK_EX)
        Thread(target=step, daemon=True).start()
        assert not inside.wait(0.3)
        note.unlink()
    assert through.wait(30)
    assert not note.exists()


def test_a_step_finds_its_folder_empty(client: MlflowClient, params_with: Callable[..., Params]) -> None:
    found: list[Path] = []

    def attack(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        found.extend(Workspace().attack.iterdir())
        (Workspace().attack / "left.txt").write_text("x")

    run_step(attack, Workspace(), params_with())
    run_step(attack, Workspace(), params_with())
    assert found == []


def test_runs_in_two_threads_do_not_mix(client: MlflowClient, params_with: Callable[..., Params]) -> None:
    def log_many(name: str) -> None:
        with open_run(Workspace(), name, Workspace().data, params_with(), "python") as tracker:
            for step in range(20):
                tracker.metrics({"x/value": hash(name) % 1000}, step)

    threads = [Thread(target=log_many, args=[name]) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("one", "two"):
        (run,) = runs_of(client, name)
        history = client.get_metric_history(run.info.run_id, "x/value")
        assert [metric.value for metric in history] == [hash(name) % 1000] * 20


def test_two_processes_that_begin_at_once_without_a_store_both_find_one(tmp_path: Path) -> None:
    script = "from tasks.tracking.store import Store; Store().open('a key', 'prepare', {}, 1)"
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-c", script]
    both = [subprocess.Popen(command, cwd=tmp_path, env=environment | {"PYTHONPATH": str(ROOT)}) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string=f"name = '{EXPERIMENT}'")
    assert len(client.search_runs([experiment.experiment_id])) == 2
    assert experiment.artifact_location.startswith((tmp_path / "mlartifacts").as_uri())


def test_a_kill_while_the_store_is_made_leaves_nothing_that_the_next_step_trips_over(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom tasks.tracking import *\nexperiment_id()",
    ]
    made = tmp_path / "mlflow.db"
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as process:
        while not (tmp_path / "mlflow.db.partial").exists():
            assert process.poll() is None
        process.kill()
    assert not made.exists()
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert made.exists()


def test_what_the_store_would_cut_is_refused(client: MlflowClient, params_with: Callable[..., Params]) -> None:
    with open_run(Workspace(), "long", Workspace().data, params_with(), "python") as tracker:
        with pytest.raises(ValueError, match=r"parameters \['x'\] are longer than the 6000"):
            tracker.params({"x": "a" * 6001})
        with pytest.raises(ValueError, match="note of 8001 characters"):
            tracker.note("a" * 8001)


def test_links_point_to_the_run_that_made_what_is_there_now(
    client: MlflowClient, params_with: Callable[..., Params]
) -> None:
    def evaluate(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        (Workspace().evaluate / "seed.txt").write_text(str(params.seed))

    def report(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        tracker.link_steps()

    made = {}
    for seed in (1, 2, 1):
        run_step(evaluate, Workspace(), params_with({"seed": seed}))
        made[seed] = runs_of(client, "evaluate")[0].info.run_id
    run_step(report, Workspace(), params_with())
    (run,) = runs_of(client, "report")
    assert run.data.tags["run.evaluate"] == made[1]
    assert "run.report" not in run.data.tags


def test_the_reports_run_lists_the_models_of_the_runs_that_made_what_is_there_now(
    client: MlflowClient, params_with: Callable[..., Params]
) -> None:
    def train_classifier(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        (Workspace().train_classifier / "weights").write_text(str(params.seed))
        tracker.model("classifier", torch.nn.Flatten(), np.zeros((2, 1, 2, 2), np.float32))

    def report(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        tracker.link_steps()

    for seed in (1, 2):
        run_step(train_classifier, Workspace(), params_with({"seed": seed}))
    newest = runs_of(client, "train_classifier")[0]
    assert len(newest.outputs.model_outputs) == 1
    for _ in range(2):
        run_step(report, Workspace(), params_with())
    for run in runs_of(client, "report")[:2]:
        assert [model.model_id for model in run.outputs.model_outputs] == [newest.outputs.model_outputs[0].model_id]
    made = client.search_logged_models([newest.info.experiment_id])
    assert len(made) == 2
    assert {"report"}.isdisjoint(client.get_run(model.source_run_id).data.tags["step"] for model in made)


def test_a_step_whose_run_is_in_another_store_is_named_and_does_no_harm(
    client: MlflowClient, params_with: Callable[..., Params], caplog: pytest.LogCaptureFixture
) -> None:
    def report(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        tracker.link_steps()

    Workspace().prepare.mkdir()
    (Workspace().prepare / "out.txt").write_text("from DVC's cache")
    caplog.set_level("INFO", logger="tasks.tracking")
    run_step(report, Workspace(), params_with())
    assert caplog.messages == ["no run in the tracking store made what is in data/prepare now: not linked"]
    run = runs_of(client, "report")[0]
    assert run.info.status == "FINISHED"
    assert not [tag for tag in run.data.tags if tag.startswith("run.")]


def test_the_report_does_not_link_to_the_run_of_an_earlier_report(
    client: MlflowClient, params_with: Callable[..., Params]
) -> None:
    def report(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        (Workspace().report / "report.html").write_text("as before")
        tracker.link_steps()

    for _ in range(2):
        run_step(report, Workspace(), params_with())
    assert not any("run.report" in run.data.tags for run in runs_of(client, "report"))


def test_a_data_set_is_known_by_dvcs_digest(client: MlflowClient, params_with: Callable[..., Params]) -> None:
    Workspace().prepare.mkdir()
    (Workspace().prepare / "pixels.npy").write_bytes(b"1")
    with open_run(Workspace(), "data", Workspace().data, params_with(), "python") as tracker:
        tracker.dataset(Workspace().prepare, "phantoms", "evaluation")
    (found,) = runs_of(client, "data")[0].inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest + ".dir") == ("phantoms", digest_of(Workspace().prepare))
    assert {tag.key: tag.value for tag in found.tags} == {
        "mlflow.data.context": "evaluation",
        "dvc_md5": digest_of(Workspace().prepare),
    }


def test_the_null_tracker_hears_everything_and_keeps_nothing(tmp_path: Path) -> None:
    tracker = Tracker()
    tracker.metrics({"a": 1.0})
    tracker.params({"a": "x" * 10_000})
    tracker.tags({})
    tracker.artifact(tmp_path)
    tracker.dataset(tmp_path, "raw", "raw")
    tracker.curve("c", {}, [])
    tracker.note("x" * 10_000)
    tracker.link_steps()
    assert list(tmp_path.iterdir()) == []


def test_digest_of_a_folder_follows_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.npy").write_bytes(np.arange(3).tobytes())
    first = digest_of(tmp_path)
    assert first.endswith(".dir")
    (tmp_path / "a" / "x.npy").rename(tmp_path / "a" / "y.npy")
    assert digest_of(tmp_path) != first


def test_steps_that_name_the_same_new_data_set_at_once_all_keep_it(
    client: MlflowClient, params_with: Callable[..., Params]
) -> None:
    n_rounds, n_steps = 5, 4
    Workspace().prepare.mkdir()

    def attack(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        for number in range(n_rounds):
            together.wait(timeout=300)
            tracker.dataset(Workspace().prepare, f"new {number}", "attack")

    def at_once(number: int) -> None:
        folder = Workspace().data / f"step_{number}"
        folder.mkdir()
        with open_run(Workspace(), "attack", folder, params_with(), "python") as tracker:
            attack(Workspace(), params_with(), tracker)

    together = Barrier(n_steps)
    threads = [Thread(target=at_once, args=(number,)) for number in range(n_steps)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [run for run in runs_of(client, "attack") if run.inputs.dataset_inputs]
    names = [sorted(given.dataset.name for given in run.inputs.dataset_inputs) for run in found]
    assert names == [[f"new {number}" for number in range(n_rounds)]] * n_steps
