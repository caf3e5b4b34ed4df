"""Metrics of subgroups, their gaps with intervals by group, and the check of gaps."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.core.files import write_table
from tasks.evaluation.subgroups import compare_rates, subgroup_checks, subgroup_table
from tasks.reporting.results import read_table

CLASSES = ["healthy", "ill"]
N_PATIENTS, N_SLICES = 80, 4


def outcomes_of(accuracy: dict[str, float], n_patients: int = N_PATIENTS, seed: int = 0) -> tuple[Any, pd.DataFrame]:
    """Outcomes and split of patients, with this clean accuracy of each sex; half of it under attack."""
    rng, n = np.random.default_rng(seed), n_patients * N_SLICES
    patients = np.arange(n) // N_SLICES
    sex = np.array(list(accuracy))[patients // 2 % len(accuracy)]
    rates = np.array([accuracy[name] for name in sex])
    parts = [
        pd.DataFrame(
            {
                "target": "undefended",
                "operating_point": "as_trained",
                "threat_model": "adaptive",
                "image": np.arange(n),
                "label": patients % 2,
                "group": patients,
                "eps": eps,
                "robust_correct": (rng.random(n) < rates / (1 + (eps > 0))).astype(float),
            }
        )
        for eps in (0.0, 1.0, 2.0)
    ]
    return pd.concat(parts, ignore_index=True), pd.DataFrame({"split": "test", "subgroup_sex": sex})


def rows_of(accuracy: dict[str, float], **options: Any) -> pd.DataFrame:
    outcomes, split = outcomes_of(accuracy, **options)
    return subgroup_table(outcomes, split, 1.0, CLASSES, 1)


def test_metrics_of_a_subgroup_are_those_of_its_images() -> None:
    outcomes, split = outcomes_of({"F": 0.9, "M": 0.6})
    table = subgroup_table(outcomes, split, 1.0, CLASSES, 1)
    assert set(table["eps"]) == {0.0, 1.0}
    is_f = (split["subgroup_sex"] == "F").to_numpy()
    clean = outcomes[outcomes["eps"] == 0]
    ill = clean["label"].to_numpy() == 1
    row = table[(table["eps"] == 0) & (table["subgroup"] == "F") & (table["metric"] == "sensitivity")].iloc[0]
    correct = clean["robust_correct"].to_numpy()
    assert row["value"] == pytest.approx(correct[is_f & ill].mean())
    assert row["gap"] == pytest.approx(correct[is_f & ill].mean() - correct[~is_f & ill].mean())
    assert row["low"] < row["value"] < row["high"]
    assert row["gap_low"] < row["gap"] < row["gap_high"]
    assert (row["n"], row["n_groups"]) == ((is_f & ill).sum(), (is_f & ill).sum() / N_SLICES)


def test_a_planted_gap_is_significant_and_equal_subgroups_are_not() -> None:
    (failed,) = subgroup_checks(rows_of({"F": 0.95, "M": 0.5}))
    assert (failed.target, failed.key, failed.status) == ("undefended", "subgroups", "WARN")
    assert "sex F has +" in failed.explanation
    assert "Holm's correction over 6 comparisons" in failed.explanation
    (passed,) = subgroup_checks(rows_of({"F": 0.8, "M": 0.8}))
    assert passed.status == "PASS"


def test_two_subgroups_are_one_comparison_and_three_are_three() -> None:
    assert rows_of({"F": 0.8, "M": 0.8})["p_value"].notna().sum() == 6
    three = rows_of({"F": 0.8, "M": 0.8, "unknown": 0.8})
    assert three["p_value"].notna().sum() == 18
    assert (three["adjusted_p_value"] >= three["p_value"]).all()


def test_few_patients_give_no_verdict() -> None:
    (check,) = subgroup_checks(rows_of({"F": 0.9, "M": 0.1}, n_patients=6))
    assert check.status == "UNVERIFIED"


def test_subgroups_without_a_common_outcome_are_compared_by_whole_groups() -> None:
    groups = np.arange(60) // 2
    is_first = groups % 2 == 0
    found = compare_rates(is_first.astype(float), groups, [is_first, ~is_first])
    assert found["gap"] == 1
    assert found["p_value"] < 1e-6
    same = compare_rates(np.ones(60), groups, [is_first, ~is_first])
    assert (same["gap"], same["p_value"]) == (0, 1)


def test_a_true_null_hypothesis_is_rejected_in_about_5_percent_of_simulations() -> None:
    """50 patients of 5 images with an intra-class correlation of 0.3, 25 in each of two subgroups."""
    rng, p_values = np.random.default_rng(1), []
    groups = np.repeat(np.arange(50), 5)
    is_first = groups % 2 == 0
    for _ in range(600):
        # beta-binomial with mean 0.7 and correlation 1 / (a + b + 1)
        rates = rng.beta(0.7 * 7 / 3, 0.3 * 7 / 3, 50)
        correct = (rng.random(250) < rates[groups]).astype(float)
        p_values.append(compare_rates(correct, groups, [is_first, ~is_first])["p_value"])
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.075


def test_a_small_subgroup_without_an_error_is_no_significant_gap() -> None:
    """6 of 6 patients against 80 of 100: Fisher's exact test has p = 0.59."""
    correct = np.arange(106) < 86
    found = compare_rates(correct.astype(float), np.arange(106), [np.arange(106) < 6, np.arange(106) >= 6])
    assert found["gap"] == pytest.approx(0.2)
    assert found["gap_low"] < 0 < found["gap_high"]
    assert found["p_value"] > 0.3


@pytest.mark.parametrize(("n_members", "n_others", "rate"), [(10, 100, 0.9), (20, 100, 0.95), (25, 75, 0.9)])
def test_small_subgroups_with_high_rates_keep_the_level(n_members: int, n_others: int, rate: float) -> None:
    rng, n = np.random.default_rng(2), n_members + n_others
    is_member, n_significant = np.arange(n) < n_members, 0
    for _ in range(300):
        found = compare_rates((rng.random(n) < rate).astype(float), np.arange(n), [is_member, ~is_member])
        is_excluded = not found["gap_low"] <= 0 <= found["gap_high"]
        assert (found["p_value"] < 0.05) == is_excluded
        n_significant += is_excluded
    assert n_significant <= 25


def test_no_subgroup_is_a_formula_in_the_csv_file(tmp_path: Path) -> None:
    names = ["=1+1", "@x", "+1", "-1", ";=1", "\uff1d1", "\t=1", "F"]
    frame = pd.DataFrame({"attribute": "a", "subgroup": names, "value": -0.5, "low": None})
    write_table(frame, tmp_path / "subgroups.csv")
    text = (tmp_path / "subgroups.csv").read_text(encoding="utf-8")
    assert not re.search('(^|[,;\r\n"])\\s*[=+@\uff1d]|,-1,', text)
    assert read_table(tmp_path / "subgroups.csv")["subgroup"].tolist() == names
    assert text.count("'") == len(names) - 1
    assert text.endswith("a,F,-0.5,\n")
