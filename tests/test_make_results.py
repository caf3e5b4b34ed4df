"""The command that computes the published tables: definitions, workspaces, interruption, archive and seeds."""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ruamel.yaml import YAML

from docs import RESULTS, make_results
from docs.keep_results import FILES, MANIFEST, copy_archive, merged
from docs.make_results import call, choose_runs, set_up
from docs.seeds_table import balanced_over_seeds, seeds_table
from tasks.core.workspace import Workspace
from tasks.reporting.results import read_json
from tests.archives import manifest_problems
from tests.conftest import ROOT, VALUES

TABLES = ["active-learning", "choice", "covid-ct", "honest", "honest-seeds", "study-50-50", "study-80-20"]
TABLE = """
acquire: {classes: [left, right], positive_class: right}
prepare: {image_size: 32}
train_surrogates: [{architecture: cnn, epochs: 1}]
"""
STAGE = """stages:
  acquire: {cmd: python outputs.py, deps: [data/check_params, "${acquire.folder}"], params: [prepare], outs: [data/all]}
"""
OUTPUTS = f"""
import json
from pathlib import Path
from tasks.core.workspace import Workspace
paths = [getattr(Workspace(), name) for name in {[name for name in FILES if name != "params_file"]}]
for path in [*paths, *map(Workspace().operating_points, ("undefended", "autoencoder"))]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({{"is_phantom": False}}))
Workspace().figures.mkdir(parents=True)
for path in (Workspace().figures / "roc.png", Path("data/all")):
    path.write_bytes(b"PNG")
"""
"""A step that writes a file for every output that is archived."""


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with the code of the archive and one stage, as the current folder."""
    folder = tmp_path / "repository"
    shutil.copytree(ROOT / "tasks", folder / "tasks", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / RESULTS).mkdir(parents=True)
    for path in (ROOT / "docs").glob("*.py"):
        shutil.copy(path, folder / "docs")
    (folder / RESULTS / "small.yaml").write_text(TABLE)
    (folder / "data/check_params").mkdir(parents=True)
    (folder / "data/check_params/valid.json").write_text("{}")
    (folder / "outputs.py").write_text(OUTPUTS)
    (folder / "dvc.yaml").write_text(STAGE)
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").touch()
    (folder / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    shutil.copy(ROOT / "params.yaml", folder)
    git(folder, "init", "--quiet")
    git(folder, "add", "--force", ".")
    git(folder, "commit", "--quiet", "--message", "start")
    monkeypatch.chdir(folder)
    return folder


def make_images(folder: Path) -> Path:
    for name in ("left", "right"):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            (folder / name / f"{number}.png").write_bytes(b"PNG")
    return folder


def test_every_published_table_has_valid_parameters(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, classes in zip(folders, (["COVID", "non-COVID"], ["CT_COVID", "CT_NonCOVID"]), strict=True):
        for name in classes:
            (folder / name).mkdir(parents=True)
    runs = choose_runs(ROOT / RESULTS, [], folders, [])
    assert sorted({run.table for run in runs}) == TABLES
    assert {run.name: run.params.seed for run in runs if run.table == "honest-seeds"} == {
        f"honest-seeds-{seed}": seed for seed in range(3)
    }
    assert {run.name: Path(run.params.acquire.folder).name for run in runs}["covid-ct-patient"] == "b"
    assert {run.params.acquire.source for run in runs} == {"folder"}


def test_a_run_of_a_table_is_chosen_by_its_name(tmp_path: Path) -> None:
    for name in ("CT_COVID", "CT_NonCOVID", "COVID", "non-COVID"):
        (tmp_path / name).mkdir()
    runs = choose_runs(ROOT / RESULTS, ["covid-ct-stratified", "choice", "covid-ct-stratified"], [tmp_path], [])
    assert [(run.table, run.name) for run in runs] == [("covid-ct", "covid-ct-stratified"), ("choice", "choice")]


def test_a_wrong_table_or_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"table nothing: not in docs/evidence/results. Use one or more of active-"):
        choose_runs(RESULTS, ["nothing"], [tmp_path], [])
    with pytest.raises(ValueError, match=r"--data: no folder has the classes of the table honest\. It must have a sub"):
        choose_runs(RESULTS, ["honest"], [tmp_path], [])
    with pytest.raises(ValueError, match=r"missing is not a folder\. It must hold the images"):
        choose_runs(RESULTS, ["honest"], [tmp_path / "missing"], [])
    assert choose_runs(RESULTS, [], [tmp_path], []) == []


def test_a_table_is_computed_in_a_clone_and_archived_with_its_manifest(
    repository: Path, own_store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_images(repository.parent / "images")
    (repository / "outputs.py").write_text("not committed")
    monkeypatch.setattr(sys, "argv", ["make_results", "small", "--data", str(images), "--set", "compute.threads=1"])
    make_results.main()
    printed = capsys.readouterr()
    assert re.search(
        r"small\nacquire, validate, prepare +40 images +not known\ntrain_classifier +30 epochs", printed.out
    )
    assert "Uncommitted changes are not part of the results" in printed.err
    manifest = read_json(repository / RESULTS / "small" / MANIFEST)
    assert manifest["commit"] == git(repository, "rev-parse", "HEAD")
    assert not manifest["dirty"]
    assert manifest["parameters"] == {
        "acquire.classes": ["left", "right"],
        "acquire.folder": "images",
        "acquire.positive_class": "right",
        "acquire.source": "folder",
        "compute.threads": 1,
        "prepare.image_size": 32,
        "train_surrogates": [{"architecture": "cnn", "epochs": 1}],
    }
    assert manifest["data"]["files"] == 40
    assert manifest["versions"]["torch"]
    assert (repository / RESULTS / "small" / "figures" / "roc.png").exists()
    assert manifest_problems(repository / RESULTS) == []
    assert git(repository, "status", "--porcelain", "--untracked-files=no") == "M outputs.py"


def test_a_workspace_follows_the_commit_and_keeps_outputs_and_checkpoints(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, workspaces = Workspace(repository.parent / "w" / "small"), repository.parent / "w"
    set_up(workspace, workspaces, first := git(repository, "rev-parse", "HEAD"))
    checkpoint = workspace.checkpoint_folder("attack") / "part"
    checkpoint.mkdir(parents=True)
    workspace.params_file.write_text("seed: 7\n")
    set_up(workspace, workspaces, git(repository, "rev-parse", "HEAD"))
    assert workspace.params_file.read_text() == "seed: 7\n"
    (repository / "outputs.py").write_text("new")
    git(repository, "commit", "--quiet", "--all", "--message", "new")
    set_up(workspace, workspaces, commit := git(repository, "rev-parse", "HEAD"))
    assert (workspace.root / "outputs.py").read_text() == "new"
    assert git(workspace.root, "rev-parse", "HEAD") == commit
    assert checkpoint.is_dir()
    assert f"moves from commit {first} to {commit}. Steps whose code differs run again." in capsys.readouterr().err
    set_up(workspace, workspaces, first)
    assert git(workspace.root, "rev-parse", "HEAD") == first
    assert str(workspaces / "cache") in (workspace.root / ".dvc" / "config.local").read_text()


def test_another_repository_and_uncommitted_work_in_a_workspace_are_refused(repository: Path) -> None:
    commit, workspaces = git(repository, "rev-parse", "HEAD"), repository.parent / "w"
    (own := workspaces / "own").mkdir(parents=True)
    (own / "code.py").write_text("1")
    git(own, "init", "--quiet")
    git(own, "add", ".")
    git(own, "commit", "--quiet", "--message", "other")
    with pytest.raises(ValueError, match=r"own is another git repository\. Use another folder for the workspaces"):
        set_up(Workspace(own), workspaces, commit)
    assert (own / "code.py").read_text() == "1"
    set_up(Workspace(workspaces / "small"), workspaces, commit)
    (workspaces / "small" / "outputs.py").write_text("my work")
    git(repository, "commit", "--quiet", "--allow-empty", "--message", "new")
    with pytest.raises(ValueError, match=r"small has uncommitted changes: M outputs.py. Commit or revert them"):
        set_up(Workspace(workspaces / "small"), workspaces, git(repository, "rev-parse", "HEAD"))
    assert (workspaces / "small" / "outputs.py").read_text() == "my work"


def test_a_folder_that_is_no_archive_is_not_replaced(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    definitions = shutil.copytree(repository / RESULTS, tmp_path / "definitions")
    images = make_images(tmp_path / "images")
    (definitions / "small").mkdir()
    (definitions / "small" / "mine.png").touch()
    arguments = ["small", "--data", str(images), "--definitions", str(definitions), "--plan"]
    monkeypatch.setattr(sys, "argv", ["make_results", *arguments])
    with pytest.raises(SystemExit, match=r"small has files and no manifest\.json, so it is no archive"):
        make_results.main()
    with pytest.raises(ValueError, match="no archive"):
        copy_archive(definitions, definitions / "small")
    assert (definitions / "small" / "mine.png").is_file()


def test_a_commit_that_does_not_exist_is_refused(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_images(repository.parent / "images")
    monkeypatch.setattr(sys, "argv", ["make_results", "small", "--data", str(images), "--commit", "v99"])
    with pytest.raises(SystemExit, match=r"--commit v99: no such commit\. Allowed is a commit of the present branch"):
        make_results.main()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises an exception; in the background of a shell it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interruption_ends_the_command_and_its_children(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]]).wait()"
    child = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"

    def interrupt() -> None:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        call([sys.executable, "-c", code, child], tmp_path, os.environ)
    for _ in range(100):
        state = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the child runs on")


def test_a_failed_command_names_its_folder(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=f"false failed in {tmp_path}. Correct the cause"):
        call(["false"], tmp_path, os.environ)


def test_seeds_have_their_own_values_and_the_mean_has_the_interval_by_group(reproduced: Path) -> None:
    table = seeds_table({"3": Workspace(reproduced), "4": Workspace(reproduced)}).set_index(
        ["target", "operating_point", "eps"]
    )
    worst = pd.read_csv(Workspace(reproduced).worst_case)
    worst = worst[(worst["threat_model"] == "adaptive") & (worst["metric"] == "balanced_accuracy")]
    worst = worst.set_index(["target", "operating_point", "eps"])
    assert len(table) == len(worst)
    for column, of_one in [
        ("value", "value"),
        ("seed_3", "value"),
        ("lowest", "value"),
        ("low", "low"),
        ("high", "high"),
    ]:
        assert table[column].to_list() == pytest.approx(worst[of_one].loc[table.index].to_list(), rel=1e-6, nan_ok=True)


def test_every_seed_counts_the_same_and_too_few_groups_give_no_interval() -> None:
    # 12 test images of the first seed are all correct, a third of the 24 of the second
    rows = [("0", label, group, 1.0) for label in (0, 1) for group in range(6)]
    rows += [("1", label, group, float(group < 4)) for label in (0, 1) for group in range(12)]
    outcomes = pd.DataFrame(rows, columns=["seed", "label", "group", "robust_correct"]).set_index("seed")
    values, estimate, n_groups = balanced_over_seeds(outcomes)
    assert values.to_dict() == {"0": 1.0, "1": pytest.approx(1 / 3)}
    assert estimate.value == pytest.approx((1 + 1 / 3) / 2)
    assert 0 < estimate.low < estimate.value < estimate.high < 1
    assert n_groups == 12
    _, of_few, _ = balanced_over_seeds(outcomes[outcomes["group"] < 3])
    assert math.isnan(of_few.low)


@pytest.fixture
def archive(tmp_path: Path) -> Callable[..., Path]:
    """Write an archive of the table ``small`` as far as the check of the manifests reads it."""

    def write(name: str, is_phantom: bool = False, dirty: bool = False, commit: str = "1", **params: Any) -> Path:
        (tmp_path / "small.yaml").write_text(TABLE)
        (folder := tmp_path / name).mkdir()
        (folder / MANIFEST).write_text(f'{{"commit": "{commit}", "dirty": {str(dirty).lower()}}}')
        (folder / "dataset.json").write_text(f'{{"is_phantom": {str(is_phantom).lower()}}}')
        small = merged(VALUES, YAML(typ="safe").load(TABLE))
        with (folder / "params.yaml").open("w") as file:
            YAML(typ="safe").dump(merged(small, params), file)
        return tmp_path

    return write


def test_published_archives_have_one_clean_commit_real_data_and_the_parameters_of_their_table(
    archive: Callable[..., Path],
) -> None:
    assert manifest_problems(ROOT / RESULTS) == []
    assert manifest_problems(archive("small")) == []
    assert manifest_problems(archive("other", dirty=True)) == ["other: computed with uncommitted changes"]
    found = manifest_problems(archive("third", commit="2", is_phantom=True))
    assert found[1:] == ["several commits: other 1, small 1, third 2", "third: computed on phantoms"]


def test_an_archive_with_other_parameters_than_its_table_is_found(archive: Callable[..., Path]) -> None:
    problems = manifest_problems(archive("small", prepare={"image_size": 64}))
    assert problems == ["small: prepare.image_size differs from small.yaml"]
