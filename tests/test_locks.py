"""Locks: two runs never write the same folder, and none reads a folder that another one writes."""

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tasks.core.locks import locked
from tasks.core.workspace import Workspace
from tasks.params import Params
from tasks.runner import run_step
from tasks.step_inputs import step_lock
from tasks.tracking import Tracker
from tests.conftest import ROOT


def starts_within(seconds: float, lock: Callable[[], AbstractContextManager[object]]) -> bool:
    """Return whether a lock is set within a time. It is released at once."""
    started = threading.Event()

    def take() -> None:
        with lock():
            started.set()

    threading.Thread(target=take, daemon=True).start()
    return started.wait(seconds)


def test_readers_share_and_a_writer_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with locked(tmp_path, reads=["prepare"]):
        assert starts_within(10, lambda: locked(tmp_path, ["attack"], ["prepare"]))
        assert not starts_within(0.3, lambda: locked(tmp_path, ["prepare"]))
        assert caplog.messages == ["Waiting: another run uses prepare"]
    assert starts_within(10, lambda: locked(tmp_path, ["prepare"]))


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = "from pathlib import Path; from tasks.core.locks import locked; import time\n"
    code += f"with locked(Path({str(tmp_path)!r}), ['attack']): print(flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert not starts_within(0.3, lambda: locked(tmp_path, ["attack"]))
        process.kill()
    assert starts_within(10, lambda: locked(tmp_path, ["attack"]))


def test_a_step_waits_for_the_steps_that_read_its_output(tmp_path: Path, params_with: Callable[..., Params]) -> None:
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    workspace, params = Workspace(tmp_path), params_with({"selected_defences": ["autoencoder", "jpeg"]})
    for running, waits, runs in (
        ("attack", "prepare", "active_learning"),
        ("evaluate", "train_defence@jpeg", "analyze"),
        ("attack_defence@jpeg", "train_defence@jpeg", "attack_defence@autoencoder"),
    ):
        with step_lock(workspace, running, params):
            assert not starts_within(0.3, lambda name=waits: step_lock(workspace, name, params))
            assert starts_within(10, lambda name=runs: step_lock(workspace, name, params))


def test_two_writers_of_the_list_of_configurations_take_turns(tmp_path: Path) -> None:
    from flows.configurations import collect

    with locked(Workspace(tmp_path).locks, ["evaluate"]):
        collecting = threading.Thread(target=collect, args=(Workspace(tmp_path), []))
        collecting.start()
        collecting.join(0.3)
        assert collecting.is_alive()
    collecting.join(10)
    assert not collecting.is_alive()


def test_two_runs_of_a_step_take_turns(
    tmp_path: Path, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    # without mlflow the runner does not track
    monkeypatch.setitem(sys.modules, "mlflow", None)
    workspace, found = Workspace(tmp_path), []

    def prepare(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        (workspace.prepare / "half").touch()
        time.sleep(0.3)
        found.append([path.name for path in workspace.prepare.iterdir()])

    threads = [threading.Thread(target=run_step, args=(prepare, workspace, params_with())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [["half"]] * 2
