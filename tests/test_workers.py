"""Steps on workers give the same bytes as alone, also if a worker is killed."""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from prefect import flow, task
from pydantic import ValidationError

from flows.workers import WorkerPool, Workers, load_step, worker_pool
from tasks.core.workspace import Workspace
from tasks.params import parse_params
from tasks.runner import run_step
from tests.conftest import with_overrides
from tests.small_workspace import SMALL


@pytest.fixture(autouse=True)
def small_effort() -> None:
    """Processes of a cluster use the real effort, so this process must use it too."""


FEW = {f"attack.max_{kind}": 4 for kind in ("black_box_images", "validation_images", "art_reference_images")}
PARAMS = parse_params(
    with_overrides(SMALL | FEW | {"attack.eps": [4], "attack.max_images": 8, "train_autoencoder.epochs": 1})
)
STEPS = ("train_autoencoder", "train_defence@autoencoder", "attack", "attack_defence@autoencoder")


def folders(workspace: Workspace) -> list[Path]:
    return [workspace.data / step.replace("@", "/") for step in STEPS]


def outputs(workspace: Workspace) -> dict[str, bytes]:
    files = [file for folder in folders(workspace) for file in folder.rglob("*") if file.is_file()]
    return {file.relative_to(workspace.data).as_posix(): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def alone(small_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Outputs of the steps without workers."""
    workspace = Workspace(tmp_path_factory.mktemp("alone"))
    shutil.copytree(small_workspace / "data", workspace.data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "mlflow", None)
        for step in STEPS:
            name, _, defence = step.partition("@")
            run_step(load_step(name), workspace, PARAMS, defence=defence or None)
    return outputs(workspace)


class Watch:
    """Records which processes and threads compute parts, and kills the first one if asked to."""

    def __init__(self, workspace: Workspace, with_kill: bool) -> None:
        self.seen: set[tuple[int, int]] = set()
        self.killed: list[int] = [] if with_kill else [0]
        self._folder, self._ended = workspace.root / "checkpoints", threading.Event()

    def __enter__(self) -> "Watch":
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.005):
            # unlike Path.rglob, os.walk allows folders to disappear
            partials = [Path(name) for _, names, _ in os.walk(self._folder) for name in names if ".partial" in name]
            for partial in partials:
                _, process, thread = partial.stem.rsplit("-", 2)
                self.seen.add((int(process), int(thread)))
                if not self.killed:
                    self.killed.append(int(process))
                    os.kill(int(process), signal.SIGKILL)


@flow(validate_parameters=False)
def run_on_workers(workers: Workers, workspace: Workspace, steps: Sequence[str]) -> None:
    """Run steps as the pipeline does: each from a task that has a parameter which cannot be pickled."""

    @task
    def run(pool: WorkerPool | None, step: str) -> None:
        assert pool is not None
        pool.run(step, workspace, PARAMS)

    with worker_pool(workers) as pool:
        for step in steps:
            run.submit(pool, step).result()


@pytest.mark.usefixtures("own_store")
@pytest.mark.parametrize(
    ("runner", "with_kill"),
    [("threads", False), ("dask", True), pytest.param("ray", False, marks=pytest.mark.operations)],
)
def test_steps_on_the_workers_of_one_cluster_give_the_same_bytes_as_alone_and_a_failed_step_ends_the_cluster(
    runner: str, with_kill: bool, small_folder: Path, alone: dict[str, bytes], server: str
) -> None:
    workspace = Workspace()
    workers = Workers.model_validate({"runner": runner, "n_workers": 2})
    with Watch(workspace, with_kill) as watch, pytest.raises(FileNotFoundError, match="unknown"):
        run_on_workers(workers, workspace, (*STEPS, "attack_defence@unknown"))
    assert outputs(workspace) == alone
    if runner == "threads":
        assert len(watch.seen) == 2
        return
    # this process computed nothing, and no step had a cluster of its own
    processes = {process for process, _ in watch.seen}
    assert os.getpid() not in processes
    # Ray may replace idle processes, and ends them a moment after the cluster
    assert len(processes) == 2 + with_kill or runner == "ray"
    deadline = time.monotonic() + 30
    while any(map(psutil.pid_exists, processes)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("wrong", [{"runner": "spark"}, {"n_workers": 0}, {"n_workers": 1.5}])
def test_invalid_workers_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Workers.model_validate(wrong)
