"""Learning curves of active learning: accuracies of each cycle, and their means over the seeds."""

from pathlib import Path

import numpy as np
import pandas as pd

from tasks.labelling.names import ALL_LABELS
from tasks.statistics.balanced import balanced_accuracies
from tasks.statistics.calibration import expected_calibration_error
from tasks.statistics.rates import rate_estimate

RANDOM = "random"
"""Acquisition function of the baseline."""
RUN = ["acquisition", "seed"]
"""Columns that identify a run."""
METRICS = (
    *("query_accuracy", "clean_accuracy", "robust_accuracy", "accuracy_gap", "ece"),
    *("mean_pool_entropy", "positive_fraction"),
)
"""Metrics that have a curve."""


def cycle_table(predictions: pd.DataFrame, queries: pd.DataFrame, pools: pd.DataFrame, positive: int) -> pd.DataFrame:
    """Return one row for each acquisition function, seed and cycle, in the order of ``pools``.

    Accuracies have their 95 % interval by group in ``_low`` and ``_high``. Values without images are NaN. Columns:

    - ``acquisition``, ``seed``, ``cycle``
    - ``n_labelled``: size of the labelled set; ``n_queried``: images of this cycle's query
    - ``n_epochs``: epochs of this cycle's training
    - ``query_accuracy``: accuracy on the query of the classifier that selected it
    - ``assigned_label_accuracy``: fraction of correct labels among those that the oracle assigned to the query
    - ``positive_fraction``: fraction of the positive class in the query
    - ``clean_accuracy``, ``ece``, and ``balanced_accuracy``, the mean of the recalls of the classes without attack: on
      ``n_test`` images of ``n_test_groups`` groups
    - ``robust_accuracy``: on the ``n_attacked`` images, of ``n_attacked_groups`` groups, that were attacked
    - ``accuracy_gap``: clean minus robust accuracy of the attacked images
    - ``mean_pool_entropy``: mean entropy in nats of the predictions for the ``n_pool`` images without a label

    Args:
        predictions: one row for each function, seed, cycle and test image: ``group``, ``label``, ``prediction``,
            ``confidence``, ``robust_correct`` (1: correct with and without attack; NaN: not attacked).
        queries: one row for each queried image: ``group``, ``label``, ``prediction`` of the classifier that selected
            it, and ``assigned_label``, the label that the oracle assigned.
        pools: one row for each function, seed and cycle: ``n_labelled``, ``n_epochs``, ``n_pool``,
            ``mean_pool_entropy``.
        positive: label of the positive class.
    """
    key = [*RUN, "cycle"]
    queries_of = dict(iter(queries.groupby(key)))
    predictions_of = dict(iter(predictions.groupby(key)))
    rows = []
    for _, pool in pools.iterrows():
        cycle = tuple(pool[key])
        query = queries_of.get(cycle, queries.iloc[:0])
        rows.append(pool.to_dict() | _query_metrics(query, positive) | _test_metrics(predictions_of[cycle]))
    return pd.DataFrame(rows)


def _query_metrics(query: pd.DataFrame, positive: int) -> dict[str, float]:
    label = query["label"]
    return (
        {"n_queried": len(query)}
        | _with_interval("query_accuracy", query["prediction"] == label, query["group"])
        | {
            "assigned_label_accuracy": (query["assigned_label"] == label).mean(),
            "positive_fraction": (label == positive).mean(),
        }
    )


def _test_metrics(predictions: pd.DataFrame) -> dict[str, float]:
    outcomes, weights = _test_outcomes(predictions), np.ones((1, len(predictions)))
    is_correct, groups = outcomes["clean_accuracy"]
    ece = expected_calibration_error(predictions["confidence"].to_numpy(), is_correct.to_numpy(), weights)
    metrics: dict[str, float] = {"n_test": len(groups), "n_test_groups": groups.nunique()}
    _, groups = outcomes["robust_accuracy"]
    metrics |= {"n_attacked": len(groups), "n_attacked_groups": groups.nunique()}
    for name, (values, groups) in outcomes.items():
        metrics |= _with_interval(name, values, groups)
    labels, of_groups = (predictions[name].to_numpy() for name in ("label", "group"))
    metrics |= balanced_accuracies(is_correct.to_numpy()[None], labels, of_groups)[0].columns("balanced_accuracy")
    return metrics | {"ece": float(ece[0])}


def _test_outcomes(predictions: pd.DataFrame) -> dict[str, tuple["pd.Series[bool]", "pd.Series[int]"]]:
    """Return the outcomes whose means are the rates on test images, and the groups of their images, by metric."""
    is_correct = predictions["prediction"] == predictions["label"]
    is_attacked = predictions["robust_correct"].notna()
    is_robust = predictions["robust_correct"] == 1
    outcomes = {
        "clean_accuracy": (is_correct, is_correct | True),
        "robust_accuracy": (is_robust, is_attacked),
        "accuracy_gap": (is_correct & ~is_robust, is_attacked),
    }
    return {name: (values[images], predictions["group"][images]) for name, (values, images) in outcomes.items()}


def _with_interval(name: str, outcomes: "pd.Series[bool]", groups: "pd.Series[int]") -> dict[str, float]:
    return rate_estimate(outcomes.to_numpy(), groups.to_numpy()).columns(name)


def curve_table(cycles: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over the seeds, one row for each acquisition function, cycle and metric.

    Columns: ``value``; ``low`` and ``high``, the 95 % interval by group of the mean over these seeds, for rates on test
    images; ``lowest`` and ``highest``, the range over the seeds. Cycles that some seeds did not reach are left out.

    Args:
        cycles: of :func:`cycle_table`.
        predictions: as there; every seed has the same test images.
    """
    key = ["acquisition", "cycle"]
    predictions_of = dict(iter(predictions.groupby(key)))
    n_seeds = cycles["seed"].nunique()
    rows = []
    for (acquisition, cycle), runs in cycles.groupby(key, sort=False):
        if len(runs) < n_seeds:
            continue
        outcomes = _test_outcomes(predictions_of[acquisition, cycle])
        for metric in METRICS:
            values, interval = runs[metric], (float("nan"), float("nan"))
            if metric in outcomes:
                interval = rate_estimate(*(part.to_numpy() for part in outcomes[metric]))[1:]
            row = {"acquisition": acquisition, "cycle": cycle, "n_labelled": runs["n_labelled"].mean()}
            row |= {"metric": metric, "value": values.mean(skipna=False), "low": interval[0], "high": interval[1]}
            rows.append(row | {"lowest": values.min(), "highest": values.max()})
    return pd.DataFrame(rows)


def plot_tables(curves: pd.DataFrame, folder: Path) -> dict[Path, pd.DataFrame]:
    """Return the tables for ``dvc plots``: ``curve`` (the acquisition function), ``n_labelled`` and ``value``."""
    learned = curves[curves["acquisition"] != ALL_LABELS].rename(columns={"acquisition": "curve"})
    metrics = learned.dropna(subset=["value"]).groupby("metric", sort=False)
    return {folder / f"{metric}.csv": rows[["curve", "n_labelled", "value"]] for metric, rows in metrics}
