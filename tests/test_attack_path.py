"""The way of an attack's parameters through the modules, from the step to the written records."""

import shutil
import sys
from itertools import groupby
from pathlib import Path
from types import FrameType

import pytest

from tasks.attack import attack
from tasks.core.source import ROOT
from tasks.core.workspace import Workspace
from tasks.params import parse_params
from tasks.tracking import Tracker
from tests.conftest import set_small_effort, with_overrides
from tests.small_workspace import SMALL

pytestmark = pytest.mark.usefixtures("few_channels")

METHODS = {
    "attacks/gradient/pgd.py": "pgd",
    "attacks/sweep.py": "run_sweep",
    "attacks/apgd.py": "apgd",
    "attacks/fmn.py": "fmn",
    "attacks/square.py": "square",
}
RECORDS = "records/tables.py"
CALLERS_OF_GIVEN_FUNCTIONS = {"core/checkpoints.py", "attacks/batch.py"}
"""These call a function of the module that calls them, which gives the parameters to it."""


def modules_of_stack(frame: FrameType | None) -> tuple[str, ...]:
    """Modules of the package ``tasks`` from the first caller to a frame, each once for consecutive calls within it."""
    modules: list[str] = []
    while frame:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT):
            modules.append(path.relative_to(ROOT).as_posix())
        frame = frame.f_back
    given = (module for module in reversed(modules) if module not in CALLERS_OF_GIVEN_FUNCTIONS)
    return tuple(module for module, _ in groupby(given))


@pytest.fixture(scope="module")
def ways(small_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[tuple[str, ...]]]:
    """Ways from the step ``attack`` to each attack method, and to the writing of records, in one run."""
    functions = {**METHODS, RECORDS: "write_records"}
    found: dict[str, set[tuple[str, ...]]] = {module: set() for module in functions}
    codes = {str(ROOT / module): name for module, name in functions.items()}

    def trace(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and codes.get(frame.f_code.co_filename) == frame.f_code.co_name:
            way = modules_of_stack(frame)
            found[way[-1]].add(way)

    workspace = Workspace(tmp_path_factory.mktemp("traced"))
    shutil.copytree(small_workspace / "data", workspace.data)
    workspace.attack.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        set_small_effort(patch)
        params = parse_params(with_overrides(SMALL))
        sys.setprofile(trace)
        try:
            attack(workspace, params, Tracker())
        finally:
            sys.setprofile(None)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_an_attack_passes_at_most_eight_modules_from_the_step_to_the_records_and_none_twice(
    method: str, ways: dict[str, set[tuple[str, ...]]]
) -> None:
    assert ways[method]
    for way in ways[method]:
        assert way[0] == "attack.py"
        assert len(set(way)) == len(way), way
        # the records are written by a module on the way
        written = [each for each in ways[RECORDS] if each[:-1] == way[: len(each) - 1]]
        assert written, way
        assert all(len({*way, *each}) <= 8 for each in written), way
