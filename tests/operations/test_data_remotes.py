"""Data on a DVC remote: pushed, pulled into a fresh clone where nothing reruns; data sets that grow."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from tasks.tracking import digest_of
from tests.conftest import ROOT, with_overrides
from tests.operations.servers import S3_KEYS, s3_server
from tests.test_pipeline import TOY, run

pytestmark = pytest.mark.operations

FOLDER_PARAMS = {
    **TOY,
    "acquire.source": "folder",
    "acquire.folder": "sets/ct",
    "validate.min_images_per_class": 3,
    "validate.min_side": 32,
}


def make_repository(folder: Path, overrides: dict[str, object]) -> Path:
    """A git repository with the code and the first four stages: remotes treat all stages alike."""
    folder.mkdir()
    for name in ("tasks", "flows", "images", "models", "plugins"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", ".dvcignore", "environment.yaml", "prefect.toml"):
        shutil.copy(ROOT / name, folder / name)
    yaml = YAML(typ="safe")
    stages = yaml.load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    with (folder / "dvc.yaml").open("w", encoding="utf-8") as file:
        yaml.dump({"stages": {name: stages[name] for name in ("check_params", "acquire", "validate", "prepare")}}, file)
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(with_overrides(overrides), file)
    run(folder, "git", "init", "--quiet", "--initial-branch", "main")
    run(folder, "git", "config", "user.email", "someone@example.org")
    run(folder, "git", "config", "user.name", "someone")
    run(folder, "dvc", "init", "--quiet")
    run(folder, "dvc", "config", "core.autostage", "true")
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", "code")
    return folder


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose results are committed."""
    folder = make_repository(tmp_path_factory.mktemp("origin") / "repository", TOY)
    run(folder, "dvc", "repro")
    run(folder, "git", "commit", "--quiet", "--message", "results")
    return folder


@pytest.fixture(params=["folder", "s3"])
def remote(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The commands that name a remote."""
    if request.param == "folder":
        yield [f"dvc remote add --default store {tmp_path / 'remote'}"]
        return
    for name, value in S3_KEYS.items():
        monkeypatch.setenv(name, value)
    with s3_server(tmp_path, "dvc") as address:
        yield [
            "dvc remote add --default store s3://dvc/ct-robustness",
            f"dvc remote modify store endpointurl {address}",
        ]


def test_a_fresh_clone_pulls_what_was_pushed_and_reruns_nothing(
    reproduced: Path, remote: list[str], tmp_path: Path
) -> None:
    origin = tmp_path / "origin"
    shutil.copytree(reproduced, origin, symlinks=True)
    for command in remote:
        run(origin, *command.split())
    run(origin, "git", "commit", "--quiet", "--all", "--message", "where the data are")
    assert "pushed" in run(origin, "dvc", "push")

    run(tmp_path, "git", "clone", "--quiet", str(origin), "clone")
    clone = tmp_path / "clone"
    assert not (clone / "data" / "prepare").exists()
    run(clone, "dvc", "pull")
    assert "Data and pipelines are up to date." in run(clone, "dvc", "status")
    printed = run(clone, "dvc", "repro")
    assert "Running stage" not in printed
    assert "up to date" in printed
    for step in ("acquire", "validate", "prepare"):
        assert digest_of(clone / "data" / step) == digest_of(origin / "data" / step)
    assert "Everything is up to date." in run(origin, "dvc", "push")


def draw(folder: Path, cls: str, numbers: range) -> None:
    """Noisy images that no expectation is about."""
    (folder / cls).mkdir(parents=True, exist_ok=True)
    for number in numbers:
        rng = np.random.default_rng([number, len(cls)])
        pixels = rng.integers(20, 230, (64, 64), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / cls / f"{number:03d}.png")


def ran(printed: str) -> list[str]:
    return [step for step in ("acquire", "validate", "prepare") if f"Running stage '{step}'" in printed]


def test_a_data_set_that_is_added_grows_through_validation_and_its_last_version_comes_back(tmp_path: Path) -> None:
    workspace = make_repository(tmp_path / "workspace", FOLDER_PARAMS)
    folder = workspace / "sets" / "ct"
    for cls in ("COVID", "non-COVID"):
        draw(folder, cls, range(20))
    run(workspace, "dvc", "add", "sets/ct")
    assert ran(run(workspace, "dvc", "repro")) == ["acquire", "validate", "prepare"]
    run(workspace, "git", "commit", "--quiet", "--all", "--message", "first version")

    draw(folder, "COVID", range(20, 30))
    run(workspace, "dvc", "add", "sets/ct")
    assert ran(run(workspace, "dvc", "repro")) == ["acquire", "validate", "prepare"]
    told = run(workspace, sys.executable, "-m", "flows.data_changes").splitlines()
    assert told[0] == "data/validate/manifest.parquet against HEAD"
    assert [line.split() for line in told[3:5]] == [
        ["COVID", "20", "30", "10", "0", "0"],
        ["non-COVID", "20", "20", "0", "0", "0"],
    ]
    run(workspace, "git", "commit", "--quiet", "--all", "--message", "ten more")
    # the flow finds what DVC has made, with a data set that is no step beside the steps
    assert "Nothing to do" in run(workspace, sys.executable, "-m", "flows.pipeline")

    (folder / "COVID" / "099.png").write_bytes(b"no image")
    run(workspace, "dvc", "add", "sets/ct")
    with pytest.raises(AssertionError, match=r"COVID/099\.png"):
        run(workspace, "dvc", "repro")

    run(workspace, "git", "checkout", "--quiet", "--force", "HEAD~1")
    # what the failed step left for reading goes
    run(workspace, "dvc", "checkout", "--force")
    assert len(list(folder.rglob("*.png"))) == 40
    assert ran(run(workspace, "dvc", "repro")) == []


def test_a_data_set_that_is_imported_is_updated_on_request(tmp_path: Path) -> None:
    workspace = make_repository(tmp_path / "workspace", FOLDER_PARAMS)
    archive = tmp_path / "archive"
    for cls in ("COVID", "non-COVID"):
        draw(archive, cls, range(20))
    (workspace / "sets").mkdir()
    run(workspace, "dvc", "import-url", os.fspath(archive), "sets/ct")
    assert ran(run(workspace, "dvc", "repro")) == ["acquire", "validate", "prepare"]
    run(workspace, "git", "commit", "--quiet", "--all", "--message", "first version")

    draw(archive, "COVID", range(20, 30))
    assert ran(run(workspace, "dvc", "repro")) == []
    run(workspace, "dvc", "update", "sets/ct.dvc")
    assert ran(run(workspace, "dvc", "repro")) == ["acquire", "validate", "prepare"]
