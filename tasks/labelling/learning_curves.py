"""Learning curves of active learning: accuracy by the number of labels, and label efficiency against random queries."""

from pathlib import Path

import numpy as np
import pandas as pd

from tasks.statistics.calibration import expected_calibration_error
from tasks.statistics.intervals import estimate_over_seeds, wilson

RANDOM = "random"
"""Acquisition function of the baseline."""
ALL_LABELS = "all labels"
"""Name of the classifier that is trained on the true labels of all training images."""
TARGETS = (0.9, 0.95)
"""Shares of the clean accuracy with all labels, for which the number of labels is computed."""
RUN = ["acquisition", "seed"]
"""Columns that identify a run."""


def cycle_table(predictions: pd.DataFrame, queries: pd.DataFrame, pools: pd.DataFrame, positive: int) -> pd.DataFrame:
    """Return one row for each acquisition function, seed and cycle, in the order of ``pools``.

    Accuracies have their 95 % Wilson interval in ``_low`` and ``_high``. Values without images are NaN. Columns:

    - ``acquisition``, ``seed``, ``cycle``
    - ``n_labelled``: size of the labelled set; ``n_queried``: images of this cycle's query
    - ``query_accuracy``: accuracy on the query of the classifier that selected it
    - ``assigned_label_accuracy``: fraction of correct labels among those that the oracle assigned to the query
    - ``positive_fraction``: fraction of the positive class in the query
    - ``clean_accuracy``, ``ece``: on ``n_test`` images
    - ``robust_accuracy``: on the ``n_attacked`` images that were attacked
    - ``accuracy_gap``: clean minus robust accuracy of the attacked images
    - ``mean_pool_entropy``: mean entropy in nats of the predictions for the ``n_pool`` images without a label

    Args:
        predictions: one row for each function, seed, cycle and test image: ``label``, ``predicted``, ``confidence``,
            ``robust_correct`` (1: correct with and without attack; NaN: not attacked).
        queries: one row for each queried image: ``label``, ``predicted`` by the classifier that selected it, and
            ``assigned_label``, the label that the oracle assigned.
        pools: one row for each function, seed and cycle: ``n_labelled``, ``n_pool``, ``mean_pool_entropy``.
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
        | _accuracy("query_accuracy", query["predicted"] == label)
        | {
            "assigned_label_accuracy": (query["assigned_label"] == label).mean(),
            "positive_fraction": (label == positive).mean(),
        }
    )


def _test_metrics(predictions: pd.DataFrame) -> dict[str, float]:
    is_correct = predictions["predicted"] == predictions["label"]
    is_attacked = predictions["robust_correct"].notna()
    robust = predictions.loc[is_attacked, "robust_correct"] == 1
    weights = np.ones((1, len(predictions)))
    ece = expected_calibration_error(predictions["confidence"].to_numpy(), is_correct.to_numpy(), weights)
    return (
        {"n_test": len(predictions), "n_attacked": int(is_attacked.sum())}
        | _accuracy("clean_accuracy", is_correct)
        | _accuracy("robust_accuracy", robust)
        | {"accuracy_gap": is_correct[is_attacked].mean() - robust.mean(), "ece": float(ece[0])}
    )


def _accuracy(name: str, is_correct: "pd.Series[bool]") -> dict[str, float]:
    low, high = wilson(is_correct.sum(), len(is_correct))
    return {name: is_correct.mean(), f"{name}_low": float(low), f"{name}_high": float(high)}


def curve_table(cycles: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over the seeds, one row for each acquisition function, cycle and metric.

    Columns: ``value``; ``low`` and ``high``, Student's 95 % interval over the seeds; ``std``, their standard deviation.
    The last three are NaN with one seed. Cycles that some seeds did not reach are left out.

    Args:
        cycles: of :func:`cycle_table`.
    """
    metrics = [
        "query_accuracy",
        "clean_accuracy",
        "robust_accuracy",
        "accuracy_gap",
        "ece",
        "mean_pool_entropy",
        "positive_fraction",
    ]
    n_seeds = cycles["seed"].nunique()
    rows = []
    for (acquisition, cycle), runs in cycles.groupby(["acquisition", "cycle"], sort=False):
        if len(runs) == n_seeds:
            key = {"acquisition": acquisition, "cycle": cycle, "n_labelled": runs["n_labelled"].mean()}
            rows += [key | {"metric": metric} | estimate_over_seeds(runs[metric].to_numpy()) for metric in metrics]
    return pd.DataFrame(rows)


def summary_table(cycles: pd.DataFrame) -> pd.DataFrame:
    """Return the label efficiency, one row for each acquisition function and metric.

    The columns are those of :func:`curve_table` and ``n_seeds``, the number of seeds with a value. There is an interval
    only if all seeds have a value. Metrics:

    - ``mean_clean_accuracy``, ``mean_robust_accuracy``: mean accuracy over the number of labels, from the first to the
      last number that all runs of the seed reached (area under the learning curve over its width)
    - ``mean_clean_accuracy_gain``, ``mean_robust_accuracy_gain``: these minus those of random queries with the same
      seed
    - ``n_labels_90``, ``n_labels_95``: number of labels at which the clean accuracy reaches this percentage of the
      clean accuracy with all labels, linear between cycles
    - ``n_labels_90_saved``, ``n_labels_95_saved``: those of random queries minus these
    - ``final_clean_accuracy``, ``final_robust_accuracy``, ``final_accuracy_gap``: accuracies after the last cycle, and
      their difference
    - ``final_clean_accuracy_gain``, ``final_robust_accuracy_gain``: these minus those of random queries with the same
      number of labels

    Args:
        cycles: of :func:`cycle_table`, with the rows of :data:`RANDOM` and :data:`ALL_LABELS`.
    """
    curves = cycles[cycles["acquisition"] != ALL_LABELS]
    runs = _run_metrics(cycles)
    final_labels = curves.groupby(RUN)["n_labelled"].last()
    n_seeds = cycles["seed"].nunique()
    baseline = runs.loc[RANDOM]
    rows = []
    for acquisition in dict.fromkeys(curves["acquisition"]):
        own = runs.loc[acquisition]
        metrics = {str(name): own[name] for name in own}
        if acquisition != RANDOM:
            metrics |= {
                f"{name}_gain": own[name] - baseline[name] for name in ("mean_clean_accuracy", "mean_robust_accuracy")
            }
            is_comparable = final_labels.loc[acquisition] == final_labels.loc[RANDOM]
            for name in ("final_clean_accuracy", "final_robust_accuracy"):
                metrics[f"{name}_gain"] = (own[name] - baseline[name]).where(is_comparable)
            metrics |= {f"{name}_saved": baseline[name] - own[name] for name in ("n_labels_90", "n_labels_95")}
        for name, values in metrics.items():
            known = values.dropna().to_numpy()
            estimate = estimate_over_seeds(known)
            if len(known) < n_seeds:
                # the seeds with a value are not a random sample of all seeds
                estimate |= dict.fromkeys(("low", "high", "std"), float("nan"))
            rows.append({"acquisition": acquisition, "metric": name} | estimate | {"n_seeds": len(known)})
    return pd.DataFrame(rows)


def _run_metrics(cycles: pd.DataFrame) -> pd.DataFrame:
    """Return the metrics of :func:`summary_table` that need no baseline, one row for each run."""
    curves = cycles[cycles["acquisition"] != ALL_LABELS]
    with_all_labels = cycles[cycles["acquisition"] == ALL_LABELS].set_index("seed")["clean_accuracy"].to_dict()
    common_labels = curves.groupby(RUN)["n_labelled"].max().groupby("seed").min().to_dict()
    metrics: dict[tuple[str, int], dict[str, float]] = {}
    for (acquisition, seed), run in curves.groupby(RUN, sort=False):
        labels = run["n_labelled"].to_numpy(float)
        clean, robust = (run[f"{kind}_accuracy"].to_numpy(float) for kind in ("clean", "robust"))
        last, n_common = run.iloc[-1], float(common_labels[seed])
        metrics[str(acquisition), int(str(seed))] = (
            {
                "mean_clean_accuracy": _area(labels, clean, n_common),
                "mean_robust_accuracy": _area(labels, robust, n_common),
            }
            | {
                f"n_labels_{100 * share:.0f}": _reached(labels, clean, share * with_all_labels[seed])
                for share in TARGETS
            }
            | {f"final_{kind}_accuracy": last[f"{kind}_accuracy"] for kind in ("clean", "robust")}
            | {"final_accuracy_gap": last["accuracy_gap"]}
        )
    return pd.DataFrame(metrics.values(), index=pd.MultiIndex.from_tuples(metrics, names=RUN))


def plot_tables(curves: pd.DataFrame, folder: Path) -> dict[Path, pd.DataFrame]:
    """Return the tables for ``dvc plots``: ``curve`` (the acquisition function), ``n_labelled`` and ``value``."""
    learned = curves[curves["acquisition"] != ALL_LABELS].rename(columns={"acquisition": "curve"})
    metrics = learned.dropna(subset=["value"]).groupby("metric", sort=False)
    return {folder / f"{metric}.csv": rows[["curve", "n_labelled", "value"]] for metric, rows in metrics}


def _area(labels: np.ndarray, accuracy: np.ndarray, n_common: float) -> float:
    """Return the mean accuracy over the number of labels up to ``n_common``; NaN if the curve has one point there."""
    if n_common <= labels[0]:
        return float("nan")
    at = np.append(labels[labels < n_common], n_common)
    heights = np.interp(at, labels, accuracy)
    return float(np.trapezoid(heights, at) / (at[-1] - at[0]))


def _reached(labels: np.ndarray, accuracy: np.ndarray, target: float) -> float:
    """Return the number of labels at which the accuracy first reaches the target; NaN if it does not."""
    above = np.flatnonzero(accuracy >= target)
    if not above.size:
        return float("nan")
    first = above[0]
    if first == 0:
        return float(labels[0])
    part = (target - accuracy[first - 1]) / (accuracy[first] - accuracy[first - 1])
    return float(labels[first - 1] + part * (labels[first] - labels[first - 1]))
