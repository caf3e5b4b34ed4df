"""Runs that are killed in mid-work, by DVC and by the flow: what comes out in the end is what would have come out."""

import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tasks.tracking import EXPERIMENT
from tests.test_pipeline import STEPS, digests, make_workspace, run

pytestmark = pytest.mark.faults

N_KILLS_OF_FLOWS = 10


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of what every step makes if nothing happens."""
    workspace = make_workspace(tmp_path_factory.mktemp("undisturbed") / "workspace")
    run(workspace, "dvc", "repro")
    return digests(workspace)


def start(workspace: Path, *command: str) -> subprocess.Popen[str]:
    """Start a command as :func:`run` does, in a process group of its own."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_T", "PREFECT_API"))
    }
    environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}", "OMP_NUM_THREADS": "1"}
    environment["PYTHONUNBUFFERED"] = "1"
    return subprocess.Popen(
        command,
        cwd=workspace,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a process and all that it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def open_runs(workspace: Path) -> set[str]:
    """Runs of steps that run, or were killed since the last one began; read past MLflow, which takes too long."""
    store = workspace / "mlflow.db"
    # it has this name once its tables are there
    if not store.exists():
        return set()
    with closing(sqlite3.connect(store, timeout=60)) as connection:
        return {key for (key,) in connection.execute("SELECT run_uuid FROM runs WHERE status = 'RUNNING'")}


def wait_for_a_step(workspace: Path, process: subprocess.Popen[str], known: set[str]) -> None:
    """Wait until a step has opened its run: starting takes seconds or, on a busy machine, many."""
    while open_runs(workspace) <= known:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)


def test_a_run_killed_in_every_step_and_at_random_moments_ends_with_the_same_bytes(
    undisturbed: dict[str, str], tmp_path: Path
) -> None:
    workspace, moment = make_workspace(tmp_path / "workspace"), random.Random(0)
    left = set(STEPS)
    while left:
        known = open_runs(workspace)
        # as make repro does: DVC may have been killed as it wrote its lock
        start(workspace, sys.executable, "-m", "flows.verify").communicate()
        repro = start(workspace, "dvc", "repro")
        assert repro.stdout is not None
        printed, step = "", None
        while step not in left:
            line = repro.stdout.readline()
            assert line, f"{left} are through before they could be killed:\n{printed}"
            printed += line
            step = match[1] if (match := re.search(r"Running stage '(.+)'", line)) else None
        wait_for_a_step(workspace, repro, known)
        time.sleep(moment.uniform(0, 2))
        kill(repro)
        left.remove(step)
    for number in range(N_KILLS_OF_FLOWS):
        known = open_runs(workspace)
        flow = start(workspace, sys.executable, "-m", "flows.pipeline", "--force")
        if number % 2:
            wait_for_a_step(workspace, flow, known)
        time.sleep(moment.uniform(0, 20))
        assert flow.poll() is None, flow.communicate()[0]
        kill(flow)

    run(workspace, "dvc", "repro")
    assert digests(workspace) == undisturbed
    assert "up to date" in run(workspace, "dvc", "status")

    # where all came out of DVC's cache, no step has begun since the last kill
    run(workspace, sys.executable, "-m", "tasks.acquire")
    client = MlflowClient(tracking_uri=f"sqlite:///{workspace / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=5000)
    statuses = Counter(each.info.status for each in runs)
    assert set(statuses) == {"FINISHED", "KILLED"}
    # the others were through before the kill, or the flow was starting
    assert statuses["KILLED"] >= 5
