"""Comparison of the targets: worst cases, ranks, paired tests, smallest perturbations and certified accuracy."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, chi2, quantile_test

from tasks.evaluation.comparison import certified_accuracy_table, comparison_table, minimum_perturbation_table
from tasks.records.worst_case import worst_case_accuracy, worst_case_outcomes
from tasks.statistics.paired import mcnemar
from tests.plausible_attack import minimum_eps_in
from tests.test_robustness import CLEAN, LABELS, NONE, records_of

UNDER_FGSM = [0, 1, 1, 0, 0, 0, 0, 1]
"""Predictions under attack: the first, fourth and last of the eight images are misclassified."""

COSTS = pd.DataFrame(
    {"n_parameters": 1000, "multiply_adds": 2000, "n_eot_samples": [1, 1, 8], "n_warn": [2, 0, 1], "n_fail": [0, 1, 0]},
    index=["undefended", "strong", "weak"],
)


@pytest.fixture
def records() -> pd.DataFrame:
    """Records of two defences and the bare classifier, at eps 1 and 2, under two attacks."""
    points = [
        (("undefended", "none", "clean", 0.0), CLEAN),
        (("undefended", "adaptive", "fgsm", 1.0), UNDER_FGSM),
        # PGD makes the fourth image correct, which is misclassified unchanged, and breaks the second
        (("undefended", "adaptive", "pgd", 1.0), [1, 0, 1, 1, 0, 0, 0, 1]),
        (("undefended", "adaptive", "fgsm", 2.0), UNDER_FGSM),
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
    return comparison_table(records, worst_case_outcomes(records, minimum_eps_in(records)), COSTS)


def at(table: pd.DataFrame, threat_model: str, eps: float) -> pd.DataFrame:
    return table[(table["threat_model"] == threat_model) & (table["eps"] == eps)].set_index("target")


def test_the_worst_case_is_of_each_image_and_not_of_averages(records: pd.DataFrame) -> None:
    outcomes = worst_case_outcomes(records, minimum_eps_in(records))
    worst = worst_case_accuracy(outcomes).set_index(["target", "threat_model", "eps"])["accuracy"]
    # FGSM breaks the first image and PGD the second; the fourth is misclassified unchanged, so PGD's does not count
    assert worst["undefended", "adaptive", 1.0] == 4 / 8
    assert worst["undefended", "adaptive", 2.0] == 0


def test_an_image_that_only_the_sweep_breaks_is_not_robust_under_adaptive_attacks(records: pd.DataFrame) -> None:
    minimum_eps = minimum_eps_in(records)
    is_swept = (minimum_eps["target"] == "strong") & (minimum_eps["image"] == 0)
    minimum_eps.loc[is_swept, "minimum_eps"] = 1.0
    worst = worst_case_accuracy(worst_case_outcomes(records, minimum_eps)).set_index(["target", "threat_model", "eps"])[
        "accuracy"
    ]
    assert worst["strong", "adaptive", 1.0] == 6 / 8
    assert worst["strong", "transfer", 1.0] == 1


def test_targets_are_ranked_at_each_threat_model_and_eps(table: pd.DataFrame) -> None:
    assert at(table, "adaptive", 1)["rank"].to_dict() == {"strong": 1, "undefended": 2, "weak": 3}
    assert at(table, "transfer", 1)["rank"].to_dict() == {"strong": 1, "weak": 2}
    # at eps 2 two targets have no correct image and the same clean accuracy, so names decide
    assert at(table, "adaptive", 2)["rank"].to_dict() == {"strong": 1, "undefended": 2, "weak": 3}
    assert list(zip(table["threat_model"], table["eps"], strict=True)) == sorted(
        zip(table["threat_model"], table["eps"], strict=True)
    )


def test_accuracies_have_wilson_intervals(table: pd.DataFrame) -> None:
    strong = at(table, "adaptive", 1).loc["strong"]
    assert (strong["n"], strong["clean_accuracy"], strong["robust_accuracy"]) == (8, 1.0, 7 / 8)
    assert (strong["robust_accuracy_low"], strong["robust_accuracy_high"]) == pytest.approx((0.5291, 0.9776), abs=5e-5)
    assert strong["clean_accuracy_high"] == 1
    # 6 of 8 images are correct unchanged, 4 of them under both attacks
    assert at(table, "adaptive", 1).loc["undefended", ["clean_accuracy", "robust_accuracy"]].tolist() == [6 / 8, 4 / 8]


def test_each_target_is_compared_with_the_next_in_rank_on_the_same_images(table: pd.DataFrame) -> None:
    rows = at(table, "adaptive", 1)
    strong = rows.loc["strong"]
    assert (strong["next_target"], strong["n_only_this_correct"], strong["n_only_next_correct"]) == ("undefended", 3, 0)
    assert strong["p_value"] == pytest.approx(2 * 0.5**3)
    undefended = rows.loc["undefended"]
    # correct are images 2, 4, 5, 6 of this target, and 0, 1, 5, 6 of the next
    counts = ["next_target", "n_only_this_correct", "n_only_next_correct"]
    assert undefended[counts].tolist() == ["weak", 2, 2]
    assert undefended["p_value"] == 1
    assert rows.loc["weak", ["next_target", "n_only_this_correct", "p_value"]].isna().all()


def test_the_mcnemar_test_is_exact_and_near_the_chi_square_approximation_for_many_images() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 5) == 1
    assert mcnemar(10, 0) == pytest.approx(2 * 0.5**10)
    assert mcnemar(0, 10) == mcnemar(10, 0)
    # with continuity correction
    approximated = float(chi2.sf((abs(180 - 120) - 1) ** 2 / 300, df=1))
    assert mcnemar(180, 120) == pytest.approx(approximated, rel=0.05)


def test_the_mcnemar_test_rejects_equal_classifiers_at_most_at_its_level() -> None:
    rng = np.random.default_rng(0)
    won = rng.binomial(40, 0.5, 2000)
    assert np.mean([mcnemar(int(n), 40 - int(n)) < 0.05 for n in won]) <= 0.06


def test_black_box_attacks_are_a_threat_model_and_are_part_of_the_adaptive_worst_case() -> None:
    records = pd.concat(
        [
            records_of(("undefended", "none", "clean", 0.0), LABELS, LABELS, LABELS),
            records_of(("undefended", "adaptive", "pgd", 1.0), LABELS, LABELS, CLEAN),
        ],
        ignore_index=True,
    )
    found = minimum_eps_in(records)
    # Square breaks one image that PGD breaks, and one that PGD does not
    by_square = found.assign(threat_model="black_box", attack="square", minimum_eps=[np.inf] * 6 + [1.0, 1.0])
    both = pd.concat([found, by_square], ignore_index=True)
    worst = worst_case_accuracy(worst_case_outcomes(records, both)).set_index("threat_model")["accuracy"]
    assert worst.to_dict() == {"adaptive": 5 / 8, "black_box": 6 / 8}
    # attacks on a part of the images are no threat model of their own, and count as adaptive
    part = pd.concat([found, by_square[4:]], ignore_index=True)
    worst = worst_case_accuracy(worst_case_outcomes(records, part)).set_index("threat_model")["accuracy"]
    assert worst.to_dict() == {"adaptive": 5 / 8}


def test_cost_and_numbers_of_warnings_and_failures_are_in_every_row(table: pd.DataFrame) -> None:
    weak = at(table, "adaptive", 2).loc["weak"]
    columns = ["n_parameters", "multiply_adds", "n_eot_samples", "n_warn", "n_fail"]
    assert weak[columns].tolist() == [1000, 2000, 8, 1, 0]


def test_quartiles_of_the_smallest_perturbation_are_over_correctly_classified_images() -> None:
    minimal = [0.0, 0.0, *np.arange(1.0, 38), np.inf, np.inf, np.inf]
    frame = pd.DataFrame({"target": "strong", "image": range(len(minimal)), "minimum_perturbation": minimal})
    # another attack finds a smaller perturbation of one image
    better = frame.assign(
        minimum_perturbation=frame["minimum_perturbation"].where(frame["minimum_perturbation"] != 5, 4.5)
    )
    row = minimum_perturbation_table(pd.concat([frame, better], ignore_index=True)).iloc[0]
    assert (row["target"], row["n"], row["unbroken_fraction"]) == ("strong", 40, pytest.approx(3 / 40))
    assert (row["q25"], row["median"], row["q75"]) == (11, 21, 31)
    # the interval between order statistics 14 and 27 of 40 contains the median with a probability of 96 %
    assert (row["median_low"], row["median_high"]) == (14, 27)


@pytest.mark.parametrize("n", [1, 5, 6, 40, 199, 200])
def test_the_interval_of_the_median_and_the_mcnemar_test_are_equal_to_scipy(n: int) -> None:
    minimal = np.random.default_rng(n).random(n) + 0.1
    row = minimum_perturbation_table(
        pd.DataFrame({"target": "strong", "image": range(n), "minimum_perturbation": minimal})
    ).iloc[0]
    by_scipy = quantile_test(minimal, p=0.5).confidence_interval()
    np.testing.assert_array_equal(
        row[["median_low", "median_high"]].to_numpy(float),
        [by_scipy.low, by_scipy.high],
    )
    for n_only_this_correct in range(0, n + 1, max(1, n // 7)):
        assert mcnemar(n_only_this_correct, n - n_only_this_correct) == pytest.approx(
            binomtest(n_only_this_correct, n).pvalue
        )


def test_a_quartile_beyond_the_perturbations_found_is_infinite() -> None:
    frame = pd.DataFrame({"target": "strong", "image": range(40), "minimum_perturbation": [1.0] * 15 + [np.inf] * 25})
    row = minimum_perturbation_table(frame).iloc[0]
    assert row[["q25", "median_low"]].tolist() == [1, 1]
    assert np.isinf([row["median"], row["q75"], row["median_high"]]).all()


def test_a_target_without_a_correctly_classified_image_has_no_quartiles() -> None:
    frame = pd.DataFrame({"target": "broken", "image": range(4), "minimum_perturbation": 0.0})
    row = minimum_perturbation_table(frame).iloc[0]
    assert (row["target"], row["n"]) == ("broken", 0)
    assert row[["unbroken_fraction", "q25", "median", "median_low", "median_high", "q75"]].isna().all()


def test_certified_accuracy_is_the_fraction_of_correct_images_with_a_radius_of_at_least_eps() -> None:
    certified = pd.DataFrame(
        {
            "target": "smoothed",
            "label": [0, 0, 1, 1, 1],
            "prediction": [0, 0, 0, 1, -1],
            "certified_eps": [0.1, 0.4, 0.9, 0.25, 0.0],
        }
    )
    table = certified_accuracy_table(certified, [0.0, 0.25, 0.5])
    assert table["accuracy"].tolist() == [3 / 5, 2 / 5, 0]
    assert table["n"].tolist() == [5, 5, 5]
    assert (table["accuracy_low"] <= table["accuracy"]).all()
    assert list(certified_accuracy_table(certified[:0], [0.0])) == list(table)
