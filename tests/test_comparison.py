"""Comparison of the targets: ranks, paired tests by group, smallest perturbations and certified accuracy."""

import numpy as np
import pandas as pd
import pytest

from tasks.evaluation.comparison import (
    certified_accuracy_table,
    comparison_table,
    credited,
    minimum_perturbation_table,
    ranked,
)
from tasks.evaluation.selection import validation_table
from tasks.evaluation.worst_case_table import constant_accuracy, worst_case_table
from tasks.outcomes.worst_case import worst_case_outcomes
from tasks.records.operating_points import OperatingPoint
from tests.plausible_attack import minimum_eps_in
from tests.test_robustness import CLEAN, LABELS, NONE, records_of

UNDER_FGSM = [0, 1, 1, 0, 0, 0, 0, 1]
"""Predictions under attack: the first, fourth and last of the eight images are misclassified."""
POINTS = [OperatingPoint("as_trained", (0.0, 0.0)), OperatingPoint("recalibrated", (2.0, 0.0))]

COSTS = pd.DataFrame(
    {"n_parameters": 1000, "multiply_adds": 2000, "n_eot_samples": [1, 1, 8], "n_warn": [2, 0, 1], "n_fail": [0, 1, 0]},
    index=["undefended", "strong", "weak"],
)


@pytest.fixture
def records() -> pd.DataFrame:
    """Records of two defences and the undefended classifier, at eps 1 and 2, under two attacks."""
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


def tables_of(
    records: pd.DataFrame, minimum_eps: pd.DataFrame | None = None, validation: pd.DataFrame | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table of worst cases and the comparison at eps 1."""
    searches = minimum_eps_in(records) if minimum_eps is None else minimum_eps
    points = dict.fromkeys(records["target"].unique(), POINTS)
    outcomes = worst_case_outcomes(records, searches, points)
    table = worst_case_table(outcomes, ["non-COVID", "COVID"], positive=1)
    # the sweep finds on validation images what the worst case is on test images, if nothing else is said
    is_swept = (outcomes["operating_point"] == "as_trained") & (outcomes["threat_model"] == "adaptive")
    columns = ["target", "operating_point", "threat_model", "image", "label", "group"]
    breaking = outcomes[is_swept].assign(eps=outcomes["eps"].where(outcomes["robust_correct"] == 0, np.inf))
    swept = breaking.groupby(columns)["eps"].min().rename("minimum_eps").reset_index()
    swept = swept.assign(minimum_eps_8bit=swept["minimum_eps"]) if validation is None else validation
    validated = validation_table(swept, [1.0, 2.0], ["non-COVID", "COVID"], positive=1)
    return table, comparison_table(table, outcomes, validated, COSTS, eps=1.0)


@pytest.fixture
def table(records: pd.DataFrame) -> pd.DataFrame:
    """The comparison of twice the records: four groups of a class are too few for a test."""
    again = records.assign(image=records["image"] + 8, group=records["group"] + 8)
    return tables_of(pd.concat([records, again], ignore_index=True))[1]


def at(table: pd.DataFrame, threat_model: str, eps: float, point: str = "as_trained") -> pd.DataFrame:
    is_wanted = (table["threat_model"] == threat_model) & (table["eps"] == eps) & (table["operating_point"] == point)
    return table[is_wanted].set_index("target")


def test_a_gain_counts_above_a_constant_prediction_if_this_is_better_than_the_undefended_classifier(
    table: pd.DataFrame,
) -> None:
    # at eps 2 the undefended classifier has no correct image, and a constant prediction has one half
    gains, attacked = at(table, "adaptive", 2).loc["strong"], at(table, "adaptive", 2)["robust_balanced_accuracy"]
    assert attacked["undefended"] == 0
    assert gains["gain"] == attacked["strong"]
    assert gains["gain_over_better"] == pytest.approx(attacked["strong"] - 0.5)
    # it is as good or better at eps 1
    better = at(table, "adaptive", 1)
    assert better["robust_balanced_accuracy"]["undefended"] >= 0.5
    assert better["gain_over_better"]["strong"] == better["gain"]["strong"]


def test_targets_are_ranked_by_balanced_accuracy_at_each_threat_model_and_eps(table: pd.DataFrame) -> None:
    assert at(table, "adaptive", 1)["rank"].to_dict() == {"strong": 1, "undefended": 2, "weak": 3}
    assert at(table, "transfer", 1)["rank"].to_dict() == {"strong": 1, "weak": 2}
    # at eps 2 two targets have no correct image and the same clean accuracy, so names decide
    assert at(table, "adaptive", 2)["rank"].to_dict() == {"strong": 1, "undefended": 2, "weak": 3}
    keys = list(zip(table["operating_point"], table["threat_model"], table["eps"], strict=True))
    assert keys == sorted(keys)


def test_a_target_that_predicts_one_class_gets_no_credit_in_the_rank() -> None:
    # six of eight images are negative; one target predicts negative for all, the other is correct on half of each class
    labels = [1, 1, 0, 0, 0, 0, 0, 0]
    constant, honest = [0] * 8, [1, 0, 0, 0, 0, 0, 1, 1]
    records = pd.concat(
        [
            *(
                records_of((target, "none", "clean", 0.0), labels, made, made)
                for target, made in (("undefended", constant), ("strong", honest))
            ),
            *(
                records_of((target, "adaptive", "pgd", 1.0), labels, made, made)
                for target, made in (("undefended", constant), ("strong", honest))
            ),
        ],
        ignore_index=True,
    )
    table, comparison = tables_of(records)
    rows = at(comparison, "adaptive", 1)
    assert rows["robust_accuracy"].to_dict() == {"undefended": 6 / 8, "strong": 5 / 8}
    assert rows["robust_balanced_accuracy"].to_dict() == pytest.approx(
        {"undefended": 0.5, "strong": (1 / 2 + 4 / 6) / 2}
    )
    assert rows["rank"].to_dict() == {"strong": 1, "undefended": 2}
    found = table[(table["target"] == "undefended") & (table["operating_point"] == "as_trained") & (table["eps"] == 1)]
    assert found.set_index("metric")["value"].to_dict() == pytest.approx(
        {"accuracy": 6 / 8, "accuracy_8bit": 6 / 8, "balanced_accuracy": 0.5, "balanced_accuracy_8bit": 0.5}
        | {"sensitivity": 0, "specificity": 1}
    )


def test_a_target_that_predicts_one_class_ranks_no_higher_than_a_broken_classifier(records: pd.DataFrame) -> None:
    found = minimum_eps_in(records)
    # on validation images, one target predicts the first class always, and the others have no correct image at eps 1
    constant = np.where(np.array(LABELS) == 0, np.inf, 0.0)
    smallest = {"weak": constant, "strong": [1.0] * 8, "undefended": [1.0] * 8}
    validation = pd.concat(
        [found[found["target"] == target].assign(minimum_eps=eps) for target, eps in smallest.items()]
    )
    rows = at(tables_of(records, validation=validation)[1], "adaptive", 1)
    assert rows["validation_balanced_accuracy"].to_dict() == {"strong": 0, "undefended": 0, "weak": 0.5}
    # unchanged images decide
    assert rows["rank"].to_dict() == {"strong": 1, "undefended": 2, "weak": 3}


def test_accuracies_have_intervals_by_group(records: pd.DataFrame) -> None:
    strong = at(tables_of(records)[1], "adaptive", 1).loc["strong"]
    assert (strong["n"], strong["n_groups"], strong["clean_accuracy"], strong["robust_accuracy"]) == (8, 8, 1.0, 7 / 8)
    # every image is a group of its own: Wilson's interval
    assert (strong["robust_accuracy_low"], strong["robust_accuracy_high"]) == pytest.approx((0.5291, 0.9776), abs=5e-5)
    # Clopper and Pearson's bound for 8 of 8
    assert strong["clean_accuracy_low"] == pytest.approx(0.025 ** (1 / 8))
    # 6 of 8 images are correct unchanged, 4 of them under both attacks
    undefended = at(tables_of(records)[1], "adaptive", 1).loc["undefended"]
    assert undefended[["clean_accuracy", "robust_accuracy"]].tolist() == [6 / 8, 4 / 8]
    two_groups = tables_of(records.assign(group=records["image"] % 2))[1]
    few = at(two_groups, "adaptive", 1).loc["strong"]
    assert few["n_groups"] == 2
    assert few[["robust_accuracy_low", "robust_accuracy_high", "difference_low"]].isna().all()


def test_each_target_is_compared_with_the_next_in_rank_on_the_same_images(table: pd.DataFrame) -> None:
    rows = at(table, "adaptive", 1)
    strong = rows.loc["strong"]
    assert (strong["next_target"], strong["n_only_this_correct"], strong["n_only_next_correct"]) == ("undefended", 6, 0)
    assert strong["difference"] == pytest.approx(3 / 8)
    assert strong["p_value"] == pytest.approx(2 * 0.5**6)
    undefended = rows.loc["undefended"]
    # of eight images, 2, 4, 5, 6 of this target and 0, 1, 5, 6 of the next are correct
    counts = ["next_target", "n_only_this_correct", "n_only_next_correct"]
    assert undefended[counts].tolist() == ["weak", 4, 4]
    assert undefended["p_value"] == 1
    assert rows.loc["weak", ["next_target", "n_only_this_correct", "p_value"]].isna().all()


def test_p_values_at_the_reported_eps_are_corrected_by_holm_as_one_family(table: pd.DataFrame) -> None:
    rows = at(table, "adaptive", 1)
    assert rows["p_value_holm"].to_dict() == pytest.approx(
        {"strong": 2 * 2 * 0.5**6, "undefended": 1, "weak": np.nan}, nan_ok=True
    )
    assert table.loc[table["eps"] == 2, "p_value_holm"].isna().all()


def test_the_rank_uses_validation_images_and_states_the_result_on_test_images(records: pd.DataFrame) -> None:
    by_test = tables_of(records)[1]
    found = minimum_eps_in(records)
    # on validation images nothing breaks the target that is the worst on test images, and one image breaks the best
    smallest = {"weak": [np.inf] * 8, "strong": [1.0] + [np.inf] * 7, "undefended": [1.0] * 8}
    validation = pd.concat(
        [found[found["target"] == target].assign(minimum_eps=eps) for target, eps in smallest.items()]
    )
    by_validation = tables_of(records, validation=validation)[1]
    for threat_model, order in (("adaptive", ["weak", "strong", "undefended"]), ("transfer", ["weak", "strong"])):
        rows = at(by_validation, threat_model, 1)
        assert rows.index.tolist() == order
        pd.testing.assert_series_equal(
            rows["robust_balanced_accuracy"], at(by_test, threat_model, 1).loc[order, "robust_balanced_accuracy"]
        )
    rows = at(by_validation, "adaptive", 1)
    # labels of the eight images are balanced, so one broken image costs one eighth
    assert rows["validation_balanced_accuracy"].tolist() == [1, 7 / 8, 0]
    # four groups of each class are too few for an interval
    assert rows["validation_balanced_accuracy_low"].isna().all()
    assert rows[["n_validation", "n_validation_groups"]].drop_duplicates().to_numpy().tolist() == [[8, 8]]


def test_equal_balanced_accuracies_tie_although_their_floating_point_numbers_differ() -> None:
    # 9 and 8 of 10 images of the classes, against 10 and 7: (0.9 + 0.8) / 2 is 0.8500000000000001
    labels, eps = np.repeat([0, 1], 10), {"first": 1, "second": 2}
    n_broken = {"first": (0, 3), "second": (1, 2)}
    swept = pd.concat(
        pd.DataFrame(
            {"target": target, "operating_point": "as_trained", "threat_model": "adaptive"}
            | {
                "image": np.arange(20),
                "label": labels,
                "group": np.arange(20),
                "minimum_eps": np.where(np.arange(20) % 10 < np.array(n_broken[target])[labels], 1.0, np.inf),
                # the first target has no error on unchanged images, the second has one
            }
        ).assign(minimum_eps_8bit=np.inf)
        for target in eps
    )
    swept.loc[(swept["target"] == "second") & (swept["image"] == 0), "minimum_eps"] = 0.0
    validation = validation_table(swept, [1.0], ["non-COVID", "COVID"], positive=1)
    values = validation[(validation["metric"] == "balanced_accuracy") & (validation["eps"] == 1)].set_index("target")
    assert values["value"]["second"] > values["value"]["first"]
    assert list(ranked(["second", "first"], validation, 1.0)) == ["first", "second"]
    assert credited(values["value"]["second"], 0.5) == credited(values["value"]["first"], 0.5)


def test_each_defence_is_compared_with_the_undefended_classifier_as_one_family(table: pd.DataFrame) -> None:
    rows = at(table, "adaptive", 1)
    assert rows["gain"].to_dict() == pytest.approx({"strong": 3 / 8, "undefended": np.nan, "weak": 0}, nan_ok=True)
    assert rows["p_value_gain"].to_dict() == pytest.approx(
        {"strong": 2 * 0.5**6, "undefended": np.nan, "weak": 1}, nan_ok=True
    )
    assert rows["p_value_gain_holm"].to_dict() == pytest.approx(
        {"strong": 2 * 2 * 0.5**6, "undefended": np.nan, "weak": 1}, nan_ok=True
    )
    assert rows.loc["strong", "detectable_gain"] > 0
    assert at(table, "transfer", 1)["gain"].isna().all()


def test_there_is_no_test_where_a_class_has_too_few_groups_for_an_interval(records: pd.DataFrame) -> None:
    compared = tables_of(records)[1]
    assert (compared["n_groups"] == 8).all()
    assert compared["difference"].notna().any()
    refused = [f"{name}{suffix}" for name in ("p_value", "p_value_gain") for suffix in ("", "_holm")]
    assert compared[[*refused, "detectable_difference", "detectable_gain", "difference_low"]].isna().all(axis=None)


def test_a_class_with_the_word_accuracy_in_its_name_is_a_class() -> None:
    outcomes = pd.DataFrame({"image": range(3), "label": range(3), "group": range(3), "robust_correct": 1.0})
    point = {"target": "undefended", "operating_point": "as_trained", "threat_model": "adaptive", "eps": 0.0}
    outcomes = outcomes.assign(**point, robust_correct_8bit=np.nan)
    assert constant_accuracy(worst_case_table(outcomes, ["high_accuracy", "covid", "none"], 1)) == 1 / 3


def test_every_operating_point_has_its_own_ranks(table: pd.DataFrame) -> None:
    # a bias of 2 moves all images to the first class, to which half of the images belong
    moved = at(table, "adaptive", 1, "recalibrated")
    assert set(moved["clean_balanced_accuracy"]) == {0.5}


def test_cost_and_numbers_of_warnings_and_failures_are_in_every_row(table: pd.DataFrame) -> None:
    weak = at(table, "adaptive", 2).loc["weak"]
    columns = ["n_parameters", "multiply_adds", "n_eot_samples", "n_warn", "n_fail"]
    assert weak[columns].tolist() == [1000, 2000, 8, 1, 0]


def perturbations(minimal: object, target: str = "strong", n_per_group: int = 1) -> pd.DataFrame:
    frame = pd.DataFrame({"minimum_perturbation": minimal}).reset_index(names="image")
    return frame.assign(target=target, operating_point="as_trained", group=frame["image"] // n_per_group)


def test_quartiles_of_the_smallest_perturbation_are_over_correctly_classified_images() -> None:
    frame = perturbations([0.0, 0.0, *np.arange(1.0, 38), np.inf, np.inf, np.inf])
    # another attack finds a smaller perturbation of one image
    better = frame.assign(
        minimum_perturbation=frame["minimum_perturbation"].where(frame["minimum_perturbation"] != 5, 4.5)
    )
    row = minimum_perturbation_table(pd.concat([frame, better], ignore_index=True)).iloc[0]
    assert (row["target"], row["n"], row["n_groups"]) == ("strong", 40, 40)
    assert row["unbroken_fraction"] == pytest.approx(3 / 40)
    assert (row["q25"], row["median"], row["q75"]) == (11, 21, 31)
    # by order statistics 14 and 27 of 40, between which the median lies with a probability of 96 %
    assert row["median_low"] == pytest.approx(14, abs=1)
    assert row["median_high"] == pytest.approx(27, abs=1)


def test_the_interval_of_the_median_is_wider_for_dependent_images() -> None:
    minimal = np.arange(1.0, 41)
    by_image, by_group = (minimum_perturbation_table(perturbations(minimal, n_per_group=n)).iloc[0] for n in (1, 5))
    assert by_group["n_groups"] == 8
    assert by_group["median_low"] < by_image["median_low"]
    assert by_group["median_high"] > by_image["median_high"]
    assert np.isnan(minimum_perturbation_table(perturbations(minimal, n_per_group=20)).iloc[0]["median_low"])


def test_the_interval_of_the_median_of_few_groups_covers_it() -> None:
    """Order statistics 2 and 7 of 8 contain the median with a probability of 93 %, 3 and 7 with 82 %."""
    found = minimum_perturbation_table(perturbations([1.0, 2, 3, 4, 5, 6, 7, 8])).iloc[0]
    assert (found["median_low"], found["median_high"]) == (2, 7)


def test_a_quartile_beyond_the_perturbations_found_is_infinite() -> None:
    row = minimum_perturbation_table(perturbations([1.0] * 15 + [np.inf] * 25)).iloc[0]
    assert row[["q25", "median_low"]].tolist() == [1, 1]
    assert np.isinf([row["median"], row["q75"], row["median_high"]]).all()


def test_a_target_without_a_correctly_classified_image_has_no_quartiles() -> None:
    row = minimum_perturbation_table(perturbations([0.0] * 4, target="broken")).iloc[0]
    assert (row["target"], row["n"]) == ("broken", 0)
    assert row[["unbroken_fraction", "q25", "median", "median_low", "median_high", "q75"]].isna().all()


def test_certified_accuracy_is_the_fraction_of_correct_images_with_a_radius_of_at_least_eps() -> None:
    certified = pd.DataFrame(
        {
            "target": "smoothed",
            "group": range(5),
            "label": [0, 0, 1, 1, 1],
            "prediction": [0, 0, 0, 1, -1],
            "certified_eps": [0.1, 0.4, 0.9, 0.25, 0.0],
            "largest_eps": 0.9,
        }
    )
    # beyond the radius that the samples can certify, the cell is blank instead of 0
    table = certified_accuracy_table(certified, [0.0, 0.25, 0.5, 1.0])
    assert table["accuracy"].tolist() == pytest.approx([3 / 5, 2 / 5, 0, np.nan], nan_ok=True)
    # both images of one class and one of three of the other
    assert table["balanced_accuracy"].tolist() == pytest.approx([2 / 3, 5 / 12, 0, np.nan], nan_ok=True)
    assert table["n"].tolist() == [5, 5, 5, 5]
    assert (table["accuracy_low"] <= table["accuracy"])[:3].all()
    assert table[["accuracy_low", "accuracy_high"]].iloc[3].isna().all()
    assert list(certified_accuracy_table(certified[:0], [0.0])) == list(table)
