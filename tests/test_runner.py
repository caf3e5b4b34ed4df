"""How every step is run: what comes out where there is too little memory."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tasks import paths
from tasks.params import Params
from tasks.runner import run_step
from tasks.tracking import Tracker


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")


def train_defence(params: Params, tracker: Tracker, defence: str) -> None:
    torch.empty(1 << 55, dtype=torch.uint8)


def attack(params: Params, tracker: Tracker) -> None:
    bytearray(1 << 62)


def evaluate(params: Params, tracker: Tracker) -> None:
    raise RuntimeError("another matter")


def test_too_little_memory_is_told_with_the_parameter_to_lower(params_with: Callable[..., Params]) -> None:
    with pytest.raises(
        MemoryError, match=r"out of memory \(.*allocate.*\); lower defences\.jpeg\.training\.batch_size"
    ):
        run_step(train_defence, params_with(), defence="jpeg")
    with pytest.raises(MemoryError, match=r"lower attack\.batch_size in params\.yaml"):
        run_step(attack, params_with())


def test_other_errors_stay_what_they_are(params_with: Callable[..., Params]) -> None:
    with pytest.raises(RuntimeError, match="another matter"):
        run_step(evaluate, params_with())
    assert paths.EVALUATE.is_dir()
