"""The documented table of DVC's experiments."""

import csv
import json
import re
import shutil
from pathlib import Path

from tests.conftest import ROOT
from tests.test_pipeline import init_dvc, run


def test_the_documented_table_has_the_seed_and_the_metrics_of_the_choice(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "compare-runs.md").read_text(encoding="utf-8")
    (documented,) = re.findall(r"--drop '(.*)' --keep '(.*)'`", page)
    for name in ("dvc.yaml", "params.yaml", "environment.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    metrics = {"clean": {"jpeg": {"accuracy": 0.9}}, "validation": {"jpeg": {"eps_1": 0.5, "eps_16": 0.25}}}
    (tmp_path / "data" / "evaluate").mkdir(parents=True)
    (tmp_path / "data" / "evaluate" / "metrics.json").write_text(json.dumps(metrics))
    run(tmp_path, "git", "init", "--quiet")
    init_dvc(tmp_path)
    run(tmp_path, "git", "add", ".")
    run(tmp_path, "git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "--message", "first")
    drop, keep = (expression.replace("\\|", "|") for expression in documented)
    table = run(tmp_path, "dvc", "exp", "show", "--csv", "--drop", drop, "--keep", keep)
    (first, *_) = csv.DictReader(table.splitlines()[-3:])
    assert {name: value for name, value in first.items() if value} == {"validation.jpeg.eps_1": "0.5", "seed": "0"}
