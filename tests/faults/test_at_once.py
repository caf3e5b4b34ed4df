"""Several processes at the same time in one workspace, or with one tracking store."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tasks.tracking import EXPERIMENT
from tests.conftest import ROOT
from tests.faults.test_killed import start
from tests.test_pipeline import digests, make_workspace, run

pytestmark = pytest.mark.faults

REPRO = ("dvc", "repro")
FLOW = (sys.executable, "-m", "flows.pipeline")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of the outputs of a run without another run at the same time."""
    workspace = make_workspace(tmp_path_factory.mktemp("alone") / "workspace")
    run(workspace, *REPRO)
    return digests(workspace)


@pytest.mark.parametrize(
    ("first", "second"), [(REPRO, REPRO), (FLOW, FLOW), (FLOW, REPRO)], ids=["two repros", "two flows", "both"]
)
def test_two_runs_in_one_workspace_take_turns_or_dvc_refuses_one(
    first: tuple[str, ...], second: tuple[str, ...], expected: dict[str, str], tmp_path: Path
) -> None:
    workspace = make_workspace(tmp_path / "workspace")
    both = [start(workspace, *command) for command in (first, second)]
    printed = [process.communicate()[0] for process in both]
    codes = [process.returncode for process in both]
    assert 0 in codes, printed
    for command, code, text in zip((first, second), codes, printed, strict=True):
        # a flow waits for the other run; DVC does not wait and prints a message
        assert code == 0 or (command == REPRO and ("lock" in text or "is busy" in text)), text
    run(workspace, *REPRO)
    assert digests(workspace) == expected
    assert "up to date" in run(workspace, "dvc", "status")


SCRIPT = """
import sys
from pathlib import Path
from tasks.core.workspace import Workspace
from tasks.runner import run_step
from tests.conftest import parse_params, with_overrides

def prepare(workspace, params, tracker):
    for step in range(100):
        tracker.metrics({f"data/{sys.argv[1]}": step}, step)
    for number in range(10):
        tracker.curve(f"curve {number}", {"number": str(number)}, [(0, {"robust/accuracy": 0.5})])

run_step(prepare, Workspace(Path(sys.argv[1])), parse_params(with_overrides({})))
"""


def test_four_processes_log_to_one_sqlite_store_without_loss(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    environment = os.environ | {"MLFLOW_TRACKING_URI": store, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT]
    processes = [subprocess.Popen([*command, name], cwd=tmp_path, env=environment) for name in "abcd"]
    assert [process.wait() for process in processes] == [0, 0, 0, 0]
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'step'")
    assert {run.info.status for run in runs} == {"FINISHED"}
    for each in runs:
        (metric,) = each.data.metrics
        assert [point.step for point in client.get_metric_history(each.info.run_id, metric)] == list(range(100))
    assert {metric for each in runs for metric in each.data.metrics} == {f"data/{name}" for name in "abcd"}
    curves = client.search_runs([experiment.experiment_id], "tags.kind = 'curve'", max_results=1000)
    assert len(curves) == 40
    assert {curve.data.params["seed"] for curve in curves} == {"0"}
