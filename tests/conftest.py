"""Shared fixtures: the repository's parameters with overrides, one torch thread, no telemetry."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.pop("MLFLOW_EXPERIMENT_NAME", None)

import copy
import fcntl
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from ruamel.yaml import YAML

from tasks.core.workspace import Workspace
from tasks.params import Params, parse_params

LONGEST = ["test_pipeline.py", "test_pipeline_flow.py", "test_own_audit.py"]
LONGEST += ["test_attack.py", "test_report.py", "test_audit.py"]
LONGEST += ["test_workers.py", "test_labelling.py", "test_checkpoints.py", "test_train_defence.py", "test_analyze.py"]
LONGEST += ["test_serving.py", "test_flow.py", "test_active_learning.py", "test_page_in_browser.py"]
"""Files that start first: on several test processes, the longest file must not be the last to start."""

# an example has no time limit: a machine may be busy with other things
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

ROOT = Path(__file__).resolve().parent.parent
VALUES = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; within a file tests keep their order."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def with_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The repository's params.yaml as nested dicts, with values replaced by dotted key."""
    values: dict[str, Any] = copy.deepcopy(VALUES)
    for dotted, value in overrides.items():
        *sections, key = dotted.split(".")
        section = values
        for name in sections:
            section = section[name]
        section[key] = value
    return values


@pytest.fixture(autouse=True)
def small_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps and queries at every effort; the real numbers are in :data:`tasks.attacks.effort.STAGES`."""
    set_small_effort(monkeypatch)


def set_small_effort(patch: pytest.MonkeyPatch, n_eot_draws: int = 2) -> None:
    """Set few steps and queries at every effort, and few draws for gradients of random targets."""
    from tasks.attacks import effort
    from tasks.defences import randomness

    patch.setattr(randomness, "MIN_EOT_DRAWS", n_eot_draws)
    quick = effort.Stage(
        "first", sweep_steps=4, apgd_steps=3, apgd_restarts=1, fmn_steps=3, fmn_restarts=1, square_queries=10
    )
    second = effort.Stage("second", apgd_steps=4, apgd_restarts=1, square_queries=20, hop_skip_jump_queries=60)
    patch.setitem(effort.EFFORTS, "quick", (quick,))
    patch.setitem(effort.EFFORTS, "standard", (quick, second))


@pytest.fixture(autouse=True, scope="module")
def code_at_the_start_of_the_module() -> Iterator[None]:
    """An edit of the code during the tests fails only the steps of the test file that runs at that moment."""
    from tasks.core import source

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "AT_START", source.digests_of_files(source.ROOT, source.SUFFIXES))
        yield


@pytest.fixture(scope="module")
def few_channels() -> Iterator[None]:
    """The architecture ``cnn`` with few channels, for modules whose steps all run in this process: twice as fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.models.classifier.CNN_WIDTHS", (8, 8, 16, 16))
        yield


@pytest.fixture(scope="module")
def small_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prepared images of three classes and two small networks trained on them; not to be written to."""
    from tasks.models.classifier import CNN_WIDTHS
    from tests.small_workspace import make_small_workspace

    folder = tmp_path_factory.getbasetemp() / f"small-{CNN_WIDTHS[0]}"
    if not folder.exists():
        make_small_workspace(folder)
    return folder


@pytest.fixture
def workspace(small_workspace: Path, tmp_path: Path) -> Workspace:
    """A copy of the small workspace, which is not the current folder."""
    shutil.copytree(small_workspace / "data", tmp_path / "data")
    return Workspace(tmp_path)


@pytest.fixture
def small_folder(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the small workspace as the current folder."""
    monkeypatch.chdir(workspace.root)
    return workspace.root


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that all test processes share. The first process that needs it makes it; the others wait.

    Args:
        factory: of the folders of the test process.
        name: of the folder.
        make: creates the folder and fills it.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, complete = base / name, base / f"{name}.complete"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            complete.touch()
    return folder


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an SQLite store without runs, for copies: MLflow takes seconds to create its tables."""

    def make(folder: Path) -> None:
        from mlflow import MlflowClient

        folder.mkdir()
        MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments(max_results=1)

    return made_once(tmp_path_factory, "empty_store", make) / "mlflow.db"


@pytest.fixture
def own_store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of an empty SQLite store of the test, to which its runs are tracked."""
    address = f"sqlite:///{shutil.copy(empty_store, tmp_path)}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    return address


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy workspace that ``dvc repro`` has brought up to date; tests must not change its parameters or outputs."""
    from tests.test_pipeline import make_workspace, run

    return made_once(tmp_path_factory, "reproduced", lambda folder: run(make_workspace(folder), "dvc", "repro"))


@pytest.fixture
def params_with() -> Callable[..., Params]:
    """``params_with({"attack.eps": [1, 2]})``: typed parameters of the repository with overrides."""
    return lambda overrides=None: parse_params(with_overrides(overrides or {}))


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Address of a Prefect server for all tests of this process."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=300):
        yield str(PREFECT_API_URL.value())
