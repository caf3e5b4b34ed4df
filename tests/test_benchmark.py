import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, chi2, quantile_test

from tasks.evaluation.comparison import (
    benchmark_table,
    certified_table,
    mcnemar,
    minimal_eps_table,
    withstood,
    worst_case,
)
from tests.plausible_attack import smallest_eps_in
from tests.test_robustness import CLEAN, LABELS, NONE, records_of

ALONE = [0, 1, 1, 0, 0, 0, 0, 1]
"""Predictions under attack: of the eight images the first, fourth and last are wrong."""


ABOUT = pd.DataFrame(
    {"parameters": 1000, "multiply_adds": 2000, "looks": [1, 1, 8], "n_warn": [2, 0, 1], "n_fail": [0, 1, 0]},
    index=["undefended", "strong", "weak"],
)


@pytest.fixture
def records() -> pd.DataFrame:
    """Two defences and the bare classifier, at eps 1 and 2, by two attacks."""
    points = [
        (("undefended", "none", "clean", 0.0), CLEAN),
        (("undefended", "adaptive", "fgsm", 1.0), ALONE),
        # turns the fourth right, which was wrong before, and breaks the second
        (("undefended", "adaptive", "pgd", 1.0), [1, 0, 1, 1, 0, 0, 0, 1]),
        (("undefended", "adaptive", "fgsm", 2.0), ALONE),
        (("undefended", "adaptive", "pgd", 2.0), NONE),
        (("strong", "none", "clean", 0.0), LABELS),
        (("strong", "transfer", "pgd", 1.0), LABELS),
        (("strong", "adaptive", "pgd", 1.0), [1, 1, 1, 0, 0, 0, 0, 0]),
        (("strong", "adaptive", "pgd", 2.0), [1, 1, 1, 0, 0, 0, 0, 1]),
        (("weak", "none", "clean", 0.0), CLEAN),
        (("weak", "transfer", "pgd", 1.0), CLEAN),
        (("weak", "adaptive", "pgd", 1.0), [1, 1, 0, 0, 1, 0, 0, 1]),
        (("weak", "adaptive", "pgd", 2.0), NONE),
    ]
    clean = {"undefended": CLEAN, "strong": LABELS, "weak": CLEAN}
    return pd.concat([records_of(point, LABELS, clean[point[0]], found) for point, found in points], ignore_index=True)


@pytest.fixture
def table(records: pd.DataFrame) -> pd.DataFrame:
    return benchmark_table(records, withstood(records, smallest_eps_in(records)), ABOUT)


def at(table: pd.DataFrame, threat_model: str, eps: float) -> pd.DataFrame:
    return table[(table["threat_model"] == threat_model) & (table["eps"] == eps)].set_index("target")


def test_worst_case_is_taken_for_each_image_and_not_over_averages(records: pd.DataFrame) -> None:
    outcomes = withstood(records, smallest_eps_in(records))
    worst = worst_case(outcomes).set_index(["target", "threat_model", "eps"])["accuracy"]
    # FGSM breaks the first image and PGD the second; the fourth was wrong before, though PGD turns it right
    assert worst["undefended", "adaptive", 1.0] == 4 / 8
    assert worst["undefended", "adaptive", 2.0] == 0


def test_what_the_sweep_alone_breaks_is_not_withstood_by_the_adaptive_attacker(records: pd.DataFrame) -> None:
    smallest = smallest_eps_in(records)
    swept = (smallest["target"] == "strong") & (smallest["image"] == 0)
    smallest.loc[swept, "smallest_eps"] = 1.0
    worst = worst_case(withstood(records, smallest)).set_index(["target", "threat_model", "eps"])["accuracy"]
    assert worst["strong", "adaptive", 1.0] == 6 / 8
    assert worst["strong", "transfer", 1.0] == 1


def test_targets_are_ranked_at_each_threat_model_and_eps(table: pd.DataFrame) -> None:
    assert at(table, "adaptive", 1)["rank"].to_dict() == {"strong": 1, "undefended": 2, "weak": 3}
    assert at(table, "transfer", 1)["rank"].to_dict() == {"strong": 1, "weak": 2}
    # at eps 2 both have lost everything, and are alike on clean images
    assert at(table, "adaptive", 2)["rank"].to_dict() == {"strong": 1, "undefended": 2, "weak": 3}
    assert list(zip(table["threat_model"], table["eps"], strict=True)) == sorted(
        zip(table["threat_model"], table["eps"], strict=True)
    )


def test_accuracies_stand_beside_their_wilson_intervals(table: pd.DataFrame) -> None:
    strong = at(table, "adaptive", 1).loc["strong"]
    assert (strong["n"], strong["clean_accuracy"], strong["accuracy"]) == (8, 1.0, 7 / 8)
    assert (strong["accuracy_low"], strong["accuracy_high"]) == pytest.approx((0.5291, 0.9776), abs=5e-5)
    assert strong["clean_accuracy_high"] == 1
    # 6 of 8 right unchanged, 4 of them after both attacks
    assert at(table, "adaptive", 1).loc["undefended", ["clean_accuracy", "accuracy"]].tolist() == [6 / 8, 4 / 8]


def test_neighbours_in_rank_are_compared_on_the_same_images(table: pd.DataFrame) -> None:
    rows = at(table, "adaptive", 1)
    strong = rows.loc["strong"]
    assert (strong["next"], strong["n_right_alone"], strong["n_wrong_alone"]) == ("undefended", 3, 0)
    assert strong["p_value"] == pytest.approx(2 * 0.5**3)
    undefended = rows.loc["undefended"]
    # images 2, 4, 5, 6 against 0, 1, 5, 6
    assert (undefended["next"], undefended["n_right_alone"], undefended["n_wrong_alone"]) == ("weak", 2, 2)
    assert undefended["p_value"] == 1
    assert rows.loc["weak", ["next", "n_right_alone", "p_value"]].isna().all()


def test_mcnemar_is_exact_and_near_its_approximation_for_many_images() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 5) == 1
    assert mcnemar(10, 0) == pytest.approx(2 * 0.5**10)
    assert mcnemar(0, 10) == mcnemar(10, 0)
    # with the correction for continuity
    approximated = float(chi2.sf((abs(180 - 120) - 1) ** 2 / 300, df=1))
    assert mcnemar(180, 120) == pytest.approx(approximated, rel=0.05)


def test_mcnemar_rejects_equal_classifiers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    won = rng.binomial(40, 0.5, 2000)
    assert np.mean([mcnemar(int(n), 40 - int(n)) < 0.05 for n in won]) <= 0.06


def test_scores_alone_are_a_threat_model_and_count_for_who_sees_everything() -> None:
    records = pd.concat(
        [
            records_of(("undefended", "none", "clean", 0.0), LABELS, LABELS, LABELS),
            records_of(("undefended", "adaptive", "pgd", 1.0), LABELS, LABELS, CLEAN),
        ],
        ignore_index=True,
    )
    found = smallest_eps_in(records)
    # scores alone break one that PGD breaks, and one that it does not
    by_scores = found.assign(threat_model="black_box", attack="square", smallest_eps=[np.inf] * 6 + [1.0, 1.0])
    both = pd.concat([found, by_scores], ignore_index=True)
    worst = worst_case(withstood(records, both)).set_index("threat_model")["accuracy"]
    assert worst.to_dict() == {"adaptive": 5 / 8, "black_box": 6 / 8}
    # of some of the images only they are no threat model
    part = pd.concat([found, by_scores[4:]], ignore_index=True)
    assert worst_case(withstood(records, part)).set_index("threat_model")["accuracy"].to_dict() == {"adaptive": 5 / 8}


def test_cost_and_the_outcome_of_checks_stand_beside_each_rank(table: pd.DataFrame) -> None:
    weak = at(table, "adaptive", 2).loc["weak"]
    assert weak[["parameters", "multiply_adds", "looks", "n_warn", "n_fail"]].tolist() == [1000, 2000, 8, 1, 0]


def test_quartiles_of_the_smallest_perturbation_are_over_images_that_are_right() -> None:
    minimal = [0.0, 0.0, *np.arange(1.0, 38), np.inf, np.inf, np.inf]
    frame = pd.DataFrame({"target": "strong", "image": range(len(minimal)), "minimal_eps": minimal})
    # another attack finds smaller ones, of some
    better = frame.assign(minimal_eps=frame["minimal_eps"].where(frame["minimal_eps"] != 5, 4.5))
    row = minimal_eps_table(pd.concat([frame, better], ignore_index=True)).iloc[0]
    assert (row["target"], row["n"], row["withstood"]) == ("strong", 40, pytest.approx(3 / 40))
    assert (row["q25"], row["median"], row["q75"]) == (11, 21, 31)
    # order statistics of ranks 14 and 27 hold the median of 40 with a probability of 96 %
    assert (row["median_low"], row["median_high"]) == (14, 27)


@pytest.mark.parametrize("n", [1, 5, 6, 40, 199, 200])
def test_exact_statistics_are_those_of_scipy(n: int) -> None:
    minimal = np.random.default_rng(n).random(n) + 0.1
    row = minimal_eps_table(pd.DataFrame({"target": "any", "image": range(n), "minimal_eps": minimal})).iloc[0]
    by_scipy = quantile_test(minimal, p=0.5).confidence_interval()
    np.testing.assert_array_equal(
        row[["median_low", "median_high"]].to_numpy(float),
        [by_scipy.low, by_scipy.high],
    )
    for n_right_alone in range(0, n + 1, max(1, n // 7)):
        assert mcnemar(n_right_alone, n - n_right_alone) == pytest.approx(binomtest(n_right_alone, n).pvalue)


def test_a_quartile_that_nothing_found_reaches_is_infinite() -> None:
    frame = pd.DataFrame({"target": "strong", "image": range(40), "minimal_eps": [1.0] * 15 + [np.inf] * 25})
    row = minimal_eps_table(frame).iloc[0]
    assert row[["q25", "median_low"]].tolist() == [1, 1]
    assert np.isinf([row["median"], row["q75"], row["median_high"]]).all()


def test_a_target_that_is_never_right_has_no_quartiles() -> None:
    frame = pd.DataFrame({"target": "hopeless", "image": range(4), "minimal_eps": 0.0})
    row = minimal_eps_table(frame).iloc[0]
    assert (row["target"], row["n"]) == ("hopeless", 0)
    assert row[["withstood", "q25", "median", "median_low", "median_high", "q75"]].isna().all()


def test_certified_accuracy_counts_images_that_are_right_within_their_radius() -> None:
    certified = pd.DataFrame(
        {
            "target": "smoothed",
            "label": [0, 0, 1, 1, 1],
            "prediction": [0, 0, 0, 1, -1],
            "certified_eps": [0.1, 0.4, 0.9, 0.25, 0.0],
        }
    )
    table = certified_table(certified, [0.0, 0.25, 0.5])
    assert table["accuracy"].tolist() == [3 / 5, 2 / 5, 0]
    assert table["n"].tolist() == [5, 5, 5]
    assert (table["accuracy_low"] <= table["accuracy"]).all()
    assert list(certified_table(certified[:0], [0.0])) == list(table)
