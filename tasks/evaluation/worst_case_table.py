"""Accuracy, balanced accuracy and recalls in the worst case, with intervals by group."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tasks.statistics.balanced import balanced_accuracies
from tasks.statistics.intervals import Estimate
from tasks.statistics.rates import rate_estimates

POINT = ["target", "operating_point", "threat_model", "eps"]
"""Columns that identify a worst case."""


def worst_case_table(outcomes: pd.DataFrame, classes: Sequence[str], positive: int) -> pd.DataFrame:
    """Return the worst case of each target, operating point and threat model at each eps.

    Columns: target, operating_point, threat_model, eps, metric, value, low, high (95 % interval by group), n (images)
    and n_groups. The metrics are ``accuracy``, ``balanced_accuracy`` and the recalls: for two classes ``sensitivity``
    and ``specificity``, otherwise ``recall_<class>``; and with rounding of the adversarial images to 8 bits
    ``accuracy_8bit`` and ``balanced_accuracy_8bit``. Of a random target they are means of the expected accuracies of
    the images. The noise of their samples is part of the spread between groups, and so of the intervals.

    Args:
        outcomes: of :func:`tasks.outcomes.worst_case.worst_case_outcomes`.
        classes: names of the classes.
        positive: label of the positive class.
    """
    parts = []
    for names, rows in outcomes.groupby(POINT[:-1], sort=False):
        by_image, rounded = (
            rows.pivot(index="image", columns="eps", values=values).sort_index(axis=1)
            for values in ("robust_correct", "robust_correct_8bit")
        )
        images = rows.drop_duplicates("image").set_index("image").loc[by_image.index]
        labels, groups = images["label"].to_numpy(), images["group"].to_numpy()
        estimates: dict[str, list[Estimate]] = {}
        n_of: dict[str, np.ndarray] = {}
        for suffix, table in (("", by_image), ("_8bit", rounded.dropna())):
            is_in = by_image.index.isin(table.index)
            if not is_in.any():
                continue
            correct = table.to_numpy(dtype=np.float64).T
            estimates |= {
                f"accuracy{suffix}": rate_estimates(correct, groups[is_in]),
                f"balanced_accuracy{suffix}": balanced_accuracies(correct, labels[is_in], groups[is_in]),
            }
            n_of |= dict.fromkeys((f"accuracy{suffix}", f"balanced_accuracy{suffix}"), is_in)
        correct = by_image.to_numpy(dtype=np.float64).T
        for label in range(len(classes)):
            is_label = labels == label
            metric = recall_name(label, classes, positive)
            estimates[metric], n_of[metric] = rate_estimates(correct * is_label, groups, is_label[None]), is_label
        point = dict(zip(POINT, names, strict=False))
        parts += [
            {**point, "eps": float(value), "metric": metric, **found._asdict()}
            | {"n": int(n_of[metric].sum()), "n_groups": len(set(groups[n_of[metric]]))}
            for metric, of_metric in estimates.items()
            for value, found in zip(by_image.columns, of_metric, strict=True)
        ]
    return pd.DataFrame(parts)


def recall_name(label: int, classes: Sequence[str], positive: int) -> str:
    """Name of the recall of a class: sensitivity and specificity for two classes."""
    if len(classes) == 2:
        return "sensitivity" if label == positive else "specificity"
    return f"recall_{classes[label]}"


def is_recall_name(metric: str) -> bool:
    """Return whether a metric is the recall of a class, see :func:`recall_name`; a class can be named ``accuracy``."""
    return metric in ("sensitivity", "specificity") or metric.startswith("recall_")


def constant_accuracy(table: pd.DataFrame) -> float:
    """Balanced accuracy of a constant prediction: 1 / number of classes that have images.

    Args:
        table: of :func:`worst_case_table`.
    """
    is_recall = table["metric"].map(is_recall_name) & (table["n"] > 0)
    return 1 / table.loc[is_recall, "metric"].nunique()


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
