"""Accuracy, balanced accuracy and recalls in the worst case, with intervals by group."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tasks.records.worst_case import robust_outcomes
from tasks.statistics.balanced import balanced_accuracies
from tasks.statistics.rates import rate_estimates

POINT = ["target", "operating_point", "threat_model", "eps"]
"""Columns that identify a worst case."""


def worst_case_table(
    worst: pd.DataFrame, eps: Sequence[float], classes: Sequence[str], positive: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the worst case of each target, operating point and threat model at each eps.

    Args:
        worst: of :func:`tasks.records.worst_case.smallest_breaking_eps`.
        eps: the grid, in 1/255. Eps 0, the unchanged images, is added.
        classes: names of the classes.
        positive: label of the positive class.

    Returns:
        The table: target, operating_point, threat_model, eps, metric, value, low, high (95 % interval by group), n
        (images) and n_groups. The metrics are ``accuracy``, ``balanced_accuracy`` and the recalls: for two classes
        ``sensitivity`` and ``specificity``, otherwise ``recall_<class>``. And the outcomes of each image
        (:func:`tasks.records.worst_case.robust_outcomes`), from which it was computed.
    """
    grid = [0.0, *eps]
    outcomes = robust_outcomes(worst, grid)
    parts = []
    for names, rows in outcomes.groupby(POINT[:-1], sort=False):
        by_image = rows.pivot(index="image", columns="eps", values="robust_correct")[grid]
        images = rows.drop_duplicates("image").set_index("image").loc[by_image.index]
        labels, groups = images["label"].to_numpy(), images["group"].to_numpy()
        correct = by_image.to_numpy(dtype=bool).T
        estimates = {
            "accuracy": rate_estimates(correct, groups),
            "balanced_accuracy": balanced_accuracies(correct, labels, groups),
        }
        n_of, groups_of = dict.fromkeys(estimates, len(labels)), dict.fromkeys(estimates, len(set(groups)))
        for label in range(len(classes)):
            is_label = labels == label
            metric = recall_name(label, classes, positive)
            estimates[metric] = rate_estimates(correct & is_label, groups, is_label[None])
            n_of[metric], groups_of[metric] = int(is_label.sum()), len(set(groups[is_label]))
        point = dict(zip(POINT, names, strict=False))
        parts += [
            {**point, "eps": value, "metric": metric, "value": found.value, "low": found.low, "high": found.high}
            | {"n": n_of[metric], "n_groups": groups_of[metric]}
            for metric, of_metric in estimates.items()
            for value, found in zip(grid, of_metric, strict=True)
        ]
    return pd.DataFrame(parts), outcomes


def recall_name(label: int, classes: Sequence[str], positive: int) -> str:
    """Name of the recall of a class: sensitivity and specificity for two classes."""
    if len(classes) == 2:
        return "sensitivity" if label == positive else "specificity"
    return f"recall_{classes[label]}"


def value_at(table: pd.DataFrame, metric: str, **point: object) -> "pd.Series[float]":
    """Row of one metric at one point: value, low, high, n, n_groups.

    Args:
        table: of :func:`worst_case_table`.
        metric: its name.
        point: target, operating_point, threat_model and eps.
    """
    rows = table[np.logical_and.reduce([table["metric"] == metric, *(table[key] == of for key, of in point.items())])]
    assert len(rows) == 1, (metric, point, len(rows))
    row: pd.Series[float] = rows.iloc[0]
    return row
