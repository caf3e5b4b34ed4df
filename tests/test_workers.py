"""Workers that share an attack give the same bytes as the step alone, also if one of them is killed."""

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable

import pytest
from pydantic import ValidationError

from flows.workers import Workers, compute_parts
from tasks.attack import attack
from tasks.core.workspace import Workspace
from tasks.params import Params
from tasks.runner import run_step
from tests.small_workspace import SMALL


@pytest.fixture(autouse=True)
def small_effort() -> None:
    """Processes of a cluster use the real effort, so this process must use it too."""


@pytest.fixture
def params(params_with: Callable[..., Params]) -> Params:
    return params_with(SMALL | {"attack.eps": [4]})


def outputs(workspace: Workspace) -> dict[str, bytes]:
    files = [file for file in sorted(workspace.attack.rglob("*")) if file.is_file()]
    return {file.relative_to(workspace.attack).as_posix(): file.read_bytes() for file in files}


def checkpoints(workspace: Workspace) -> set[str]:
    return {path.name for path in workspace.checkpoint_folder("attack").iterdir() if not path.suffix}


def kill_first_worker(workspace: Workspace, killed: list[int]) -> None:
    """Kill the first other process that computes a part."""
    while not killed:
        for partial in workspace.checkpoint_folder("attack").glob("*.partial"):
            process = int(partial.name.split("-")[-2])
            if process != os.getpid():
                os.kill(process, signal.SIGKILL)
                killed.append(process)
                return
        time.sleep(0.005)


@pytest.mark.usefixtures("own_store")
@pytest.mark.parametrize(
    ("runner", "with_kill"),
    [("threads", False), ("dask", True), pytest.param("ray", False, marks=pytest.mark.operations)],
)
def test_workers_give_the_same_bytes_as_the_step_alone(
    runner: str, with_kill: bool, workspace: Workspace, params: Params, server: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="tasks.core.checkpoints")
    run_step(attack, workspace, params)
    alone = outputs(workspace)
    shutil.rmtree(workspace.attack)

    killed: list[int] = []
    if with_kill:
        workspace.checkpoint_folder("attack").mkdir(parents=True)
        threading.Thread(target=kill_first_worker, args=(workspace, killed), daemon=True).start()
    compute_parts(workspace, "undefended", params, Workers.model_validate({"runner": runner, "n_workers": 2}))
    assert bool(killed) == with_kill
    n_checkpoints = len(checkpoints(workspace))

    # the step finds all its parts
    caplog.clear()
    run_step(attack, workspace, params)
    assert outputs(workspace) == alone
    assert len(caplog.messages) == n_checkpoints > 1
    assert all("resumed from a checkpoint" in line for line in caplog.messages)


@pytest.mark.parametrize("wrong", [{"runner": "spark"}, {"n_workers": 0}, {"n_workers": 1.5}])
def test_invalid_workers_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Workers.model_validate(wrong)
