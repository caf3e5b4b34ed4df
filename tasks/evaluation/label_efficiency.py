"""Label efficiency of acquisition functions: accuracies over the number of labels, compared with random queries."""

from typing import Any

import numpy as np
import pandas as pd

from tasks.evaluation.learning_curves import RANDOM, RUN
from tasks.labelling.names import ALL_LABELS
from tasks.statistics.intervals import UNDEFINED
from tasks.statistics.multiplicity import holm
from tasks.statistics.rates import rate_estimate
from tasks.statistics.seeds import compare_over_seeds

TARGETS = (0.9, 0.95)
"""Shares of the clean accuracy with all labels, for which the number of labels is computed."""
TESTED = ("mean_clean_accuracy_gain", "mean_robust_accuracy_gain")
"""Metrics whose differences to random are one family of tests."""

RunMetrics = dict[str, np.ndarray]
"""Metrics of one run, as the value of each test image, whose mean is the metric, ``(N,)``; NaN for images without one.
Numbers of labels are ``(1,)``."""


def efficiency_tables(cycles: pd.DataFrame, predictions: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the label efficiency: means over the seeds, and the values of every seed.

    Metrics:

    - ``mean_clean_accuracy``, ``mean_robust_accuracy``: mean accuracy over the number of labels, from the first to the
      last number that all runs of the seed reached (area under the learning curve over its width)
    - ``mean_clean_accuracy_gain``, ``mean_robust_accuracy_gain``: these minus those of random queries with the same
      seed
    - ``n_labels_90``, ``n_labels_95``: number of labels at which the clean accuracy reaches this percentage of the
      clean accuracy with all labels, interpolated linearly between cycles
    - ``n_labels_90_saved``, ``n_labels_95_saved``: those of random queries minus these
    - ``final_clean_accuracy``, ``final_robust_accuracy``, ``final_accuracy_gap``: accuracies after the last cycle, and
      their difference
    - ``final_clean_accuracy_gain``, ``final_robust_accuracy_gain``: these minus those of random queries with the same
      number of labels

    Columns of the means, one row for each acquisition function and metric:

    - ``value``: mean over the ``n_seeds`` seeds with a value; ``lowest``, ``highest``: range over these seeds
    - ``low``, ``high``: 95 % interval by group of the mean over these seeds. There is none for numbers of labels, which
      jump with the accuracies, and none if a seed has no value: the others are not a random sample.
    - ``all_seeds_low``, ``all_seeds_high``: 95 % interval of a gain for new groups and new seeds; see
      :func:`tasks.statistics.seeds.compare_over_seeds`
    - ``p_value``, ``p_value_holm``, ``n_comparisons``: of the :data:`TESTED` gains, and their correction for the family
      of this number of comparisons with random

    The values of every seed have the columns ``acquisition``, ``metric``, ``seed`` and ``value``.

    Args:
        cycles: of :func:`tasks.evaluation.learning_curves.cycle_table`, with the rows of random queries and of all
            labels.
        predictions: as there, with the column ``image``.
    """
    metrics_of = _with_gains(cycles, _run_metrics(cycles, predictions))
    groups = predictions.drop_duplicates("image").sort_values("image")["group"].to_numpy()
    n_seeds = cycles["seed"].nunique()
    means, by_seed = [], []
    for acquisition in dict.fromkeys(acquisition for acquisition, _ in metrics_of):
        runs = {seed: metrics for (name, seed), metrics in metrics_of.items() if name == acquisition}
        for metric in next(iter(runs.values())):
            known = {seed: run[metric] for seed, run in runs.items() if not np.isnan(run[metric]).all()}
            key = {"acquisition": acquisition, "metric": metric}
            by_seed += [key | {"seed": seed, "value": float(np.nanmean(values))} for seed, values in known.items()]
            means.append(key | _mean_over_seeds(metric, list(known.values()), n_seeds, groups))
    table = pd.DataFrame(means)
    is_tested = table["metric"].isin(TESTED)
    table.loc[is_tested, "p_value_holm"] = holm(table.loc[is_tested, "p_value"].to_numpy())
    table["n_comparisons"] = np.where(is_tested, is_tested.sum(), np.nan)
    return table, pd.DataFrame(by_seed, columns=["acquisition", "metric", "seed", "value"])


def _mean_over_seeds(metric: str, values: list[np.ndarray], n_seeds: int, groups: np.ndarray) -> dict[str, Any]:
    """Columns of one metric of an acquisition function. There is an interval if every seed has a value.

    Args:
        metric: its name; gains are compared with 0.
        values: of each image by seed, ``(N,)`` each; NaN where it is undefined. Only of seeds that have a value.
        n_seeds: number of all seeds.
        groups: group of each image, ``(N,)``.
    """
    of_seeds = np.array([np.nanmean(each) for each in values])
    of_these = of_all = UNDEFINED
    p_value = float("nan")
    if len(values) == n_seeds and not metric.startswith("n_labels"):
        stacked = np.stack(values)
        has_value = ~np.isnan(stacked[0])
        stacked, groups = stacked[:, has_value], groups[has_value]
        if metric.endswith("_gain"):
            of_these, of_all, p_value = compare_over_seeds(stacked, groups)
        else:
            of_these = rate_estimate(stacked.mean(axis=0).round(12), groups)
    return {
        "value": of_seeds.mean() if values else float("nan"),
        **{"low": of_these.low, "high": of_these.high, "n_seeds": len(values)},
        **{"lowest": min(of_seeds, default=float("nan")), "highest": max(of_seeds, default=float("nan"))},
        **{"all_seeds_low": of_all.low, "all_seeds_high": of_all.high},
        **{"p_value": p_value if metric in TESTED else float("nan"), "p_value_holm": float("nan")},
    }


def _run_metrics(cycles: pd.DataFrame, predictions: pd.DataFrame) -> dict[tuple[str, int], RunMetrics]:
    """Return the metrics that need no baseline, by acquisition function and seed."""
    curves = cycles[cycles["acquisition"] != ALL_LABELS]
    with_all_labels = cycles[cycles["acquisition"] == ALL_LABELS].set_index("seed")["clean_accuracy"].to_dict()
    common_labels = curves.groupby(RUN)["n_labelled"].max().groupby("seed").min().to_dict()
    predictions_of = dict(iter(predictions.sort_values(["cycle", "image"]).groupby(RUN)))
    metrics: dict[tuple[str, int], RunMetrics] = {}
    for (acquisition, seed), run in curves.groupby(RUN, sort=False):
        labels, of_run = run["n_labelled"].to_numpy(float), predictions_of[acquisition, seed]
        shape = (len(labels), -1)
        clean = (of_run["prediction"] == of_run["label"]).to_numpy(dtype=np.float64).reshape(shape)
        robust = of_run["robust_correct"].to_numpy(dtype=np.float64).reshape(shape)
        # the area is linear in the accuracies of the cycles
        weights = np.array([_area(labels, unit, float(common_labels[seed])) for unit in np.eye(len(labels))])
        accuracies = clean.mean(axis=1)
        metrics[str(acquisition), int(str(seed))] = (
            {"mean_clean_accuracy": weights @ clean, "mean_robust_accuracy": weights @ robust}
            | {
                f"n_labels_{100 * share:.0f}": np.array([_reached(labels, accuracies, share * with_all_labels[seed])])
                for share in TARGETS
            }
            | {"final_clean_accuracy": clean[-1], "final_robust_accuracy": robust[-1]}
            | {"final_accuracy_gap": clean[-1] - robust[-1]}
        )
    return metrics


def _with_gains(cycles: pd.DataFrame, runs: dict[tuple[str, int], RunMetrics]) -> dict[tuple[str, int], RunMetrics]:
    """Add the differences to random queries with the same seed."""
    final_labels = cycles[cycles["acquisition"] != ALL_LABELS].groupby(RUN)["n_labelled"].last().to_dict()
    compared = {}
    for (acquisition, seed), own in runs.items():
        compared[acquisition, seed] = own
        if acquisition == RANDOM:
            continue
        baseline = runs[RANDOM, seed]
        gains = {f"mean_{kind}_accuracy": 1.0 for kind in ("clean", "robust")}
        is_comparable = final_labels[acquisition, seed] == final_labels[RANDOM, seed]
        gains |= {f"final_{kind}_accuracy": 1.0 if is_comparable else float("nan") for kind in ("clean", "robust")}
        compared[acquisition, seed] = (
            own
            | {f"{name}_gain": factor * (own[name] - baseline[name]) for name, factor in gains.items()}
            | {f"{name}_saved": baseline[name] - own[name] for name in ("n_labels_90", "n_labels_95")}
        )
    return compared


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
