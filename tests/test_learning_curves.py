"""Tables of active learning: values computed from predictions with known accuracies."""

import numpy as np
import pandas as pd
import pytest

from tasks.evaluation.label_efficiency import efficiency_tables
from tasks.evaluation.learning_curves import curve_table, cycle_table
from tasks.reporting.sections.active_learning import learners_at_chance
from tasks.statistics.rates import rate_estimate

N_TEST = 100
Curves = dict[tuple[str, int], list[float]]


def tables_of(curves: Curves, full: float = 0.8, n_per_group: int = 1) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Cycles with 10, 20, 30, ... labels and their predictions for 100 test images, with these clean accuracies.

    Of the images that are correct, every second is correct under attack.
    """
    runs = curves | {("all labels", seed): [full] for seed in {seed for _, seed in curves}}
    images, rows, pools = np.arange(N_TEST), [], []
    for (name, seed), accuracies in runs.items():
        for cycle, clean in enumerate(accuracies):
            correct = images < round(clean * N_TEST)
            key = {"acquisition": name, "seed": seed, "cycle": cycle}
            columns = {"image": images, "group": images // n_per_group, "label": 1, "prediction": correct.astype(int)}
            rows.append(pd.DataFrame(key | columns | {"confidence": 0.75, "robust_correct": correct * (images % 2.0)}))
            n_labelled = 90 if name == "all labels" else 10 * (cycle + 1)
            pools.append(key | {"n_labelled": n_labelled, "n_epochs": 4, "n_pool": 5, "mean_pool_entropy": 0.5})
    predictions = pd.concat(rows, ignore_index=True)
    columns = ["acquisition", "seed", "cycle", "group", "label", "assigned_label", "prediction"]
    return cycle_table(predictions, pd.DataFrame(columns=columns), pd.DataFrame(pools), positive=1), predictions


def summary_of(curves: Curves, full: float = 0.8, n_per_group: int = 1) -> pd.DataFrame:
    return efficiency_tables(*tables_of(curves, full, n_per_group))[0]


def metric_row(summary: pd.DataFrame, acquisition: str, name: str) -> "pd.Series[float]":
    row: pd.Series[float] = summary[(summary["acquisition"] == acquisition) & (summary["metric"] == name)].iloc[0]
    return row


def test_the_metrics_of_a_cycle_are_computed_from_its_query_and_its_predictions() -> None:
    pools = pd.DataFrame(
        [["random", 0, cycle, n, 3 - cycle, 0.5] for cycle, n in ((0, 2), (1, 4))],
        columns=["acquisition", "seed", "cycle", "n_labelled", "n_pool", "mean_pool_entropy"],
    )
    key = {"acquisition": "random", "seed": 0, "cycle": 1}
    queries = pd.DataFrame(
        [
            key | {"group": group, "label": label, "assigned_label": 1, "prediction": 0}
            for group, label in enumerate((1, 0, 1, 0, 1, 0, 1, 0))
        ]
    )
    predictions = pd.DataFrame(
        [
            {"acquisition": "random", "seed": 0, "cycle": cycle, "group": group, "label": 1, "prediction": predicted}
            | {"confidence": 0.75, "robust_correct": robust}
            for cycle in (0, 1)
            for group, (predicted, robust) in enumerate(((1, 1.0), (1, 0.0), (0, 0.0), (1, np.nan)))
        ]
    )
    table = cycle_table(predictions, queries, pools, positive=1)
    initial, first = table.iloc[0], table.iloc[1]
    assert np.isnan(initial["query_accuracy"])
    assert initial["n_queried"] == 0
    assert (first["query_accuracy"], first["assigned_label_accuracy"], first["positive_fraction"]) == (0.5, 0.5, 0.5)
    rate = rate_estimate(np.arange(8) % 2 == 1, np.arange(8))
    assert (first["query_accuracy_low"], first["query_accuracy_high"]) == (rate.low, rate.high)
    assert (first["n_test"], first["n_attacked"]) == (4, 3)
    assert first["clean_accuracy"] == 0.75
    # four groups are too few for an interval
    assert np.isnan(first["clean_accuracy_low"])
    assert first["robust_accuracy"] == pytest.approx(1 / 3)
    # two of the three attacked images are correct without attack, one of them also under attack
    assert first["accuracy_gap"] == pytest.approx(1 / 3)
    assert first["ece"] == pytest.approx(0)


@pytest.mark.parametrize(("share", "is_at_chance"), [(0.5, True), (0.9, False)])
def test_learners_are_at_chance_if_no_interval_of_their_balanced_accuracy_is_above_it(
    share: float, is_at_chance: bool
) -> None:
    images = np.arange(N_TEST)
    # a constant prediction has an accuracy of 90 % if nine of ten images have one label
    constant = {"label": (images % 10 == 0).astype(int), "prediction": 0}
    right = {"label": images % 2, "prediction": np.where(images < share * N_TEST, images % 2, 1 - images % 2)}
    key = {"seed": 0, "cycle": 1, "group": images, "confidence": 0.75, "robust_correct": 0.0}
    predictions = pd.concat(
        pd.DataFrame(key | {"acquisition": name} | columns) for name, columns in (("random", constant), ("b", right))
    )
    pools = pd.DataFrame({"acquisition": ["random", "b"], "seed": 0, "cycle": 1, "n_labelled": 9, "n_epochs": 1})
    columns_of_query = ["acquisition", "seed", "cycle", "group", "label", "assigned_label", "prediction"]
    cycles = cycle_table(predictions, pd.DataFrame(columns=columns_of_query), pools, positive=1)
    assert cycles["clean_accuracy"].tolist() == pytest.approx([0.9, share])
    assert cycles["balanced_accuracy"].tolist() == pytest.approx([0.5, share])
    assert (learners_at_chance(cycles, 0.5) is not None) == is_at_chance


def test_accuracies_of_a_cycle_have_intervals_by_group() -> None:
    of_images, of_groups = (tables_of({("random", 0): [0.6]}, n_per_group=n)[0].iloc[0] for n in (1, 5))
    assert (of_groups["n_test"], of_groups["n_test_groups"], of_groups["n_attacked_groups"]) == (100, 20, 20)
    widths = [row["clean_accuracy_high"] - row["clean_accuracy_low"] for row in (of_images, of_groups)]
    # all images of a group are equal: 20 outcomes in place of 100
    assert widths[1] > 2 * widths[0]


def test_the_area_is_the_mean_accuracy_over_the_number_of_labels() -> None:
    summary = summary_of({("random", 0): [0.4, 0.6, 0.6], ("entropy", 0): [0.4, 0.8, 0.8]})
    assert metric_row(summary, "random", "mean_clean_accuracy")["value"] == pytest.approx((0.5 + 0.6) / 2)
    assert metric_row(summary, "random", "mean_robust_accuracy")["value"] == pytest.approx((0.5 + 0.6) / 4)
    assert metric_row(summary, "entropy", "mean_clean_accuracy_gain")["value"] == pytest.approx(0.15)
    assert metric_row(summary, "entropy", "final_accuracy_gap")["value"] == pytest.approx(0.4)


def test_the_number_of_labels_at_a_target_accuracy_is_interpolated_between_cycles() -> None:
    # 90 % of 0.8 is 0.72, 95 % is 0.76
    summary = summary_of({("random", 0): [0.4, 0.7, 0.74], ("entropy", 0): [0.76, 0.7, 0.9]})
    assert metric_row(summary, "random", "n_labels_90")["value"] == pytest.approx(25)
    assert np.isnan(metric_row(summary, "random", "n_labels_95")["value"])
    assert metric_row(summary, "random", "n_labels_95")["n_seeds"] == 0
    assert metric_row(summary, "entropy", "n_labels_95")["value"] == 10
    assert metric_row(summary, "entropy", "n_labels_90_saved")["value"] == pytest.approx(15)


def noisy_seeds(gain: float, n_seeds: int, spread: float = 0.02) -> Curves:
    """Random queries, and entropy that is better by ``gain`` on average; the difference varies over the seeds."""
    seeds = np.linspace(-1, 1, n_seeds) if n_seeds > 1 else np.zeros(1)
    return {
        (name, seed): [0.5 + 0.01 * seed + (name == "entropy") * (gain + spread * deviation)] * 2
        for seed, deviation in enumerate(seeds)
        for name in ("random", "entropy")
    }


def test_gains_are_paired_by_seed_and_image() -> None:
    curves = {
        (name, seed): [0.3 + 0.1 * seed + shift] * 2
        for seed in range(4)
        for name, shift in (("random", 0.0), ("entropy", 0.1))
    }
    summary = summary_of(curves)
    gain = metric_row(summary, "entropy", "mean_clean_accuracy_gain")
    # seeds differ by 0.3, and the gain by nothing
    assert (gain["value"], gain["lowest"], gain["highest"]) == pytest.approx((0.1, 0.1, 0.1))
    # the interval is of new images, so it has a width
    assert gain["low"] < 0.08
    assert gain["high"] > 0.12
    accuracy = metric_row(summary, "entropy", "mean_clean_accuracy")
    assert (accuracy["value"], accuracy["lowest"], accuracy["highest"]) == pytest.approx((0.55, 0.4, 0.7))


def test_values_of_every_seed_are_reported() -> None:
    _, by_seed = efficiency_tables(*tables_of(noisy_seeds(0.1, 3)))
    gains = by_seed[by_seed["metric"] == "final_clean_accuracy_gain"]
    assert gains["seed"].tolist() == [0, 1, 2]
    assert gains["value"].to_numpy() == pytest.approx([0.08, 0.1, 0.12])


def test_numbers_of_labels_have_a_range_over_the_seeds_and_no_interval() -> None:
    row = metric_row(
        summary_of({("random", seed): [0.4, 0.7 + 0.01 * seed, 0.8] for seed in range(3)}), "random", "n_labels_90"
    )
    assert row["lowest"] < row["highest"]
    assert np.isnan(row[["low", "high"]].to_numpy(dtype=float)).all()


@pytest.mark.parametrize(("n_seeds", "has_test"), [(1, False), (9, False), (10, True)])
def test_a_comparison_needs_ten_seeds(n_seeds: int, has_test: bool) -> None:
    gain = metric_row(summary_of(noisy_seeds(0.1, n_seeds)), "entropy", "mean_clean_accuracy_gain")
    assert not np.isnan(gain["low"])
    assert np.isnan([gain["p_value"], gain["p_value_holm"], gain["all_seeds_low"]]).tolist() == [not has_test] * 3


def test_the_interval_for_new_seeds_is_wider_than_that_of_these_seeds() -> None:
    gain = metric_row(summary_of(noisy_seeds(0.1, 10, spread=0.1)), "entropy", "mean_clean_accuracy_gain")
    assert gain["all_seeds_low"] < gain["low"] < gain["high"] < gain["all_seeds_high"]


def test_the_tests_of_all_functions_and_both_accuracies_are_one_family() -> None:
    curves = noisy_seeds(0.03, 10)
    alone = summary_of(curves)
    others = {(f"other {i}", seed): curves["random", seed] for i in range(3) for seed in range(10)}
    among_others = summary_of(curves | others)
    first, second = (metric_row(each, "entropy", "mean_clean_accuracy_gain") for each in (alone, among_others))
    assert (first["n_comparisons"], second["n_comparisons"]) == (2, 8)
    assert first["p_value"] == pytest.approx(second["p_value"])
    assert first["p_value"] <= first["p_value_holm"] < second["p_value_holm"]
    without_difference = metric_row(among_others, "other 0", "mean_clean_accuracy_gain")
    assert (without_difference["value"], without_difference["p_value"]) == (0, 1)
    # the interval has a width
    assert without_difference["all_seeds_low"] < 0 < without_difference["all_seeds_high"]


def test_four_groups_are_too_few_for_a_comparison() -> None:
    gain = metric_row(summary_of(noisy_seeds(0.1, 10), n_per_group=25), "entropy", "mean_clean_accuracy_gain")
    assert gain["value"] == pytest.approx(0.1)
    assert np.isnan(gain[["low", "high", "p_value", "p_value_holm"]].to_numpy(dtype=float)).all()


def test_areas_of_runs_of_different_length_cover_the_numbers_of_labels_that_all_runs_reached() -> None:
    summary = summary_of({("random", 0): [0.4, 0.6, 0.0], ("entropy", 0): [0.4, 0.6]})
    assert metric_row(summary, "entropy", "mean_clean_accuracy_gain")["value"] == pytest.approx(0)


def test_final_accuracies_are_compared_only_with_equal_numbers_of_labels() -> None:
    curves = {("random", 0): [0.4, 0.6], ("entropy", 0): [0.4, 0.8], ("random", 1): [0.4, 0.6], ("entropy", 1): [0.4]}
    summary = summary_of(curves)
    gain = metric_row(summary, "entropy", "final_clean_accuracy_gain")
    assert (gain["value"], gain["n_seeds"]) == pytest.approx((0.2, 1))
    assert metric_row(summary, "entropy", "final_robust_accuracy_gain")["value"] == pytest.approx(0.1)


def test_a_seed_without_a_query_is_left_out_of_the_gain() -> None:
    curves = {("random", seed): [0.4, 0.6] for seed in range(3)} | {("entropy", seed): [0.4, 0.8] for seed in range(2)}
    summary = summary_of(curves | {("entropy", 2): [0.4]})
    gain = metric_row(summary, "entropy", "mean_clean_accuracy_gain")
    assert gain["value"] == pytest.approx(0.1)
    assert gain["n_seeds"] == 2
    # there is no interval, because two of three seeds are not a random sample of all
    assert np.isnan(gain["low"])


def test_curves_are_means_over_the_seeds_for_cycles_that_all_seeds_reached() -> None:
    table = curve_table(*tables_of({("random", 0): [0.4, 0.6], ("random", 1): [0.6]}))
    clean = table[(table["metric"] == "clean_accuracy") & (table["acquisition"] == "random")]
    assert clean[["cycle", "n_labelled", "value", "lowest", "highest"]].to_numpy().tolist() == [[0, 10, 0.5, 0.4, 0.6]]
    # by image, of the mean over the seeds
    assert 0.4 < clean["low"].item() < 0.45
