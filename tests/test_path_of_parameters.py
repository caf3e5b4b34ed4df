"""The path of the parameters of one attack, from the step to the written record."""

import inspect
import shutil
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tasks.attack import attack
from tasks.attacks.attack_run import AttackRun
from tasks.attacks.attacked import Attacked
from tasks.core.workspace import Workspace
from tasks.params import Attack, Params, Pgd
from tasks.tracking import Tracker
from tests.small_workspace import SMALL

HOLDERS = (Params, Attack, Pgd, AttackRun, Attacked)
"""Types of the objects in which the parameters of an attack are passed on."""
ENDS = {"pgd", "build_records", "write_records"}
"""Functions at the end of the path: the method, the table of records, and the file."""


def modules_that_pass_the_parameters(frame: FrameType | None) -> list[str]:
    """Modules of ``tasks`` in the call stack that hold the parameters, from the step to the innermost call."""
    path: list[str] = []
    while frame:
        name = str(frame.f_globals.get("__name__"))
        if name.startswith("tasks.") and any(isinstance(value, HOLDERS) for value in frame.f_locals.values()):
            path.append(name)
        frame = frame.f_back
    return [name for name, _ in groupby(reversed(path))]


def test_the_parameters_of_an_attack_pass_at_most_8_modules_and_none_twice(
    small_workspace: Path, tmp_path: Path, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small_workspace / "data", tmp_path / "data")
    workspace = Workspace(tmp_path)
    workspace.attack.mkdir()
    paths: dict[str, set[tuple[str, ...]]] = {name: set() for name in ENDS}

    def recording(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            paths[name].add((*modules_that_pass_the_parameters(inspect.currentframe()), function.__module__))
            return function(*args, **kwargs)

        return call

    for module in [module for name, module in sys.modules.items() if name.startswith("tasks.")]:
        for name in ENDS & set(vars(module)):
            if callable(function := getattr(module, name)):
                monkeypatch.setattr(module, name, recording(name, function))
    few = dict.fromkeys(("max_images", "max_art_reference_images", "max_black_box_images"), 3)
    settings = {"attack.attacks": ["pgd"]} | {f"attack.{name}": n for name, n in few.items()}
    attack(workspace, params_with(SMALL | settings), Tracker())
    assert all(paths.values())
    for path in set().union(*paths.values()):
        assert path[0] == "tasks.attack"
        assert len(set(path)) == len(path), path
    assert len(set().union(*(path for some in paths.values() for path in some))) <= 8
