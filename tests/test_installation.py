"""The two lock files, and the one that each make target installs."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

RUN, DEV = "requirements-run.lock", "requirements.lock"


def entries(name: str) -> dict[str, str]:
    """Version and hashes by package and version of a lock file, without markers."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    rows = [re.sub(r" ; .*?(?= --hash)", "", " ".join(line.split())) for line in text.splitlines()]
    return {row.split()[0]: row for row in rows}


def test_runs_have_the_versions_and_hashes_of_the_development_environment() -> None:
    run, dev = entries(RUN), entries(DEV)
    assert len(run) > 200
    assert {name: row for name, row in run.items() if dev.get(name) != row} == {}


def test_runs_do_not_install_packages_of_tests_and_clusters() -> None:
    names = {name.partition("==")[0] for name in entries(RUN)}
    assert (
        names & {"ray", "dask", "moto", "playwright", "kubernetes-validate", "pytest", "mypy", "onnxruntime"} == set()
    )
    assert {"dvc", "mlflow", "prefect", "torch", "great-expectations", "uv"} <= names


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the Makefile and the lock files, without an environment."""
    for name in ("Makefile", RUN, DEV, "environment.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    return tmp_path


def installed_by(project: Path, target: str) -> list[str]:
    """Lock files that make would install for a target."""
    result = subprocess.run(["make", "-n", target], cwd=project, capture_output=True, text=True, check=True)
    return re.findall(r"uv pip sync .* (\S+\.lock)$", result.stdout, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("target", "lock"), [("repro", RUN), ("serve", RUN), ("test", DEV), ("lint", DEV), ("dev", DEV)]
)
def test_a_new_environment_has_the_packages_of_the_target(target: str, lock: str, project: Path) -> None:
    assert installed_by(project, target) == [lock]


def test_a_development_environment_is_kept_by_runs(project: Path) -> None:
    shutil.copy(project / DEV, project / ".venv")
    assert installed_by(project, "repro") == []
    assert installed_by(project, "test") == []


def test_an_environment_of_runs_is_extended_by_tests_and_not_repeated_by_runs(project: Path) -> None:
    shutil.copy(project / RUN, project / ".venv")
    assert installed_by(project, "repro") == []
    assert installed_by(project, "test") == [DEV]


def test_a_changed_lock_file_is_installed(project: Path) -> None:
    for name in (RUN, DEV):
        (project / ".venv" / name).write_text("numpy==1\n")
        os.utime(project / ".venv" / name, (0, 0))
    assert installed_by(project, "repro") == [RUN]
    assert installed_by(project, "test") == [DEV]


def test_make_gives_a_user_without_an_account_a_name_and_a_home() -> None:
    show = ["make", "--silent", "--eval", "show: ; @echo $$USER $$HOME", "show"]
    result = subprocess.run(
        show, cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["user", str(ROOT / ".venv")]
