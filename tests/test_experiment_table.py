"""Metrics and plots in a clone without DVC's cache, and the documented table of experiments."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT
from tests.test_pipeline import TOY, run

MAX_COLUMNS = 30
MAX_BYTES = 500_000
"""Limit of the hook check-added-large-files of pre-commit."""


@pytest.fixture(scope="module")
def clone(reproduced: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone without DVC's cache. Its last commit has another seed, another metric and another point of a curve."""
    origin = tmp_path_factory.mktemp("origin")
    for name in ("dvc.yaml", "dvc.lock", "params.yaml", "environment.yaml", ".dvcignore"):
        shutil.copy(reproduced / name, origin)
    shutil.copytree(reproduced / "data" / "summary", origin / "data" / "summary")
    shutil.copytree(reproduced / ".dvc" / "plots", origin / ".dvc" / "plots")
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, origin / ".dvc")
    run(origin, "git", "init", "--quiet")
    commit(origin, "first")

    metrics = json.loads((origin / "data" / "summary" / "metrics.json").read_text())
    metrics["balanced_accuracy"]["undefended"]["clean"] = 0.123
    (origin / "data" / "summary" / "metrics.json").write_text(json.dumps(metrics))
    with (origin / "data" / "summary" / "plots" / "training_loss.csv").open("a") as file:
        file.write("classifier/train,3,0.456\n")
    params = (origin / "params.yaml").read_text()
    (origin / "params.yaml").write_text(params.replace("seed: 0\n", "seed: 17\n"))
    commit(origin, "second")

    folder = tmp_path_factory.mktemp("clone") / "clone"
    run(origin, "git", "clone", "--quiet", str(origin), str(folder))
    return folder


def commit(folder: Path, message: str) -> None:
    run(folder, "git", "add", ".")
    run(folder, "git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "--message", message)


def test_a_clone_without_cache_shows_the_balanced_accuracies_of_every_target(clone: Path) -> None:
    shown = json.loads(run(clone, "dvc", "metrics", "show", "--json"))
    found = shown[""]["data"]["data/summary/metrics.json"]["data"]["balanced_accuracy"]
    assert list(found) == ["undefended", *TOY["selected_defences"]]
    conditions = ("adaptive", "clean", "transfer", "validation_as_trained")
    assert {tuple(sorted(each)) for each in found.values()} == {conditions}


def test_a_clone_without_cache_compares_metrics_of_two_commits(clone: Path) -> None:
    (line,) = run(clone, "dvc", "metrics", "diff", "HEAD~1").splitlines()[1:]
    assert line.split()[1] == "balanced_accuracy.undefended.clean"
    assert line.split()[3] == "0.123"


def test_a_clone_without_cache_draws_every_plot_of_two_commits(clone: Path) -> None:
    printed = run(clone, "dvc", "plots", "diff", "HEAD~1")
    assert "failed to load" not in printed
    page = (clone / "dvc_plots" / "index.html").read_text(encoding="utf-8")
    plots = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["plots"]
    files = {name: clone / file for plot in plots for name, settings in plot.items() for file in settings["y"]}
    # DVC draws no table without rows; the template of confusion matrices has titles of its own
    curves = [name for name, file in files.items() if file.read_text().count("\n") > 1 and "confusion" not in name]
    assert [name for name in curves if f'"title": "{name}"' not in page] == []
    assert "0.456" in page
    assert '"rev": "HEAD~1"' in page


def test_no_file_in_git_is_large_or_names_an_image(clone: Path, reproduced: Path) -> None:
    images = {path.name for path in (reproduced / "data" / "acquire" / "images").rglob("*.png")}
    for file in (clone / "data" / "summary").rglob("*.*"):
        assert file.stat().st_size < MAX_BYTES
        assert not [name for name in images if name in file.read_text(encoding="utf-8")]


def test_training_curves_are_those_of_the_selected_defences(clone: Path) -> None:
    with (clone / "data" / "summary" / "plots" / "training_loss.csv").open() as file:
        networks = {row["curve"].split("/")[0] for row in csv.DictReader(file)}
    assert networks == {"classifier", "autoencoder", "retrained_autoencoder"}


def test_the_table_of_make_experiments_has_changed_parameters_and_all_metrics(clone: Path) -> None:
    (recipe,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("\tdvc exp show")]
    command = recipe.strip().replace("'", "").split()
    *_, header, _, last, first = run(clone, *command, "--csv", "-n", "2").splitlines()
    columns = header.split(",")
    rows = [dict(zip(columns, line.split(","), strict=True)) for line in (first, last)]
    assert len(columns) <= MAX_COLUMNS
    assert [row["seed"] for row in rows] == ["0", "17"]
    assert set(columns) - {"Experiment", "rev", "typ", "Created", "parent", "seed"} == {
        f"balanced_accuracy.{target}.{condition}"
        for target in ("undefended", *TOY["selected_defences"])
        for condition in ("clean", "transfer", "adaptive", "validation_as_trained")
    }
