"""Several at once in one workspace, or at one tracking store: they take turns, and nothing is lost."""

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
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of what every step makes if one run is alone."""
    workspace = make_workspace(tmp_path_factory.mktemp("alone") / "workspace")
    run(workspace, *REPRO)
    return digests(workspace)


@pytest.mark.parametrize(
    ("first", "second"), [(REPRO, REPRO), (FLOW, FLOW), (FLOW, REPRO)], ids=["two repros", "two flows", "both"]
)
def test_of_two_runs_in_one_workspace_one_works_and_the_other_waits_or_says_so(
    first: tuple[str, ...], second: tuple[str, ...], alone: dict[str, str], tmp_path: Path
) -> None:
    workspace = make_workspace(tmp_path / "workspace")
    both = [start(workspace, *command) for command in (first, second)]
    printed = [process.communicate()[0] for process in both]
    codes = [process.returncode for process in both]
    assert 0 in codes, printed
    for command, code, text in zip((first, second), codes, printed, strict=True):
        # DVC does not wait, and says so in words of its own; the flow does
        assert code == 0 or (command == REPRO and ("lock" in text or "is busy" in text)), text
    run(workspace, *REPRO)
    assert digests(workspace) == alone
    assert "up to date" in run(workspace, "dvc", "status")


def test_four_processes_that_log_to_one_sqlite_store_lose_nothing(tmp_path: Path) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tasks.runner import run_step
from tests.conftest import parse_params, with_overrides

def prepare(workspace: Workspace, params, tracker):
    for step in range(100):
        tracker.metrics({{f"data/{{sys.argv[1]}}": step}}, step)
    for number in range(10):
        tracker.curve(f"curve {{number}}", {{"number": str(number)}}, [(0, {{"robust/accuracy": 0.5}})])

run_step(prepare, Workspace(), parse_params(with_overrides({{}})))
"""
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    processes = []
    for name in "abcd":
        (tmp_path / name / "data").mkdir(parents=True)
        command = [sys.executable, "-c", script, name]
        environment = {"MLFLOW_TRACKING_URI": store}
        processes.append(subprocess.Popen(command, cwd=tmp_path / name, env=os.environ | environment))
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
    assert len(client.search_runs([experiment.experiment_id], "tags.kind = 'curve'", max_results=1000)) == 40
