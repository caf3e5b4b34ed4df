"""A disk that is full or read-only: said, and after there is room again the same bytes come out."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.test_killed import start
from tests.test_pipeline import digests, make_workspace, run

pytestmark = pytest.mark.faults

MORE = 40
"""MB that are added after each failure."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True)
    if mount.returncode:
        pytest.skip(f"a disk for the test can't be mounted: {mount.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def test_a_full_disk_is_said_and_with_more_room_the_same_bytes_come_out(disk: Path, tmp_path: Path) -> None:
    undisturbed = make_workspace(tmp_path / "undisturbed")
    run(undisturbed, "dvc", "repro")
    workspace, size, n_failed = make_workspace(disk / "workspace"), 8, 0
    while True:
        repro = start(workspace, "dvc", "repro")
        printed = repro.communicate()[0]
        if repro.returncode == 0:
            break
        n_failed += 1
        last = printed.splitlines()[-1] + printed.splitlines()[-3]
        if "'./dvc.lock' validation failed" in last:
            # DVC writes it in place; what is finished comes out of its cache
            (workspace / "dvc.lock").unlink()
        else:
            assert "No space left on device" in printed or "disk is full" in printed, printed
        size += MORE
        remount(disk, f"size={size}m")
    assert n_failed >= 2
    assert digests(workspace) == digests(undisturbed)
    assert "up to date" in run(workspace, "dvc", "status")


def test_a_read_only_disk_is_said(disk: Path) -> None:
    workspace = make_workspace(disk / "workspace")
    remount(disk, "ro")
    for command in (["dvc", "repro"], ["python", "-m", "tasks.acquire"]):
        process = start(workspace, *command)
        printed = process.communicate()[0]
        assert process.returncode != 0
        assert "Read-only file system" in printed, printed
