"""Robustness tables, computed from the records alone."""

from typing import Any

import numpy as np
import pandas as pd

from tasks.records.vocabulary import CLEAN, CURVE, POINT
from tasks.statistics.confusion import confusion_matrix, precision_recall_f1
from tasks.statistics.intervals import wilson


def robustness_table(records: pd.DataFrame, classes: list[str], positive: int) -> pd.DataFrame:
    """One row for each target, threat model, attack and eps, in the order of the records.

    Clean rows are of all test images. If fewer images were attacked, further clean rows of the attacked images come
    last: curves begin with them, so that all points of a curve are of the same images.

    Beside the columns of ``POINT``: ``n`` images; ``accuracy`` and its 95 % Wilson interval ``_low``, ``_high``;
    ``attack_success_rate`` over the ``n_clean_correct`` images that are correct unchanged, with its interval (NaN for
    clean rows, and if there are no such images); ``precision``, ``recall``, ``f1`` of the positive class, and
    ``_macro`` over all classes if there are more than two; ``top1_error``; means of entropy (nats), margin, linf, l2
    (units of the value range) and reconstruction error (NaN without a purifier); ``success_8bit_fraction``, the
    fraction of the successful adversarial images that stay successful after rounding to 8 bits (NaN if there are none).

    Args:
        records: as written by the attack steps.
        classes: class names in the order of the labels.
        positive: label of the positive class.

    Raises:
        ValueError: a target has ``transfer`` records and no ``adaptive`` ones.
    """
    _check_threat_models(records)
    is_clean = records["attack"] == CLEAN
    of_attacked = records[is_clean & records["image"].isin(records["image"][~is_clean])]
    parts = [records] if len(of_attacked) == is_clean.sum() else [records, of_attacked]
    table = pd.DataFrame(
        {**dict(zip(POINT, point, strict=True)), **_metrics_of(group, classes, positive)}
        for part in parts
        for point, group in part.groupby(POINT, sort=False)
    )
    table = _with_rates(table)
    macro = ["precision_macro", "recall_macro", "f1_macro"] if len(classes) > 2 else []
    columns = [
        *POINT,
        *("n", "accuracy", "accuracy_low", "accuracy_high"),
        *("n_clean_correct", "attack_success_rate", "attack_success_rate_low", "attack_success_rate_high"),
        *("precision", "recall", "f1", *macro, "top1_error", "mean_entropy", "mean_margin"),
        *("mean_linf", "mean_l2", "mean_reconstruction_error", "success_8bit_fraction"),
    ]
    return table[columns]


def search_table(minimum_eps: pd.DataFrame, eps: list[float], columns: list[str]) -> pd.DataFrame:
    """Accuracy under the searches for the smallest eps: rows as of :func:`robustness_table`, a curve for each search.

    An image counts as correct at every eps below the smallest that breaks it. Values that need logits at an eps
    (entropy, precision and so on) are NaN. Searches on a part of the images have no curve.

    Args:
        minimum_eps: as written by the attack steps; infinite where no eps breaks the image.
        eps: the grid, rising.
        columns: of the robustness table.
    """
    rows = []
    n_images = minimum_eps.groupby("target")["image"].nunique()
    for names, group in minimum_eps.groupby([*CURVE, "norm"], sort=False):
        if len(group) < n_images[group["target"].iloc[0]]:
            continue
        for value in eps:
            broken, wrong = group["minimum_eps"] <= value, group["minimum_eps"] == 0
            point = {**dict(zip([*CURVE, "norm"], names, strict=True)), "eps": value}
            counts = {"n": len(group), "n_correct": (~broken).sum()}
            counts |= {"n_clean_correct": (~wrong).sum(), "n_success": (broken & ~wrong).sum()}
            rows.append(point | counts)
    return _with_rates(pd.DataFrame(rows)).reindex(columns=columns)


def _with_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Add accuracy, error and attack success rate, with intervals, to counts of images."""
    # clean rows are not attack attempts
    attempts = table["n_clean_correct"].where(table["attack"] != CLEAN, 0)
    low, high = wilson(table["n_correct"], table["n"])
    success_low, success_high = wilson(table["n_success"], attempts)
    accuracy = table["n_correct"] / table["n"]
    return table.assign(
        accuracy=accuracy,
        accuracy_low=low,
        accuracy_high=high,
        top1_error=1 - accuracy,
        attack_success_rate=table["n_success"] / attempts.where(attempts > 0),
        attack_success_rate_low=success_low,
        attack_success_rate_high=success_high,
    )


def clean_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The clean row of each target over all test images; the clean rows of the attacked images come after these."""
    return table[table["attack"] == CLEAN].drop_duplicates("target").set_index("target", drop=False)


def _check_threat_models(records: pd.DataFrame) -> None:
    models = {target: set(group) - {"none"} for target, group in records.groupby("target", sort=False)["threat_model"]}
    if alone := [target for target, names in models.items() if names == {"transfer"}]:
        raise ValueError(f"records of {alone} hold transfer attacks without adaptive ones. Run the step attack again")


def _metrics_of(group: pd.DataFrame, classes: list[str], positive: int) -> dict[str, Any]:
    confusion = confusion_matrix(group["label"].to_numpy(), group["prediction"].to_numpy(), len(classes))
    of_classes = precision_recall_f1(confusion)
    return {
        "n": len(group),
        "n_correct": group["correct"].sum(),
        "n_clean_correct": group["clean_correct"].sum(),
        # a check compares this definition with the records
        "n_success": (group["success"] & group["clean_correct"]).sum(),
        **{name: values[positive] for name, values in of_classes.items()},
        **{f"{name}_macro": values.mean() for name, values in of_classes.items()},
        "success_8bit_fraction": 1 - group.loc[group["success"], "correct_8bit"].mean(),
        **{f"mean_{name}": group[name].mean() for name in ("entropy", "margin", "linf", "l2", "reconstruction_error")},
    }


def confusion_table(records: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """Confusion matrix of every point in long format: target, threat_model, attack, eps, actual, predicted, n."""
    names = np.array(classes, dtype=object)
    parts = []
    for point, group in records.groupby([*CURVE, "eps"], sort=False):
        counts = confusion_matrix(group["label"].to_numpy(), group["prediction"].to_numpy(), len(classes))
        actual, predicted = np.indices(counts.shape)
        parts.append(
            pd.DataFrame(
                {
                    **dict(zip([*CURVE, "eps"], point, strict=True)),
                    "actual": names[actual.ravel()],
                    "predicted": names[predicted.ravel()],
                    "n": counts.ravel(),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def curves_of(table: pd.DataFrame) -> dict[tuple[str, str, str], pd.DataFrame]:
    """Rows of each curve by (target, threat_model, attack): the same images unchanged (eps 0), then by rising eps."""
    clean = table[table["attack"] == CLEAN]
    curves = {}
    for names, group in table[table["attack"] != CLEAN].groupby(CURVE, sort=False):
        target, threat_model, attack = map(str, names)
        same_images = clean[(clean["target"] == target) & (clean["n"] == group["n"].iloc[0])]
        points = pd.concat([same_images, group.sort_values("eps")], ignore_index=True)
        curves[target, threat_model, attack] = points
    return curves


def curve_table(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One metric of every curve in the format of ``dvc plots``: curve (``target/threat_model/attack``), eps, value."""
    curves = [points[["eps", metric]].assign(curve="/".join(names)) for names, points in curves_of(table).items()]
    rows = pd.concat(curves, ignore_index=True).rename(columns={metric: "value"})
    return rows.dropna(subset=["value"])[["curve", "eps", "value"]]
