"""Tables of active learning: values computed from cycles with known accuracies."""

import numpy as np
import pandas as pd
import pytest

from tasks.labelling.learning_curves import curve_table, cycle_table, summary_table
from tasks.statistics.intervals import wilson


def cycles_of(curves: dict[tuple[str, int], list[float]], full: float = 0.8) -> pd.DataFrame:
    """Cycles with 10, 20, 30, ... labels and these clean accuracies; the robust accuracies are half of them."""
    rows = [
        {"acquisition": name, "seed": seed, "cycle": cycle, "n_labelled": 10 * (cycle + 1), "clean_accuracy": clean}
        for (name, seed), accuracies in curves.items()
        for cycle, clean in enumerate(accuracies)
    ]
    seeds = {seed for _, seed in curves}
    rows += [
        {"acquisition": "all labels", "seed": seed, "cycle": 0, "n_labelled": 90, "clean_accuracy": full}
        for seed in seeds
    ]
    table = pd.DataFrame(rows)
    for name in ("query_accuracy", "ece", "mean_pool_entropy", "positive_fraction"):
        table[name] = 0.5
    return table.assign(robust_accuracy=table["clean_accuracy"] / 2, accuracy_gap=table["clean_accuracy"] / 2)


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
            key | {"label": 1, "assigned_label": 1, "predicted": 0},
            key | {"label": 0, "assigned_label": 1, "predicted": 0},
        ]
    )
    predictions = pd.DataFrame(
        [
            {"acquisition": "random", "seed": 0, "cycle": cycle, "label": 1, "predicted": predicted}
            | {"confidence": 0.75, "robust_correct": robust}
            for cycle in (0, 1)
            for predicted, robust in ((1, 1.0), (1, 0.0), (0, 0.0), (1, np.nan))
        ]
    )
    table = cycle_table(predictions, queries, pools, positive=1)
    initial, first = table.iloc[0], table.iloc[1]
    assert np.isnan(initial["query_accuracy"])
    assert initial["n_queried"] == 0
    assert (first["query_accuracy"], first["assigned_label_accuracy"], first["positive_fraction"]) == (0.5, 0.5, 0.5)
    low, high = wilson(1, 2)
    assert (first["query_accuracy_low"], first["query_accuracy_high"]) == (float(low), float(high))
    assert (first["n_test"], first["n_attacked"]) == (4, 3)
    assert first["clean_accuracy"] == 0.75
    assert first["robust_accuracy"] == pytest.approx(1 / 3)
    # two of the three attacked images are correct without attack, one of them also under attack
    assert first["accuracy_gap"] == pytest.approx(1 / 3)
    assert first["ece"] == pytest.approx(0)


def test_the_area_is_the_mean_accuracy_over_the_number_of_labels() -> None:
    summary = summary_table(cycles_of({("random", 0): [0.4, 0.6, 0.6], ("entropy", 0): [0.4, 0.8, 0.8]}))
    assert metric_row(summary, "random", "mean_clean_accuracy")["value"] == pytest.approx((0.5 + 0.6) / 2)
    assert metric_row(summary, "random", "mean_robust_accuracy")["value"] == pytest.approx((0.5 + 0.6) / 4)
    assert metric_row(summary, "entropy", "mean_clean_accuracy_gain")["value"] == pytest.approx(0.15)
    assert metric_row(summary, "entropy", "final_accuracy_gap")["value"] == pytest.approx(0.4)


def test_the_number_of_labels_at_a_target_accuracy_is_interpolated_between_cycles() -> None:
    # 90 % of 0.8 is 0.72, 95 % is 0.76
    summary = summary_table(cycles_of({("random", 0): [0.4, 0.7, 0.74], ("entropy", 0): [0.76, 0.7, 0.9]}))
    assert metric_row(summary, "random", "n_labels_90")["value"] == pytest.approx(25)
    assert np.isnan(metric_row(summary, "random", "n_labels_95")["value"])
    assert metric_row(summary, "random", "n_labels_95")["n_seeds"] == 0
    assert metric_row(summary, "entropy", "n_labels_95")["value"] == 10
    assert metric_row(summary, "entropy", "n_labels_90_saved")["value"] == pytest.approx(15)


def test_gains_are_paired_by_seed() -> None:
    """Functions differ by 0.1 in every seed, so the interval of the gain has no width, although seeds differ by 0.3."""
    curves = {
        (name, seed): [0.3 + 0.1 * seed + shift] * 2
        for seed in range(4)
        for name, shift in (("random", 0.0), ("entropy", 0.1))
    }
    summary = summary_table(cycles_of(curves))
    gain = metric_row(summary, "entropy", "mean_clean_accuracy_gain")
    assert (gain["value"], gain["low"], gain["high"]) == pytest.approx((0.1, 0.1, 0.1))
    assert metric_row(summary, "entropy", "mean_clean_accuracy")["std"] == pytest.approx(
        np.std([0, 0.1, 0.2, 0.3], ddof=1)
    )


def test_areas_of_runs_of_different_length_cover_the_numbers_of_labels_that_all_runs_reached() -> None:
    summary = summary_table(cycles_of({("random", 0): [0.4, 0.6, 0.0], ("entropy", 0): [0.4, 0.6]}))
    assert metric_row(summary, "entropy", "mean_clean_accuracy_gain")["value"] == pytest.approx(0)


def test_final_accuracies_are_compared_only_with_equal_numbers_of_labels() -> None:
    curves = {("random", 0): [0.4, 0.6], ("entropy", 0): [0.4, 0.8], ("random", 1): [0.4, 0.6], ("entropy", 1): [0.4]}
    summary = summary_table(cycles_of(curves))
    gain = metric_row(summary, "entropy", "final_clean_accuracy_gain")
    assert (gain["value"], gain["n_seeds"]) == pytest.approx((0.2, 1))
    assert metric_row(summary, "entropy", "final_robust_accuracy_gain")["value"] == pytest.approx(0.1)


def test_a_seed_without_a_query_is_left_out_of_the_gain() -> None:
    curves = {("random", seed): [0.4, 0.6] for seed in range(3)} | {("entropy", seed): [0.4, 0.8] for seed in range(2)}
    summary = summary_table(cycles_of(curves | {("entropy", 2): [0.4]}))
    gain = metric_row(summary, "entropy", "mean_clean_accuracy_gain")
    assert gain["value"] == pytest.approx(0.1)
    assert gain["n_seeds"] == 2
    # there is no interval, because two of three seeds are not a random sample of all
    assert np.isnan(gain["low"])


def test_curves_are_means_over_the_seeds_for_cycles_that_all_seeds_reached() -> None:
    table = curve_table(cycles_of({("random", 0): [0.4, 0.6], ("random", 1): [0.6]}))
    clean = table[(table["metric"] == "clean_accuracy") & (table["acquisition"] == "random")]
    assert clean[["cycle", "n_labelled", "value"]].to_numpy().tolist() == [[0, 10, 0.5]]
