"""The outbox: runs that are journalled while the tracking store is unavailable, and sent to a real store later."""

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException

from tasks.core.workspace import Workspace
from tasks.params import Params
from tasks.runner import run_step
from tasks.tracking import EXPERIMENT, Tracker, digest_of
from tasks.tracking.errors import is_refused, is_unavailable
from tasks.tracking.open_runs import end_killed
from tasks.tracking.outbox import Journal, outbox, sync, waiting
from tasks.tracking.store import Store
from tests.conftest import ROOT

PYTHONPATH = {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{shutil.copy(empty_store, tmp_path_factory.mktemp('store'))}"


@pytest.fixture
def client(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """The store to which the outbox is sent. MLFLOW_TRACKING_URI is the address of a server that is unavailable."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{taken.getsockname()[1]}")
    # the tests do not measure how long it takes to detect an outage
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("CT_ROBUSTNESS_OUTBOX", str(tmp_path / "tracking-outbox"))
    return MlflowClient(tracking_uri=store)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def runs_of(client: MlflowClient, filter_string: str) -> list[Any]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], filter_string))


def train_classifier(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    """Call every method of the tracker."""
    folder = workspace.train_classifier
    (folder / "history.csv").write_bytes(b"epoch,loss\n1,0.5\n")
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "weights.bin").write_bytes(bytes(range(256)))
    tracker.dataset(folder, "prepared", "training")
    for epoch in range(3):
        tracker.metrics({"train/loss": 1 / (epoch + 3), "train/odd": float("nan")}, epoch)
    tracker.params({"extra": "ε = 1/255"})
    tracker.tags({"check.ball": "PASS"})
    tracker.artifact(folder / "history.csv")
    tracker.artifact(folder / "deep", "kept")
    tracker.curve(
        "undefended",
        {"target": "undefended"},
        [(250, {"robust/accuracy": 0.5}), (1000, {"robust/accuracy": np.float64(0.25)})],
        [folder / "history.csv"],
    )
    tracker.model("classifier", torch.nn.Flatten(), np.zeros((2, 1, 2, 2), np.float32))
    tracker.note("a description")


def prepare(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    tracker.metrics({"data/n": 3}, 250)


def content_of(client: MlflowClient, run: Any) -> dict[str, Any]:
    """Everything that a store has of a run and its curves, without ids and times."""
    run_id = run.info.run_id
    own = {"run_key", "mlflow.parentRunId", "mlflow.user", "mlflow.source.git.commit", "mlflow.source.git.dirty"}
    model = run.outputs.model_outputs[0].model_id if run.outputs and run.outputs.model_outputs else None
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "params": run.data.params,
        "tags": {key: value for key, value in run.data.tags.items() if key not in own},
        "metrics": {
            key: [(point.step, repr(point.value)) for point in client.get_metric_history(run_id, key)]
            for key in run.data.metrics
        },
        "datasets": [(data.dataset.name, data.dataset.digest) for data in run.inputs.dataset_inputs],
        "files": files_of(client.download_artifacts(run_id, "")),
        "model": client.get_logged_model(model).status if model else None,
        "curves": [content_of(client, child) for child in runs_of(client, f"tags.`mlflow.parentRunId` = '{run_id}'")],
    }


def files_of(folder: str) -> dict[str, bytes]:
    found = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_a_journalled_run_is_sent_complete(
    client: MlflowClient,
    store: str,
    workspace: Workspace,
    params_with: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = time.time() * 1000
    run_step(train_classifier, workspace, params_with())
    after = time.time() * 1000
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("tasks")]
    assert "the tracking store is unavailable" in warning
    assert "python -m tasks.tracking sync" in warning

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert sync(moved=True)
    assert not any(outbox().iterdir())
    (sent,) = runs_of(client, "tags.step = 'train_classifier'")
    assert before <= sent.info.start_time <= sent.info.end_time <= after

    # the same step with an available store
    run_step(train_classifier, workspace, params_with())
    direct, _ = runs_of(client, "tags.step = 'train_classifier'")
    assert direct.info.start_time > sent.info.end_time
    assert content_of(client, sent) == content_of(client, direct)
    assert content_of(client, sent)["files"]["kept/er/weights.bin"] == bytes(range(256))
    assert content_of(client, sent)["model"] == "READY"

    import mlflow

    model = mlflow.pytorch.load_model(f"models:/{sent.outputs.model_outputs[0].model_id}")
    images = torch.arange(12.0).reshape(3, 1, 2, 2)
    torch.testing.assert_close(model(images), images.flatten(1))


def test_a_run_that_is_sent_twice_is_stored_once(
    client: MlflowClient,
    store: str,
    workspace: Workspace,
    params_with: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    run_step(train_classifier, workspace, params_with({"seed": 7}))
    # as if the first attempt was killed before it deleted the journal
    shutil.copytree(outbox(), tmp_path / "again")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert sync(moved=True)
    (first,) = runs_of(client, "params.seed = '7' and tags.kind = 'step'")
    monkeypatch.setenv("CT_ROBUSTNESS_OUTBOX", str(tmp_path / "again"))
    assert sync(moved=True)
    (second,) = runs_of(client, "params.seed = '7' and tags.kind = 'step'")
    assert content_of(client, second) == content_of(client, first)
    assert len(second.outputs.model_outputs) == 1
    assert len(content_of(client, second)["curves"]) == 1


def test_a_failed_step_is_sent_as_failed(
    client: MlflowClient,
    store: str,
    workspace: Workspace,
    params_with: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def validate(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        raise ValueError("no images")

    with pytest.raises(ValueError, match="no images"):
        run_step(validate, workspace, params_with())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert sync(moved=True)
    (run,) = runs_of(client, "tags.step = 'validate'")
    assert run.info.status == "FAILED"


def test_a_killed_step_is_sent_as_killed_with_all_that_it_logged(
    client: MlflowClient, store: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"""
import time
from pathlib import Path
from tasks.core.workspace import Workspace
from tasks.runner import run_step
from tests.conftest import parse_params, with_overrides

def prepare(workspace, params, tracker):
    tracker.metrics({{"data/n": 3}}, 250)
    print("logged", flush=True)
    time.sleep(600)

run_step(prepare, Workspace(Path({str(workspace.root)!r})), parse_params(with_overrides({{}})))
"""
    command, environment = [sys.executable, "-c", script], os.environ | PYTHONPATH
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"logged\n"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
        # the running step holds a lock on its journal
        assert not sync(moved=True)
        (folder,) = waiting()
        os.kill(process.pid, signal.SIGKILL)
    with (folder / "journal.jsonl").open("a") as journal:
        journal.write('{"method": "metrics", "run": "half a li')
    assert sync(moved=True)
    (run,) = runs_of(client, "tags.step = 'prepare'")
    assert run.info.status == "KILLED"
    (metric,) = client.get_metric_history(run.info.run_id, "data/n")
    assert (metric.step, metric.value) == (250, 3)
    assert run.info.end_time == metric.timestamp


def test_a_report_is_sent_after_the_runs_that_it_links_to(
    client: MlflowClient,
    store: str,
    workspace: Workspace,
    params_with: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def evaluate(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        (workspace.evaluate / "seed.txt").write_text("unlike any other")

    def report(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        tracker.link_steps()

    run_step(evaluate, workspace, params_with())
    # the store is available again, but the run of evaluate is in the outbox: so the report is journalled, too
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    run_step(report, workspace, params_with())
    assert len(waiting()) == 2
    assert sync(moved=True)
    (made,) = runs_of(client, f"tags.outputs_md5 = '{digest_of(workspace.evaluate)}'")
    (run,) = runs_of(client, "tags.step = 'report'")
    assert run.data.tags["run.evaluate"] == made.info.run_id
    assert run.info.status == "FINISHED"


def test_a_journal_is_sent_only_to_its_own_store(
    client: MlflowClient,
    store: str,
    workspace: Workspace,
    params_with: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own_store = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", own_store.replace("//", "//name:secret@"))
    run_step(prepare, workspace, params_with())
    assert "secret" not in caplog.text
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert not sync()
    assert f"it is for the store at {own_store}, not for {store}" in caplog.text
    (folder,) = waiting()
    assert "secret" not in (folder / "journal.jsonl").read_text()

    head, *others = (folder / "journal.jsonl").read_text().splitlines()
    existing = json.dumps({**json.loads(head), "run_exists": True})
    (folder / "journal.jsonl").write_text("\n".join([existing, *others, ""]))
    assert not sync(moved=True)
    assert f"its run is in the store at {own_store}" in caplog.text


def test_a_journal_is_sent_to_the_experiment_for_which_it_was_written(
    client: MlflowClient, store: str, workspace: Workspace, params_with: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = client.get_experiment_by_name(EXPERIMENT)
    n_before = len(client.search_runs([known.experiment_id])) if known else 0
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "lung")
    run_step(prepare, workspace, params_with())
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    run_step(prepare, workspace, params_with())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert sync(moved=True)
    experiments = {each.name: each.experiment_id for each in client.search_experiments()}
    assert [len(client.search_runs([experiments["lung"]]))] == [1]
    assert len(runs_of(client, "")) == n_before + 1


def test_a_journal_stays_while_the_store_is_unavailable(
    client: MlflowClient, workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    run_step(prepare, workspace, params_with())
    (folder,) = waiting()
    kept = (folder / "journal.jsonl").read_bytes()
    result = sync_command()
    assert result.returncode == 1
    assert f"{folder.name}: not sent: API request to" in result.stderr
    assert f"journals left in {outbox()}: 1" in result.stderr
    assert (folder / "journal.jsonl").read_bytes() == kept


def test_sync_of_an_empty_outbox_does_not_use_the_store(client: MlflowClient) -> None:
    result = sync_command()
    assert (result.returncode, result.stdout) == (0, f"{outbox()} is empty: nothing to send\n")


def sync_command() -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tasks.tracking", "sync"]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | PYTHONPATH, check=False)


def test_a_journal_that_another_command_is_sending_is_skipped(
    client: MlflowClient,
    store: str,
    workspace: Workspace,
    params_with: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_step(prepare, workspace, params_with())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    (folder,) = waiting()
    with (folder / "journal.jsonl").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert not sync(moved=True)
    assert waiting() == [folder]
    assert sync(moved=True)


def test_an_invalid_call_is_an_error_and_not_an_outage(
    client: MlflowClient,
    store: str,
    workspace: Workspace,
    params_with: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def prepare(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        tracker.metrics({"a name that MLflow refuses because of its length" * 10: 1})

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    with pytest.raises(MlflowException, match="exceeds"):
        run_step(prepare, workspace, params_with())
    assert not waiting()


def write_journal(*lines: dict[str, Any], run: str = "a") -> Path:
    """Write a journal for the store of MLFLOW_TRACKING_URI by hand."""
    folder = outbox() / f"1-prepare-{run}"
    (folder / "files" / "1").mkdir(parents=True)
    (folder / "files" / "1" / "link").symlink_to("/etc/passwd")
    opening = {"name": "prepare", "tags": {}, "start_time": 1}
    head = {"run": run, "store": os.environ["MLFLOW_TRACKING_URI"], "run_exists": False, "opening": opening}
    head["experiment"] = EXPERIMENT
    text = "".join(json.dumps({"run": run, "at": 1, **line}) + "\n" for line in lines)
    (folder / "journal.jsonl").write_text(json.dumps(head) + "\n" + text)
    return folder


@pytest.mark.parametrize(
    "line",
    [
        {"method": "artifact", "arguments": {"path": "/etc/passwd", "folder": ""}},
        {"method": "artifact", "arguments": {"path": "files/../../../secret.txt", "folder": ""}},
        {"method": "artifact", "arguments": {"path": "files/1/link", "folder": ""}},
        {"method": "artifact", "arguments": {"path": "files/1", "folder": ""}},
        {"method": "kill", "arguments": {}},
        {"method": "__init__", "arguments": {}},
    ],
    ids=["absolute", "dots", "link", "link in a folder", "kill", "private"],
)
def test_a_journal_names_its_own_files_and_the_methods_of_a_tracker_alone(
    line: dict[str, Any],
    client: MlflowClient,
    store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    (tmp_path / "secret.txt").write_text("secret")
    folder = write_journal(line)
    # it is set aside, so that it does not fail every later command
    assert sync()
    assert "prepare-a: cannot be sent: " in caplog.text
    assert (folder / "damaged.jsonl").is_file()
    assert not [path for path in tmp_path.glob("mlartifacts/**/*") if path.is_file()]


@pytest.mark.parametrize(
    "line",
    [
        {"method": "artifact", "arguments": {"path": "files/2", "folder": "../x"}},
        {"method": "metrics", "arguments": {"points": [[0, {"long " * 100: 1.0}]], "time": 1}},
        {"method": "metrics", "arguments": {"points": [[0, {"too large": 1.0}]], "time": 2**70}},
        {"method": "metrics", "arguments": {"points": 3, "time": 1}},
        {"method": "params", "arguments": {"wrong": {}}},
        {"method": "artifact", "arguments": {"path": "files/none.txt", "folder": ""}},
        {"method": "tags", "run": "never opened", "arguments": {"values": {"a": "b"}}},
    ],
    ids=["artifact path", "long name", "large number", "type", "name of an argument", "no file", "no run"],
)
def test_a_journal_that_the_store_refuses_is_set_aside_as_a_failed_run_and_the_others_are_sent(
    line: dict[str, Any],
    client: MlflowClient,
    store: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    refused, run = (f"{letter}{uuid.uuid4().hex}" for letter in "ab")
    folder = write_journal(line, run=refused)
    (folder / "files" / "2").mkdir()
    later = write_journal({"method": "metrics", "arguments": {"points": [[0, {"n": 1}]], "time": 1}}, run=run)
    assert sync()
    assert f"1-prepare-{refused}: cannot be sent: " in caplog.text
    assert (folder / "damaged.jsonl").is_file()
    assert not later.exists()
    assert len(runs_of(client, f"tags.run_key = '{run}'")) == 1
    (ended,) = runs_of(client, f"tags.run_key = '{refused}'")
    assert ended.info.status == "FAILED"


@pytest.mark.parametrize(
    ("error", "outage", "refused"),
    [
        (MlflowException("Invalid artifact path: '../x'."), False, True),
        (MlflowException("API request to http://host/ failed with exception refused"), True, False),
        (
            MlflowException("API request to endpoint /x failed with error code 502 != 200. Response body: ''"),
            True,
            False,
        ),
        (
            MlflowException("API request to endpoint /x failed with error code 413 != 200. Response body: ''"),
            False,
            True,
        ),
        (MlflowException("API request to endpoint was successful but the response body was not"), True, False),
        (RestException({"error_code": "INTERNAL_ERROR", "message": "x"}), True, False),
        (RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": "x"}), False, True),
        (RestException({"error_code": "PERMISSION_DENIED", "message": "x"}), False, False),
        (RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "x"}), True, False),
    ],
)
def test_refused_arguments_are_no_outage(error: MlflowException, outage: bool, refused: bool) -> None:
    assert (is_unavailable(error), is_refused(error)) == (outage, refused)


@pytest.mark.parametrize("content", ["", "{}\n", "\0\0\0\n", "[]\n"])
def test_a_damaged_journal_is_kept_and_does_not_fail_every_later_command(
    content: str, client: MlflowClient, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    folder = write_journal()
    (folder / "journal.jsonl").write_text(content)
    assert sync()
    assert (folder / "damaged.jsonl").read_text() == content


@pytest.mark.parametrize("state", ["damaged", "locked"])
def test_runs_are_journalled_while_the_database_is_locked_or_damaged(
    state: str,
    workspace: Workspace,
    tmp_path: Path,
    params_with: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    database = tmp_path / "mlflow.db"
    monkeypatch.setenv("CT_ROBUSTNESS_OUTBOX", str(tmp_path / "tracking-outbox"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}?timeout=1")
    if state == "damaged":
        database.write_bytes(b"no database" * 1000)
    else:
        connection = sqlite3.connect(database, isolation_level=None)
        connection.execute("CREATE TABLE other (x)")
        connection.execute("BEGIN EXCLUSIVE")
    run_step(prepare, workspace, params_with())
    assert len(waiting()) == 1
    if state == "locked":
        connection.close()
    database.unlink()
    # another process, since this one keeps its connections to the old file
    assert sync_command().returncode == 0
    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    assert [run.info.status for run in runs_of(client, "")] == ["FINISHED"]


def test_a_stray_folder_beside_the_open_runs_is_ignored(workspace: Workspace) -> None:
    (workspace.open_runs / "stray").mkdir(parents=True)
    end_killed(workspace, Store())


def test_a_full_disk_of_the_outbox_does_not_hide_the_error_of_the_step(
    client: MlflowClient, workspace: Workspace, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def prepare(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        monkeypatch.setattr(Journal, "write", full)
        raise ValueError("the error of the step")

    with pytest.raises(ValueError, match="the error of the step"):
        run_step(prepare, workspace, params_with())
