"""The flow ``seeds``: its runs and its table."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flows.seeds import runs_of, seeds_table, sources_of
from tasks.core.workspace import Workspace
from tasks.params import load_params
from tasks.statistics.intervals import estimate_over_seeds
from tests.two_steps import make_two_steps


def test_every_fold_of_every_seed_is_a_run() -> None:
    assert runs_of([4, 7], 0) == {"seed 4": {"seed": 4}, "seed 7": {"seed": 7}}
    assert runs_of([4, 7], 2) == {
        "seed 4 fold 0": {"seed": 4, "prepare.split.fold": 0},
        "seed 4 fold 1": {"seed": 4, "prepare.split.fold": 1},
        "seed 7 fold 0": {"seed": 7, "prepare.split.fold": 0},
        "seed 7 fold 1": {"seed": 7, "prepare.split.fold": 1},
    }


def test_a_changed_image_changes_the_sources_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_two_steps(tmp_path, "  third: {cmd: run, deps: [data/first, scans, tasks], outs: [data/third]}\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans").mkdir()
    found = []
    for text in ("one", "another"):
        (tmp_path / "scans" / "a.png").write_text(text)
        found.append(sources_of(Workspace(), load_params()))
    changed = [path for path in found[0] if found[0][path] != found[1][path]]
    assert changed == ["scans/a.png"]
    assert "evaluate.py" in found[0]


def test_the_interval_over_folds_is_wider_because_they_share_training_images() -> None:
    values = np.tile([0.7, 0.8, 0.9, 0.8, 0.8], 2)
    apart, shared = estimate_over_seeds(values), estimate_over_seeds(values, test_to_train=1 / 4)
    assert (shared["value"], shared["std"]) == (apart["value"], apart["std"])
    # variance of the mean: 1 / 10 of the runs' variance becomes 1 / 10 + 1 / 4
    widening = (shared["high"] - shared["low"]) / (apart["high"] - apart["low"])
    assert widening == pytest.approx(((1 / 10 + 1 / 4) / (1 / 10)) ** 0.5)


def test_the_table_has_a_column_for_each_run_and_no_ends_of_intervals() -> None:
    metrics = {
        f"seed 0 fold {fold}": {"accuracy": value, "accuracy_low": 0.1, "accuracy_high": 0.9}
        for fold, value in enumerate((0.5, 0.75))
    }
    table = seeds_table(metrics, test_to_train=1.0)
    expected = {"metric": "accuracy", "value": 0.625, "lowest": 0.5, "highest": 0.75}
    expected |= {"seed 0 fold 0": 0.5, "seed 0 fold 1": 0.75}
    pd.testing.assert_frame_equal(table[list(expected)], pd.DataFrame([expected]))


def test_a_metric_that_a_run_lacks_has_no_mean_and_is_not_lost() -> None:
    table = seeds_table({"seed 0": {"a": 1.0, "b": 2.0}, "seed 1": {"a": 3.0, "c": 4.0}}).set_index("metric")
    assert table.loc["a", ["value", "lowest", "highest"]].tolist() == [2, 1, 3]
    assert table.loc[["b", "c"], ["value", "low", "high", "std", "lowest", "highest"]].isna().all(axis=None)
    assert (table.loc["b", "seed 0"], table.loc["c", "seed 1"]) == (2, 4)
    assert table.loc[["b", "c"]].isna().sum().sum() == 2 * 7


def test_the_recall_of_a_class_named_low_is_no_end_of_an_interval() -> None:
    metrics = {f"seed {seed}": {"as_trained.recall_low": 0.5, "as_trained.recall_high": 0.25} for seed in (0, 1)}
    assert seeds_table(metrics)["value"].tolist() == [0.5, 0.25]
