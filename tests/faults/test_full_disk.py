"""A full or read-only disk: the error names it, and with more space the run ends with the same bytes."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.test_killed import start
from tests.test_pipeline import digests, make_workspace, run

pytestmark = pytest.mark.faults

MORE = 40
"""Megabytes that are added after each failure."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True)
    if mount.returncode:
        pytest.skip(f"mounting a file system is not possible: {mount.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def test_a_full_disk_is_an_error_and_with_more_space_the_run_ends_with_the_same_bytes(
    disk: Path, reproduced: Path
) -> None:
    workspace, size, n_failed = make_workspace(disk / "workspace"), 8, 0
    while True:
        repro = start(workspace, "dvc", "repro")
        printed = repro.communicate()[0]
        if repro.returncode == 0:
            break
        n_failed += 1
        last = printed.splitlines()[-1] + printed.splitlines()[-3]
        if "'./dvc.lock' validation failed" in last:
            # DVC writes this file in place; it restores the outputs of finished steps from its cache
            (workspace / "dvc.lock").unlink()
        else:
            assert "No space left on device" in printed or "disk is full" in printed, printed
        size += MORE
        remount(disk, f"size={size}m")
    assert n_failed >= 2
    assert digests(workspace) == digests(reproduced)
    assert "up to date" in run(workspace, "dvc", "status")


def test_a_read_only_disk_is_an_error(disk: Path) -> None:
    workspace = make_workspace(disk / "workspace")
    remount(disk, "ro")
    for command in (["dvc", "repro"], ["python", "-m", "tasks.acquire"]):
        process = start(workspace, *command)
        printed = process.communicate()[0]
        assert process.returncode != 0
        assert "Read-only file system" in printed, printed
