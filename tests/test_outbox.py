"""What steps say while the tracking store is out: kept on disk, and sent to a real store later."""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tasks.core.workspace import Workspace
from tasks.params import Params
from tasks.runner import run_step
from tasks.tracking import EXPERIMENT, Tracker, digest_of
from tasks.tracking.outbox import outbox, sync, waiting
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def client(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """The store to which the outbox is sent; the working folder is empty, and the server that it names is out."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{taken.getsockname()[1]}")
    # these tests are about what follows from an outage, not about how long it takes to notice
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path)
    Workspace().data.mkdir()
    return MlflowClient(tracking_uri=store)


def runs_of(client: MlflowClient, filter_string: str) -> list[Any]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], filter_string))


def train_classifier(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    """Say one of everything."""
    (Workspace().train_classifier / "history.csv").write_bytes(b"epoch,loss\n1,0.5\n")
    (Workspace().train_classifier / "deep" / "er").mkdir(parents=True)
    (Workspace().train_classifier / "deep" / "er" / "weights.bin").write_bytes(bytes(range(256)))
    tracker.dataset(Workspace().train_classifier, "prepared", "training")
    for epoch in range(3):
        tracker.metrics({"train/loss": 1 / (epoch + 3), "train/odd": float("nan")}, epoch)
    tracker.params({"extra": "ε = 1/255"})
    tracker.tags({"check.ball": "PASS"})
    tracker.artifact(Workspace().train_classifier / "history.csv")
    tracker.artifact(Workspace().train_classifier / "deep", "kept")
    tracker.curve(
        "undefended",
        {"target": "undefended"},
        [(250, {"robust/accuracy": 0.5}), (1000, {"robust/accuracy": np.float64(0.25)})],
        [Workspace().train_classifier / "history.csv"],
    )
    tracker.model("classifier", torch.nn.Flatten(), np.zeros((2, 1, 2, 2), np.float32))
    tracker.note("what happened")


def told(client: MlflowClient, run: Any) -> dict[str, Any]:
    """All that a store knows of a run and of the curves below it, but for ids and times."""
    run_id = run.info.run_id
    own = {"run_key", "mlflow.parentRunId", "mlflow.user", "mlflow.source.git.commit"}
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
        "curves": [told(client, child) for child in runs_of(client, f"tags.`mlflow.parentRunId` = '{run_id}'")],
    }


def files_of(folder: str) -> dict[str, bytes]:
    found = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_a_step_without_its_server_finishes_says_so_and_what_is_sent_later_is_what_a_server_would_have_heard(
    client: MlflowClient,
    store: str,
    params_with: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = time.time() * 1000
    run_step(train_classifier, Workspace(), params_with())
    after = time.time() * 1000
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("tasks")]
    assert "the tracking store can't be reached" in warning
    assert "python -m tasks.tracking sync" in warning

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert sync(moved=True)
    assert not any(outbox().iterdir())
    (sent,) = runs_of(client, "tags.step = 'train_classifier'")
    assert before <= sent.info.start_time <= sent.info.end_time <= after

    run_step(train_classifier, Workspace(), params_with())
    direct, _ = runs_of(client, "tags.step = 'train_classifier'")
    assert direct.info.start_time > sent.info.end_time
    assert told(client, sent) == told(client, direct)
    assert told(client, sent)["files"]["kept/er/weights.bin"] == bytes(range(256))
    assert told(client, sent)["model"] == "READY"

    import mlflow

    model = mlflow.pytorch.load_model(f"models:/{sent.outputs.model_outputs[0].model_id}")
    images = torch.arange(12.0).reshape(3, 1, 2, 2)
    torch.testing.assert_close(model(images), images.flatten(1))


def test_what_is_sent_twice_is_there_once(
    client: MlflowClient,
    store: str,
    params_with: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    run_step(train_classifier, Workspace(), params_with({"seed": 7}))
    # as if the first attempt had been cut off before it could delete what it had sent
    shutil.copytree(outbox(), tmp_path / "again")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert sync(moved=True)
    (first,) = runs_of(client, "params.seed = '7' and tags.kind = 'step'")
    (tmp_path / "again").rename(tmp_path / "outbox")
    monkeypatch.setenv("CT_ROBUSTNESS_OUTBOX", str(tmp_path / "outbox"))
    assert sync(moved=True)
    (second,) = runs_of(client, "params.seed = '7' and tags.kind = 'step'")
    assert told(client, second) == told(client, first)
    assert len(second.outputs.model_outputs) == 1
    assert len(told(client, second)["curves"]) == 1


def test_a_failed_step_is_sent_as_failed(
    client: MlflowClient, store: str, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    def validate(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        raise ValueError("no images")

    with pytest.raises(ValueError, match="no images"):
        run_step(validate, Workspace(), params_with())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert sync(moved=True)
    (run,) = runs_of(client, "tags.step = 'validate'")
    assert run.info.status == "FAILED"


def test_a_killed_step_loses_nothing_that_it_had_said_and_is_sent_as_killed(
    client: MlflowClient, store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tasks.runner import run_step
from tests.conftest import parse_params, with_overrides

def prepare(workspace: Workspace, params, tracker):
    tracker.metrics({{"data/n": 3}}, 250)
    print("said", flush=True)
    time.sleep(600)

run_step(prepare, Workspace(), parse_params(with_overrides({{}})))
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"said\n"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
        # while the step runs, its journal is its own
        assert not sync(moved=True)
        (folder,) = waiting()
        os.kill(process.pid, signal.SIGKILL)
    with (folder / "journal.jsonl").open("a") as journal:
        journal.write('{"call": "metrics", "run": "half a li')
    assert sync(moved=True)
    (run,) = runs_of(client, "tags.step = 'prepare'")
    assert run.info.status == "KILLED"
    assert [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "data/n")] == [(250, 3)]
    assert run.info.end_time == client.get_metric_history(run.info.run_id, "data/n")[0].timestamp


def test_a_report_is_linked_to_runs_that_came_to_the_store_with_it(
    client: MlflowClient, store: str, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        (Workspace().evaluate / "seed.txt").write_text("unlike any other")

    def report(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        tracker.link_steps()

    run_step(evaluate, Workspace(), params_with())
    # the store is back, but what the report is about waits: so the report waits, too
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    run_step(report, Workspace(), params_with())
    assert len(waiting()) == 2
    assert sync(moved=True)
    (made,) = runs_of(client, f"tags.outputs_md5 = '{digest_of(Workspace().evaluate)}'")
    (run,) = runs_of(client, "tags.step = 'report'")
    assert run.data.tags["run.evaluate"] == made.info.run_id
    assert run.info.status == "FINISHED"


def test_a_run_goes_to_no_other_store_than_the_one_it_was_meant_for(
    client: MlflowClient,
    store: str,
    params_with: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def prepare(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        pass

    meant_for = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", meant_for.replace("//", "//name:secret@"))
    run_step(prepare, Workspace(), params_with())
    assert "secret" not in caplog.text
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert not sync()
    assert f"it is meant for the store at {meant_for}, not for {store}" in caplog.text
    (folder,) = waiting()
    assert "secret" not in (folder / "journal.jsonl").read_text()

    head, *others = (folder / "journal.jsonl").read_text().splitlines()
    begun = json.dumps({**json.loads(head), "begun": True})
    (folder / "journal.jsonl").write_text("\n".join([begun, *others, ""]))
    assert not sync(moved=True)
    assert f"its run was begun in the store at {meant_for}" in caplog.text


def test_a_store_that_is_still_out_leaves_everything_where_it_is(
    client: MlflowClient, params_with: Callable[..., Params], caplog: pytest.LogCaptureFixture
) -> None:
    def prepare(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        tracker.metrics({"x": 1})

    run_step(prepare, Workspace(), params_with())
    (folder,) = waiting()
    kept = (folder / "journal.jsonl").read_bytes()
    command = [sys.executable, "-m", "tasks.tracking", "sync"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 1
    assert f"{folder.name}: not sent: API request to" in result.stderr
    assert "still in tracking-outbox: 1" in result.stderr
    assert (folder / "journal.jsonl").read_bytes() == kept


def test_with_nothing_to_send_the_command_says_so_and_asks_no_store(client: MlflowClient) -> None:
    command = [sys.executable, "-m", "tasks.tracking", "sync"]
    printed = subprocess.check_output(command, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert printed == "nothing waits in tracking-outbox\n"


def test_a_journal_that_another_command_is_sending_is_left_to_it(
    client: MlflowClient, store: str, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        pass

    run_step(prepare, Workspace(), params_with())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    (folder,) = waiting()
    with (folder / "journal.jsonl").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert not sync(moved=True)
    assert waiting() == [folder]
    assert sync(moved=True)


def test_a_mistake_of_the_step_is_no_outage(
    client: MlflowClient, store: str, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        tracker.metrics({"a name that MLflow refuses @": 1})

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    with pytest.raises(MlflowException, match="Invalid value"):
        run_step(prepare, Workspace(), params_with())
    assert not waiting()
