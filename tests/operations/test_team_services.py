"""The commands of ``containers/compose.yaml`` as processes on loopback, without a container engine."""

import os
import shlex
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import psycopg2
import pytest
from mlflow import MlflowClient
from ruamel.yaml import YAML

from tests.conftest import ROOT
from tests.operations.servers import S3_KEYS, free_port, postgres, prefect_client, running, s3_server, wait_for
from tests.test_pipeline import run

pytestmark = pytest.mark.operations
COMPOSE = YAML(typ="safe").load(ROOT / "containers" / "compose.yaml")
LOGIN = "ct:secret"


def command_of(service: str, **replaced: str) -> list[str]:
    """Command of a service, with other hosts and ports."""
    command = COMPOSE["services"][service]["command"]
    words = shlex.split(command) if isinstance(command, str) else command
    for old, new in replaced.items():
        words = [word.replace(old, new) for word in words]
    binary = Path(sys.executable).parent / words[0]
    return [str(binary), *words[1:]] if binary.exists() else words


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """Address of a PostgreSQL with the databases of both servers, without the name of a database."""
    with postgres() as address:
        connection = psycopg2.connect(address)
        connection.autocommit = True
        connection.cursor().execute("CREATE DATABASE mlflow")
        connection.cursor().execute(COMPOSE["configs"]["prefect_database"]["content"])
        connection.close()
        yield address.removesuffix("/postgres")


def test_the_mlflow_server_keeps_runs_in_postgresql_and_artifacts_in_the_bucket(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, log = str(free_port()), tmp_path / "log"
    for name, value in S3_KEYS.items():
        monkeypatch.setenv(name, value)
    with s3_server(tmp_path) as s3:
        run(tmp_path, *command_of("bucket", **{"http://store:8333": s3}))
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", s3)
        hosts = {"postgresql://ct@postgres": database, "0.0.0.0": "127.0.0.1", "5000": port}
        with running(command_of("mlflow", **hosts), log) as process:
            wait_for(lambda: urlopen(f"http://127.0.0.1:{port}/health").status == 200, process, log)
            client = MlflowClient(f"http://127.0.0.1:{port}")
            recorded = client.create_run(client.create_experiment("lung")).info.run_id
            client.log_artifact(recorded, str(ROOT / "params.yaml"))
            assert [file.path for file in client.list_artifacts(recorded)] == ["params.yaml"]


def test_the_worker_deploys_every_flow_of_the_workspace_on_the_prefect_server(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, log, worker_log = str(free_port()), tmp_path / "log", tmp_path / "worker.log"
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    for name in ("prefect.yaml", "prefect.toml", "params.yaml"):
        shutil.copy(ROOT / name, workspace)
    for name in ("flows", "tasks"):
        shutil.copytree(ROOT / name, workspace / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    settings = COMPOSE["services"]["prefect"]["environment"] | {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"{database.replace('postgresql:', 'postgresql+asyncpg:')}/prefect",
        "PREFECT_SERVER_API_AUTH_STRING": LOGIN,
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with running(command_of("prefect", **{"0.0.0.0": "127.0.0.1", "4200": port}), log) as server:
        wait_for(lambda: socket.create_connection(("127.0.0.1", int(port))).close() is None, server, log)
        monkeypatch.chdir(workspace)
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", LOGIN)
        with running(command_of("worker"), worker_log) as worker:
            wait_for(lambda: "started!" in worker_log.read_text(), worker, worker_log)
        with prefect_client(int(port), LOGIN) as api:
            deployments = api.post("/deployments/filter", json={}).raise_for_status().json()
    assert {each["name"] for each in deployments} >= {"pipeline", "promote", "robustness-audit"}
    step = "prefect.deployments.steps.set_working_directory"
    assert {each["pull_steps"][0][step]["directory"] for each in deployments} == {str(workspace)}
