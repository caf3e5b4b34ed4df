"""A small workspace of DVC: two steps, the second of which reads what the first wrote."""

import shutil
from pathlib import Path

from tests.conftest import ROOT

STAGES = """stages:
  first: {cmd: run first, params: [seed], outs: [data/first]}
  second: {cmd: run second, deps: [data/first], outs: [data/second]}
"""


def make_two_steps(folder: Path, more_stages: str = "") -> None:
    """Write parameters, stages and DVC's configuration; nothing has run."""
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "dvc.yaml").write_text(STAGES + more_stages)
    # what dvc init --no-scm makes, without its second
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = True\n")
