"""A small DVC pipeline of two steps; the second reads the output of the first."""

import shutil
from pathlib import Path

from tests.conftest import ROOT

STAGES = """stages:
  first: {cmd: run first, params: [seed], outs: [data/first]}
  second: {cmd: run second, deps: [data/first], outs: [data/second]}
"""


def make_two_steps(folder: Path, more_stages: str = "") -> None:
    """Write parameters, stages and DVC's configuration. No step has run."""
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "dvc.yaml").write_text(STAGES + more_stages)
    init_dvc_without_git(folder)


def init_dvc_without_git(folder: Path) -> None:
    """Do the same as ``dvc init --no-scm``, which takes seconds."""
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = True\n")


def write_output(step: str, text: str) -> None:
    """Write the output of a step in the current folder, in place of an earlier one."""
    folder = Path("data") / step.replace("@", "/")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "out.txt").write_text(text)


def read_output(step: str) -> str:
    """The output of a step in the current folder."""
    return (Path("data") / step.replace("@", "/") / "out.txt").read_text()
