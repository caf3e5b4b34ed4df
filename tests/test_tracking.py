"""Tracking runs in a real SQLite store."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Barrier, Event, Thread
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from tasks.core.workspace import SCHEMA_VERSION, Workspace
from tasks.params import Params
from tasks.runner import run_step
from tasks.tracking import EXPERIMENT, Tracker, digest_of, open_run
from tasks.tracking import run as tracking_run
from tasks.tracking.open_runs import registered
from tasks.tracking.store import Store
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{shutil.copy(empty_store, tmp_path_factory.mktemp('store'))}"


@pytest.fixture
def client(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    return MlflowClient(tracking_uri=store)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "data").mkdir()
    return Workspace(tmp_path)


def runs_of(client: MlflowClient, step: str) -> list[Any]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    return list(client.search_runs([experiment.experiment_id], filter_string=f"tags.step = '{step}'"))


def test_a_run_has_parameters_metrics_tags_and_the_digest_of_the_outputs(
    client: MlflowClient, workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    def prepare(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        (workspace.prepare / "out.txt").write_text("1")
        tracker.metrics({"data/n": 3}, step=250)

    run_step(prepare, workspace, params_with(), "prefect")
    (run,) = runs_of(client, "prepare")
    assert run.info.status == "FINISHED"
    assert run.data.tags["orchestrator"] == "prefect"
    assert run.data.tags["schema_version"] == str(SCHEMA_VERSION)
    assert run.data.tags["outputs_md5"] == digest_of(workspace.prepare)
    history = client.get_metric_history(run.info.run_id, "data/n")
    assert [(metric.step, metric.value) for metric in history] == [(250, 3)]


def test_figures_of_two_runs_are_images_under_equal_keys_and_a_repeated_call_adds_none(
    client: MlflowClient, workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    def analyze(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        Image.new("L", (8, 8), params.seed).save(workspace.analyze / "robustness-pgd.png")
        for _ in range(2):
            tracker.images(workspace.analyze)

    for seed in (0, 1):
        run_step(analyze, workspace, params_with({"seed": seed}))
    for run in runs_of(client, "analyze"):
        files = [Path(file.path) for file in client.list_artifacts(run.info.run_id, "images")]
        assert sorted(file.suffix for file in files) == [".png", ".webp"]
        assert {file.name.partition("+")[0] for file in files} == {"robustness-pgd"}
        assert run.data.tags["mlflow.loggedImages"] == "True"


def test_system_metrics_are_logged_while_a_step_runs_if_the_user_asks_for_them(
    client: MlflowClient, workspace: Workspace, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    def acquire(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        time.sleep(0.5)

    for enabled in ("false", "true"):
        monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", enabled)
        monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
        run_step(acquire, workspace, params_with())
    with_metrics, without = runs_of(client, "acquire")
    assert "system/cpu_utilization_percentage" in with_metrics.data.metrics
    assert without.data.metrics == {}


@pytest.mark.parametrize("name", ["0", "yes", "it's", "5 % é", "50%", "a=b", "T2+", 'a "b"', "x|y"])
def test_a_metric_of_a_class_with_any_name_is_logged(
    name: str, client: MlflowClient, workspace: Workspace, params_with: Any
) -> None:
    def evaluate(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        tracker.metrics({f"clean/recall_{name}": 0.25})
        tracker.curve("a curve", {}, [(1, {f"robust/recall_{name}": 0.5})])

    run_step(evaluate, workspace, params_with())
    run = runs_of(client, "evaluate")[0]
    # classes that differ in such a character alone have different metrics
    assert list(run.data.metrics) == [re.sub("['%|\"=+]", lambda match: f"_{ord(match[0]):x}", f"clean/recall_{name}")]


@pytest.mark.parametrize("name", ["50%.txt", "a+b=c (1).txt", "é.txt"])
def test_an_artifact_with_any_name_comes_back_byte_for_byte(
    name: str, client: MlflowClient, workspace: Workspace, params_with: Any
) -> None:
    content = bytes(range(256))

    def evaluate(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        (workspace.evaluate / name).write_bytes(content)
        tracker.artifact(workspace.evaluate / name, "figures")

    run_step(evaluate, workspace, params_with())
    run = runs_of(client, "evaluate")[0]
    (workspace.root / "fetched").mkdir()
    fetched = client.download_artifacts(run.info.run_id, f"figures/{name}", str(workspace.root / "fetched"))
    assert Path(fetched).read_bytes() == content


def test_a_curve_has_the_tags_of_its_run_but_the_step(
    client: MlflowClient, workspace: Workspace, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "five-epochs")
    with open_run(workspace, "evaluate", workspace.data, params_with(), "dvc") as tracker:
        tracker.curve("curve", {"target": "jpeg"}, [(0, {"robust/accuracy": 0.5})])
    (run,) = (run for run in runs_of(client, "evaluate") if run.data.tags.get("dvc_experiment") == "five-epochs")
    (curve,) = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    inherited = {"dvc_experiment", "orchestrator", "processor", "mlflow.source.git.commit", "version.torch"}
    assert {tag: curve.data.tags.get(tag) for tag in inherited} == {tag: run.data.tags[tag] for tag in inherited}
    assert curve.data.tags["dvc_experiment"] == "five-epochs"
    assert (curve.data.tags["kind"], curve.data.tags["target"], curve.data.tags.get("step")) == ("curve", "jpeg", None)


@pytest.mark.parametrize(
    ("step", "sections"),
    [
        ("prepare", {"seed", "acquire", "prepare"}),
        ("attack", {"seed", "compute", "attack"}),
        ("attack_defence@jpeg", {"seed", "compute", "attack"}),
        ("train_defence@jpeg", {"seed", "compute", "train_classifier", "train_autoencoder", "defences.jpeg"}),
    ],
)
def test_a_run_and_its_curves_have_the_parameters_that_the_step_reads(
    step: str, sections: set[str], client: MlflowClient, workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    params = params_with()
    with open_run(workspace, step, workspace.data, params, "python") as tracker:
        tracker.params({"extra": 1})
        tracker.curve("curve", {"target": "jpeg"}, [(0, {"robust/accuracy": 0.5})])
    run = runs_of(client, step)[0]
    name, _, defence = step.partition("@")
    expected = params.of_step(name, defence) | {"extra": 1}
    assert run.data.params == {key: str(value) for key, value in expected.items()}
    assert {section for section in sections if not any(key.startswith(section) for key in expected)} == set()
    assert {key for key in expected if not key.startswith((*sections, "extra"))} == set()
    (curve,) = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    assert curve.data.params == run.data.params


@pytest.mark.parametrize("step", ["report", "seeds"])
def test_the_runs_of_the_report_and_of_a_flow_have_all_parameters(
    step: str, client: MlflowClient, workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    with open_run(workspace, step, workspace.data, params_with(), "prefect"):
        pass
    run = runs_of(client, step)[0]
    assert run.data.params == {key: str(value) for key, value in params_with().flat().items()}


def test_an_exception_marks_the_run_as_failed_and_is_raised(
    client: MlflowClient, workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    def validate(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        raise ValueError("no images")

    with pytest.raises(ValueError, match="no images"):
        run_step(validate, workspace, params_with())
    (run,) = runs_of(client, "validate")
    assert run.info.status == "FAILED"
    assert "outputs_md5" not in run.data.tags


SLEEPER = """
import sys, time
from pathlib import Path
from tasks.core.workspace import SCHEMA_VERSION, Workspace
from tasks.runner import run_step
from tests.conftest import parse_params, with_overrides

def prepare(workspace, params, tracker):
    tracker.metrics({"data/n": 3})
    print("logged", flush=True)
    time.sleep(600)

run_step(prepare, Workspace(Path(sys.argv[1])), parse_params(with_overrides({})))
"""


def test_the_next_step_ends_the_run_of_a_killed_step_but_not_of_a_running_one(
    client: MlflowClient, workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    def validate(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        pass

    def status() -> str:
        run = max(runs_of(client, "prepare"), key=lambda run: run.info.start_time)
        logged = client.get_metric_history(run.info.run_id, "data/n")[-1].timestamp
        assert run.info.end_time in (None, logged)
        return str(run.info.status)

    command, environment = [sys.executable, "-c", SLEEPER, str(workspace.root)], os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"logged\n"
        run_step(validate, workspace, params_with())
        assert status() == "RUNNING"
        process.kill()
    assert status() == "RUNNING"
    run_step(validate, workspace, params_with())
    assert status() == "KILLED"
    assert not list(workspace.open_runs.iterdir())


def test_the_next_step_ends_a_run_that_an_error_left_open(
    client: MlflowClient, workspace: Workspace, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        pass

    runs_of_other_tests = {run.info.run_id for run in runs_of(client, "evaluate")}

    def status() -> str:
        runs = [run for run in runs_of(client, "evaluate") if run.info.run_id not in runs_of_other_tests]
        return str(min(runs, key=lambda run: run.info.start_time).info.status)

    def fail(*_: Any) -> None:
        raise OSError("input/output error")

    # the run is open when the step searches for open runs and fails
    with monkeypatch.context() as patch:
        patch.setattr(tracking_run, "end_killed", fail)
        with pytest.raises(OSError, match="input/output error"):
            run_step(evaluate, workspace, params_with())
    assert status() == "RUNNING"
    # a folder is no run
    stray = workspace.open_runs / "a folder"
    stray.mkdir()
    run_step(evaluate, workspace, params_with())
    assert status() == "KILLED"
    assert list(workspace.open_runs.iterdir()) == [stray]


def test_the_file_of_an_open_run_is_created_again_if_another_step_removes_it(workspace: Workspace) -> None:
    workspace.open_runs.mkdir(parents=True)
    path, inside, ended = workspace.open_runs / "run", Event(), Event()

    def step() -> None:
        with registered(workspace, "run"):
            assert path.exists()
            inside.set()
        ended.set()

    with path.open("w") as file:
        # as if another step had locked the file first
        fcntl.flock(file, fcntl.LOCK_EX)
        Thread(target=step, daemon=True).start()
        assert not inside.wait(0.3)
        path.unlink()
    assert ended.wait(30)
    assert not path.exists()


def test_runs_in_two_threads_do_not_mix(
    client: MlflowClient, workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    def log_many(name: str) -> None:
        with open_run(workspace, name, workspace.data, params_with(), "python") as tracker:
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


@pytest.mark.parametrize("name", ["scans?", "100%", 'the "new" scans'])
def test_a_folder_whose_name_mlflow_cannot_use_is_refused_before_the_step_begins(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params_with: Callable[..., Params]
) -> None:
    (tmp_path / name / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    began: list[str] = []

    def prepare(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        began.append("prepare")

    with pytest.raises(ValueError, match=r"path of the tracking store: .* contains .*set MLFLOW_TRACKING_URI"):
        run_step(prepare, Workspace(), params_with({}))
    assert not began
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert not (tmp_path / name / "tracking-outbox").exists()


def test_runs_are_stored_in_a_folder_with_an_apostrophe_and_a_number_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params_with: Callable[..., Params]
) -> None:
    (tmp_path / "o'Brien #1" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "o'Brien #1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def prepare(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        tracker.model("net", torch.nn.Flatten(), np.zeros((1, 1, 4, 4), np.float32))

    run_step(prepare, Workspace(), params_with({}))
    assert (tmp_path / "o'Brien #1" / "mlflow.db").is_file()
    (run,) = runs_of(MlflowClient(f"sqlite:///{tmp_path}/o'Brien #1/mlflow.db"), "prepare")
    assert run.info.status == "FINISHED"
    assert list((tmp_path / "o'Brien #1" / "mlartifacts").rglob("MLmodel"))
    assert not Path("tracking-outbox").exists()


def test_two_processes_create_a_store_at_the_same_time(tmp_path: Path) -> None:
    script = "from tasks.tracking.store import Store; Store().open('a key', 'prepare', {}, 1)"
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-c", script]
    both = [subprocess.Popen(command, cwd=tmp_path, env=environment | {"PYTHONPATH": str(ROOT)}) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string=f"name = '{EXPERIMENT}'")
    assert len(client.search_runs([experiment.experiment_id])) == 2
    assert experiment.artifact_location.startswith((tmp_path / "mlartifacts").as_uri())


def test_a_process_killed_while_it_creates_the_store_does_not_break_the_next_one(tmp_path: Path) -> None:
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


def test_values_that_are_too_long_for_the_store_are_refused(
    client: MlflowClient, workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    with open_run(workspace, "long", workspace.data, params_with(), "python") as tracker:
        with pytest.raises(ValueError, match=r"parameters \['x'\] are too long\. At most 6000 characters"):
            tracker.params({"x": "a" * 6001})
        with pytest.raises(ValueError, match="the note has 8001 characters"):
            tracker.note("a" * 8001)


def test_a_report_is_linked_to_the_run_that_made_the_present_outputs(
    client: MlflowClient, workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    def evaluate(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        (workspace.evaluate / "seed.txt").write_text(str(params.seed))

    def report(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        tracker.link_steps()

    made = {}
    for seed in (1, 2, 1):
        run_step(evaluate, workspace, params_with({"seed": seed}))
        made[seed] = runs_of(client, "evaluate")[0].info.run_id
    run_step(report, workspace, params_with())
    run = runs_of(client, "report")[0]
    assert run.data.tags["run.evaluate"] == made[1]
    assert "run.report" not in run.data.tags


def test_a_report_lists_the_models_of_the_runs_that_made_the_present_outputs(
    client: MlflowClient, workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    def train_classifier(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        (workspace.train_classifier / "weights").write_text(str(params.seed))
        tracker.model("classifier", torch.nn.Flatten(), np.zeros((2, 1, 2, 2), np.float32))

    def report(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        tracker.link_steps()

    for seed in (1, 2):
        run_step(train_classifier, workspace, params_with({"seed": seed}))
    newest = runs_of(client, "train_classifier")[0]
    assert len(newest.outputs.model_outputs) == 1
    for _ in range(2):
        run_step(report, workspace, params_with())
    for run in runs_of(client, "report")[:2]:
        assert [model.model_id for model in run.outputs.model_outputs] == [newest.outputs.model_outputs[0].model_id]
    made = client.search_logged_models([newest.info.experiment_id])
    assert len(made) == 2
    assert {"report"}.isdisjoint(client.get_run(model.source_run_id).data.tags["step"] for model in made)


def test_a_step_without_a_run_in_the_store_is_logged_and_not_linked(
    client: MlflowClient, workspace: Workspace, params_with: Callable[..., Params], caplog: pytest.LogCaptureFixture
) -> None:
    def report(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        tracker.link_steps()

    workspace.prepare.mkdir()
    (workspace.prepare / "out.txt").write_text("from DVC's cache")
    caplog.set_level("INFO", logger="tasks.tracking")
    run_step(report, workspace, params_with())
    assert caplog.messages == ["No run in the tracking store made the present outputs of prepare: not linked"]
    run = runs_of(client, "report")[0]
    assert run.info.status == "FINISHED"
    assert not [tag for tag in run.data.tags if tag.startswith("run.")]


def test_a_report_is_not_linked_to_an_earlier_report(
    client: MlflowClient, workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    def report(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        (workspace.report / "report.html").write_text("as before")
        tracker.link_steps()

    for _ in range(2):
        run_step(report, workspace, params_with())
    assert not any("run.report" in run.data.tags for run in runs_of(client, "report"))


def test_a_data_set_has_the_digest_of_dvc(
    client: MlflowClient, workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    workspace.prepare.mkdir()
    (workspace.prepare / "pixels.npy").write_bytes(b"1")
    with open_run(workspace, "data", workspace.data, params_with(), "python") as tracker:
        tracker.dataset(workspace.prepare, "phantoms", "evaluation")
    (found,) = runs_of(client, "data")[0].inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest + ".dir") == ("phantoms", digest_of(workspace.prepare))
    assert {tag.key: tag.value for tag in found.tags} == {
        "mlflow.data.context": "evaluation",
        "dvc_md5": digest_of(workspace.prepare),
    }


def test_the_no_op_tracker_has_every_method_and_stores_nothing(tmp_path: Path) -> None:
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


def test_the_digest_of_a_folder_depends_on_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.npy").write_bytes(np.arange(3).tobytes())
    first = digest_of(tmp_path)
    assert first.endswith(".dir")
    (tmp_path / "a" / "x.npy").rename(tmp_path / "a" / "y.npy")
    assert digest_of(tmp_path) != first


def test_steps_can_log_the_same_new_data_set_at_the_same_time(
    client: MlflowClient, workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    n_rounds, n_steps = 5, 4
    workspace.prepare.mkdir()

    def attack(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        for number in range(n_rounds):
            together.wait(timeout=300)
            tracker.dataset(workspace.prepare, f"new {number}", "attack")

    def at_once(number: int) -> None:
        folder = workspace.data / f"step_{number}"
        folder.mkdir()
        with open_run(workspace, "attack", folder, params_with(), "python") as tracker:
            attack(workspace, params_with(), tracker)

    together = Barrier(n_steps)
    threads = [Thread(target=at_once, args=(number,)) for number in range(n_steps)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [run for run in runs_of(client, "attack") if run.inputs.dataset_inputs]
    names = [sorted(given.dataset.name for given in run.inputs.dataset_inputs) for run in found]
    assert names == [[f"new {number}" for number in range(n_rounds)]] * n_steps


def test_the_minutes_of_a_step_include_killed_attempts_before_the_run_that_made_its_outputs(own_store: str) -> None:
    store = Store()
    # minutes at the start and the end, status, digest of the outputs
    attempts = [
        (0, 9, "FINISHED", "old"),
        (10, 12, "KILLED", ""),
        (20, 25, "FINISHED", "new"),
        (30, 90, "FINISHED", "x"),
    ]
    for start, end, status, digest in attempts:
        store.open(run := f"run at {start}", "attack", {"step": "attack"}, start * 60_000)
        if digest:
            store.tags(run, {"outputs_md5": digest})
        store.close(run, status, end * 60_000)
    assert store.minutes({"attack": "new", "evaluate": "new"}) == {"attack": 7.0}
    assert store.minutes({"attack": "of another store"}) == {}
