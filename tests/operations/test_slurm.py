"""The script of the Slurm page, with a stand-in for ``sbatch`` and ``scancel`` that runs a job on this machine."""

import os
import re
import shutil
import stat
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from tests.test_pipeline import run, write_params

pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
pytestmark = pytest.mark.operations

SBATCH = """#!/bin/sh
for script; do :; done
sh "$script" > slurm-logs/job.log 2>&1 &
echo $! >> jobs
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/sh
kill "$@" 2>/dev/null
"""


def test_the_documented_script_runs_steps_in_jobs_and_cancels_the_jobs_at_its_end(
    reproduced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, commands = tmp_path / "workspace", tmp_path / "bin"
    shutil.copytree(reproduced, folder)
    write_params(folder, {"active_learning.downsampling_factor": 4})
    commands.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (commands / name).write_text(text)
        (commands / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    page = (ROOT / "docs" / "how-to" / "slurm.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for documented, here in (("N_JOBS = 4", "N_JOBS = 1"), ('"ib0"', '"lo"')):
        assert documented in script
        script = script.replace(documented, here)
    (folder / "slurm.py").write_text(script)

    printed = run(folder, sys.executable, "slurm.py")
    assert "simulate_labelling: ran" in printed
    assert "attack: unchanged" in printed
    jobs = [int(each) for each in (folder / "jobs").read_text().split()]
    assert jobs
    assert not any(map(psutil.pid_exists, jobs))
    assert "up to date" in run(folder, "dvc", "status")
