"""A shared tracking server, on PostgreSQL and an S3-compatible store: outages in mid-run, several pipelines at once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from tasks.core.workspace import Workspace
from tasks.params import Params
from tasks.runner import run_step
from tasks.tracking import EXPERIMENT, Tracker
from tasks.tracking.outbox import sync, waiting
from tests.conftest import ROOT
from tests.operations.servers import S3_KEYS, MlflowServer, Wire, mlflow_server, postgres, s3_server
from tests.test_outbox import content_of, train_classifier

pytestmark = pytest.mark.operations


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A server whose metadata is in PostgreSQL and whose artifacts are in an S3 bucket."""
    folder = tmp_path_factory.mktemp("server")
    with (
        postgres() as database,
        s3_server(folder, "mlflow") as s3,
        mlflow_server(folder, database, "s3://mlflow", S3_KEYS | {"MLFLOW_S3_ENDPOINT_URL": s3}) as running,
    ):
        yield running


@pytest.fixture
def client(server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    monkeypatch.chdir(tmp_path)
    Workspace().data.mkdir()
    return MlflowClient(tracking_uri=server.address)


def runs_of(client: MlflowClient, filter_string: str) -> list[Any]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], filter_string, max_results=1000)
    return [client.get_run(run.info.run_id) for run in found]


def sync_command() -> str:
    command = [sys.executable, "-m", "tasks.tracking", "sync"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ).stdout


def test_two_pipelines_that_begin_at_once_on_an_empty_server_lose_nothing(
    server: MlflowServer, client: MlflowClient, tmp_path: Path
) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tasks.core import paths
from tasks.runner import run_step
from tests.conftest import parse_params, with_overrides

def prepare(workspace: Workspace, params, tracker):
    (Workspace().prepare / "seed.bin").write_bytes(bytes([params.seed]) * 100_000)
    tracker.dataset(Workspace().params_file, "the same for both", "raw")
    for step in range(50):
        tracker.metrics({{"x/value": params.seed, "x/step": step}}, step)
    for number in range(5):
        tracker.curve(f"curve {{number}}", {{"number": str(number)}}, [(s, {{"robust/accuracy": s}}) for s in range(9)])
    tracker.artifact(Workspace().prepare / "seed.bin")

for _ in range(2):
    run_step(prepare, Workspace(), parse_params(with_overrides({{"seed": int(sys.argv[1])}})))
"""
    pipelines = []
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "params.yaml").write_text("seed")
        pipelines.append(subprocess.Popen([sys.executable, "-c", script, str(seed)], cwd=folder))
    assert [pipeline.wait() for pipeline in pipelines] == [0, 0]
    for seed in (1, 2):
        assert not (tmp_path / str(seed) / "tracking-outbox").exists()
        runs = runs_of(client, f"tags.step = 'prepare' and params.seed = '{seed}'")
        assert [run.info.status for run in runs] == ["FINISHED"] * 2
        for run in runs:
            run_id = run.info.run_id
            history = client.get_metric_history(run_id, "x/step")
            assert [(point.step, point.value) for point in history] == [(step, step) for step in range(50)]
            assert {point.value for point in client.get_metric_history(run_id, "x/value")} == {seed}
            assert len(runs_of(client, f"tags.`mlflow.parentRunId` = '{run_id}'")) == 5
            assert [data.dataset.name for data in run.inputs.dataset_inputs] == ["the same for both"]
            assert Path(client.download_artifacts(run_id, "seed.bin")).read_bytes() == bytes([seed]) * 100_000


def test_a_server_killed_in_mid_run_costs_seconds_and_loses_nothing(
    server: MlflowServer, client: MlflowClient, params_with: Callable[..., Params], caplog: pytest.LogCaptureFixture
) -> None:
    run_step(train_classifier, Workspace(), params_with())
    (whole,) = runs_of(client, "tags.step = 'train_classifier'")
    expected = content_of(client, whole)

    def train_in_an_outage(params: Params, tracker: Tracker) -> None:
        tracker.metrics({"before/outage": 1}, 5)
        tracker.model("early", torch.nn.Flatten(), np.zeros((2, 1, 2, 2), np.float32))
        server.kill()
        train_classifier(Workspace(), params, tracker)

    train_in_an_outage.__name__ = "train_classifier"
    begun = time.monotonic()
    run_step(train_in_an_outage, Workspace(), params_with({"seed": 11}))
    seconds = time.monotonic() - begun
    assert "python -m tasks.tracking sync" in caplog.text
    # the model alone takes some; MLflow by itself would have waited four minutes
    assert seconds < 30

    server.start()
    (begun_there,) = runs_of(client, "params.seed = '11' and tags.kind = 'step'")
    assert begun_there.info.status == "RUNNING"
    printed = sync_command()
    assert "sent (" in printed
    (run,) = runs_of(client, "params.seed = '11' and tags.kind = 'step'")
    assert run.info.run_id == begun_there.info.run_id
    found = content_of(client, run)
    assert found["metrics"].pop("before/outage") == [(5, "1.0")]
    assert len(run.outputs.model_outputs) == 2
    assert found | {"params": 0} == expected | {"params": 0}
    assert found["params"] == expected["params"] | {"seed": "11"}
    assert sync_command() == "nothing waits in tracking-outbox\n"


def test_a_server_that_hangs_is_given_up_within_half_a_minute(
    server: MlflowServer, client: MlflowClient, params_with: Callable[..., Params]
) -> None:
    def prepare(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        server.signal(signal.SIGSTOP)
        for step in range(100):
            tracker.metrics({"x": step}, step)

    begun = time.monotonic()
    try:
        run_step(prepare, Workspace(), params_with({"seed": 12}))
        seconds = time.monotonic() - begun
    finally:
        server.signal(signal.SIGCONT)
    assert seconds < 30
    sync_command()
    (run,) = runs_of(client, "params.seed = '12'")
    assert [point.value for point in client.get_metric_history(run.info.run_id, "x")] == list(range(100))


@pytest.mark.parametrize("answer_lost", [False, True])
def test_wherever_the_wire_is_cut_nothing_is_lost_and_nothing_is_there_twice(
    client: MlflowClient,
    server: MlflowServer,
    params_with: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
    answer_lost: bool,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    wire = Wire(server.address)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", wire.address)
    first = 1000 if answer_lost else 100
    # the first run of all makes the experiment, too
    run_step(train_classifier, Workspace(), params_with({"seed": first - 1}))
    wire.cut(None)
    run_step(train_classifier, Workspace(), params_with({"seed": first}))
    n_requests = wire.n_passed
    assert n_requests > 20
    (whole,) = runs_of(client, f"params.seed = '{first}' and tags.kind = 'step'")
    expected = content_of(client, whole)
    for cut in range(n_requests):
        seed = first + 1 + cut
        wire.cut(after=cut, answer_lost=answer_lost)
        run_step(train_classifier, Workspace(), params_with({"seed": seed}))
        wire.cut(None)
        assert len(waiting()) == 1, cut
        assert sync(), cut
        (run,) = runs_of(client, f"params.seed = '{seed}' and tags.kind = 'step'")
        assert content_of(client, run) == expected | {"params": expected["params"] | {"seed": str(seed)}}, cut
        models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
        assert [str(model.status) for model in models] == ["READY"], cut
    wire.close()
