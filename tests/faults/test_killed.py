"""Runs that are killed in mid-work, by DVC and by the flow: what comes out in the end is what would have come out."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
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


def test_a_run_killed_in_every_step_and_at_random_moments_ends_with_the_same_bytes(
    undisturbed: dict[str, str], tmp_path: Path
) -> None:
    workspace, moment = make_workspace(tmp_path / "workspace"), random.Random(0)
    n_killed = 0
    for step in STEPS:
        repro = start(workspace, "dvc", "repro")
        assert repro.stdout is not None
        # another step may come first: whichever is killed here is begun again
        for line in repro.stdout:
            if f"Running stage '{step}'" in line:
                time.sleep(moment.uniform(0.5, 5))
                break
        if repro.poll() is None:
            kill(repro)
            n_killed += 1
    for _ in range(N_KILLS_OF_FLOWS):
        # so that there is something to do: of all steps but the first
        (workspace / "data" / "validate" / "manifest.parquet").unlink(missing_ok=True)
        flow = start(workspace, sys.executable, "-m", "flows.pipeline", "--force")
        time.sleep(moment.uniform(3, 25))
        assert flow.poll() is None, flow.communicate()[0]
        kill(flow)
        n_killed += 1
    assert n_killed >= 20

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
    assert statuses["KILLED"] >= 5
