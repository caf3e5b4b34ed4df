"""Runs of DVC and of the flow that are killed: the next runs write the bytes of an undisturbed run."""

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
from tests.test_pipeline import STEPS, digests, environment_of_commands, make_workspace, run

pytestmark = pytest.mark.faults

N_KILLS_OF_FLOWS = 10


def start(workspace: Path, *command: str) -> subprocess.Popen[str]:
    """Start a command in the environment of :func:`run`, in a process group of its own."""
    return subprocess.Popen(
        command,
        cwd=workspace,
        env=environment_of_commands() | {"PYTHONUNBUFFERED": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a process and its children."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def open_runs(workspace: Path) -> set[str]:
    """Runs of steps that run, or were killed since the last one began; read with SQL, since MLflow is too slow."""
    store = workspace / "mlflow.db"
    # the file has this name only once its tables exist
    if not store.exists():
        return set()
    with closing(sqlite3.connect(store, timeout=60)) as connection:
        return {key for (key,) in connection.execute("SELECT run_uuid FROM runs WHERE status = 'RUNNING'")}


def wait_for_a_step(workspace: Path, process: subprocess.Popen[str], known: set[str]) -> None:
    """Wait until a step has opened its run, which takes seconds, and longer on a busy machine."""
    while open_runs(workspace) <= known:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)


def test_runs_killed_in_every_step_and_at_random_times_end_with_the_same_bytes(
    reproduced: Path, tmp_path: Path
) -> None:
    workspace, rng = make_workspace(tmp_path / "workspace"), random.Random(0)
    left = set(STEPS)
    while left:
        known = open_runs(workspace)
        # as make repro does: the kill may have left a half-written dvc.lock
        start(workspace, sys.executable, "-m", "flows.verify").communicate()
        repro = start(workspace, "dvc", "repro")
        assert repro.stdout is not None
        printed, step = "", None
        while step not in left:
            line = repro.stdout.readline()
            assert line, f"steps finished before the kill: {left}\n{printed}"
            printed += line
            step = match[1] if (match := re.search(r"Running stage '(.+)'", line)) else None
        wait_for_a_step(workspace, repro, known)
        time.sleep(rng.uniform(0, 2))
        kill(repro)
        left.remove(step)
    for number in range(N_KILLS_OF_FLOWS):
        known = open_runs(workspace)
        flow = start(workspace, sys.executable, "-m", "flows.pipeline", "--force")
        if number % 2:
            wait_for_a_step(workspace, flow, known)
        time.sleep(rng.uniform(0, 20))
        assert flow.poll() is None, flow.communicate()[0]
        kill(flow)

    run(workspace, "dvc", "repro")
    assert digests(workspace) == digests(reproduced)
    assert "up to date" in run(workspace, "dvc", "status")

    # a step that begins marks the killed runs; if DVC restored all outputs, no step has begun since the last kill
    run(workspace, sys.executable, "-m", "tasks.acquire")
    client = MlflowClient(tracking_uri=f"sqlite:///{workspace / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=5000)
    statuses = Counter(each.info.status for each in runs)
    assert set(statuses) == {"FINISHED", "KILLED"}
    # in the other cases the step had finished before the kill, or the flow was still starting
    assert statuses["KILLED"] >= 5
