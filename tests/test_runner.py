"""How every step is run: what comes out where there is too little memory, and how its process ends."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tasks.core.workspace import Workspace
from tasks.params import Params
from tasks.runner import run_step
from tasks.tracking import Tracker
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")


def train_defence(workspace: Workspace, params: Params, tracker: Tracker, defence: str) -> None:
    torch.empty(1 << 55, dtype=torch.uint8)


def attack(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    bytearray(1 << 62)


def evaluate(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    raise RuntimeError("another matter")


def test_too_little_memory_is_told_with_the_parameter_to_lower(params_with: Callable[..., Params]) -> None:
    with pytest.raises(
        MemoryError, match=r"out of memory \(.*allocate.*\); lower defences\.jpeg\.training\.batch_size"
    ):
        run_step(train_defence, Workspace(), params_with(), defence="jpeg")
    with pytest.raises(MemoryError, match=r"lower attack\.batch_size in params\.yaml"):
        run_step(attack, Workspace(), params_with())


def test_other_errors_stay_what_they_are(params_with: Callable[..., Params]) -> None:
    with pytest.raises(RuntimeError, match="another matter"):
        run_step(evaluate, Workspace(), params_with())
    assert Workspace().evaluate.is_dir()


END = """
import atexit, threading, time
from tasks.runner import end

def late():
    time.sleep(0.2)
    print("waited for")

atexit.register(print, "handled")
threading.Thread(target=late).start()
print("said")
end()
"""


def test_a_process_ends_after_its_threads_and_exit_handlers_and_with_all_that_it_has_said() -> None:
    ended = subprocess.run([sys.executable, "-c", END], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("said\nwaited for\nhandled\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, the disk that is always full")
def test_a_process_that_cannot_say_all_fails() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        ended = subprocess.run([sys.executable, "-c", END], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, check=False)
    assert ended.returncode != 0
    assert b"No space left" in ended.stderr
