"""The attack on a target gives the same bytes whoever does its work, also when a worker is killed in the middle."""

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from flows.spread import Workers, finish_elsewhere
from tasks.attack import attack
from tasks.attacks.lanes import count_lanes
from tasks.core.workspace import Workspace
from tasks.params import Params
from tasks.runner import run_step
from tests.small_workspace import SMALL

N_SHARDS = 1 + 2 * 3 + 2 * 2 + 2
"""A look; two parts by three searches; two batches by two attacks; probes of two parts."""


@pytest.fixture(autouse=True)
def tracked_here(monkeypatch: pytest.MonkeyPatch, workspace: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace / 'mlflow.db'}")


@pytest.fixture
def params(params_with: Callable[..., Params]) -> Params:
    return params_with(SMALL)


def outputs() -> dict[str, bytes]:
    return {
        file.relative_to(Workspace().attack).as_posix(): file.read_bytes()
        for file in sorted(Workspace().attack.rglob("*"))
        if file.is_file()
    }


def shards() -> set[str]:
    return {shard.name for shard in Workspace().checkpoint_folder("attack").iterdir() if len(shard.name) == 32}


def kill_first_worker(killed: list[int]) -> None:
    """Wait until a process other than this one is at a part, and kill it."""
    while not killed:
        for partial in Workspace().checkpoint_folder("attack").glob("*.partial"):
            process = int(partial.name.split("-")[-2])
            if process != os.getpid():
                os.kill(process, signal.SIGKILL)
                killed.append(process)
                return
        time.sleep(0.005)


@pytest.mark.parametrize(
    "runner", ["threads", "dask, a worker is killed", pytest.param("ray", marks=pytest.mark.operations)]
)
def test_whoever_does_the_work_the_same_bytes_come_out(
    runner: str, workspace: Path, params: Params, server: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="tasks.core.checkpoints")
    run_step(attack, Workspace(), params)
    alone = outputs()
    shutil.rmtree(Workspace().attack)

    killed: list[int] = []
    kind, _, fault = runner.partition(", ")
    if fault:
        Workspace().checkpoint_folder("attack").mkdir(parents=True)
        threading.Thread(target=kill_first_worker, args=(killed,), daemon=True).start()
    finish_elsewhere(Workspace(), "undefended", params, Workers.model_validate({"runner": kind, "n_workers": 2}))
    assert bool(killed) == bool(fault)
    assert len(shards()) == N_SHARDS

    caplog.clear()
    run_step(attack, Workspace(), params)
    assert outputs() == alone
    assert sum("kept from a run before" in line for line in caplog.messages) == N_SHARDS


def test_lanes_cover_every_shard(workspace: Path, params: Params) -> None:
    # a part's three searches are one lane, and the look is none
    assert count_lanes(Workspace(), params, "undefended") == N_SHARDS - 1 - 2 * 2


@pytest.mark.parametrize("wrong", [{"runner": "spark"}, {"n_workers": 0}, {"n_workers": 1.5}])
def test_workers_that_do_not_exist_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Workers.model_validate(wrong)
