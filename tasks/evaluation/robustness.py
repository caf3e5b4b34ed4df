"""Robustness tables, computed from the records alone."""

from typing import Any

import numpy as np
import pandas as pd

from tasks.evaluation.worst_case_table import recall_name
from tasks.outcomes.attack_outputs import expected_correct, without_reference
from tasks.outcomes.names import CURVE, POINT, attack_label
from tasks.params import UNDEFENDED
from tasks.records.expected import FRESH_8BIT
from tasks.records.vocabulary import AS_TRAINED, CLEAN, SQUARE_ON_SURVIVORS
from tasks.statistics.balanced import balanced_accuracies
from tasks.statistics.confusion import confusion_matrix, precision_recall_f1
from tasks.statistics.rates import rate_estimate


def robustness_table(records: pd.DataFrame, classes: list[str], positive: int) -> pd.DataFrame:
    """One row for each target, threat model, attack, surrogate and eps, in the order of the records.

    Clean rows are of all test images. If fewer images were attacked, further clean rows of the attacked images come
    last. Curves begin with these, so all points of a curve are of the same images. The reference attacks by ART, on a
    part of the images, have no rows.

    Beside the columns of ``POINT``: ``n`` images and their ``n_groups``; ``accuracy`` and its 95 % interval by group,
    ``_low`` and ``_high``; the same for ``balanced_accuracy``; ``sensitivity`` and ``specificity`` of two classes, or
    ``recall_<class>``; ``accuracy_8bit`` with its interval, after rounding the images to 8 bits. Of a random target all
    these are means of its expected accuracies; the other columns are of its averaged predictions. Further:
    ``attack_success_rate`` over the ``n_clean_correct`` images that are correct unchanged, with its interval (NaN for
    clean rows, and if there are no such images); ``precision``, ``recall``, ``f1`` of the positive class, and
    ``macro_`` over all classes if there are more than two; ``top1_error``; means of entropy (nats), margin, linf, l2
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
    records = without_reference(records)
    is_clean = records["attack"] == CLEAN
    of_attacked = records[is_clean & records["image"].isin(records["image"][~is_clean])]
    parts = [records] if len(of_attacked) == is_clean.sum() else [records, of_attacked]
    table = pd.DataFrame(
        {**dict(zip(POINT, point, strict=True)), **_metrics_of(group, classes, positive)}
        for part in parts
        for point, group in part.groupby(POINT, sort=False)
    )
    macro = ["macro_precision", "macro_recall", "macro_f1"] if len(classes) > 2 else []
    columns = [
        *POINT,
        *("n", "n_groups", "accuracy", "accuracy_low", "accuracy_high"),
        *("accuracy_8bit", "accuracy_8bit_low", "accuracy_8bit_high"),
        *("balanced_accuracy", "balanced_accuracy_low", "balanced_accuracy_high"),
        *(recall_name(label, classes, positive) for label in range(len(classes))),
        *("n_clean_correct", "attack_success_rate", "attack_success_rate_low", "attack_success_rate_high"),
        *("precision", "recall", "f1", *macro, "top1_error", "mean_entropy", "mean_margin"),
        *("mean_linf", "mean_l2", "mean_reconstruction_error", "success_8bit_fraction"),
    ]
    return table[columns]


def search_table(
    minimum_eps: pd.DataFrame, eps: list[float], columns: list[str], classes: list[str], positive: int
) -> pd.DataFrame:
    """Accuracy under the searches for the smallest eps: rows as of :func:`robustness_table`, a curve for each search.

    An image counts as correct at every eps below the smallest that breaks it. Values that need logits at an eps
    (entropy, precision and so on) are NaN. Searches on a part of the images have no curve: the black-box attacks, and
    Square on the images that survive the suite.

    Args:
        minimum_eps: as written by the attack steps; infinite where no eps breaks the image.
        eps: the grid, rising.
        columns: of the robustness table.
        classes: class names in the order of the labels.
        positive: label of the positive class.
    """
    rows = []
    as_trained = minimum_eps[minimum_eps["operating_point"] == AS_TRAINED].assign(surrogate="")
    n_images = as_trained.groupby("target")["image"].nunique()
    for names, group in as_trained.groupby([*CURVE, "norm"], sort=False):
        curve: dict[str, Any] = dict(zip([*CURVE, "norm"], names, strict=True))
        # the table of Square on survivors has all images
        if curve["attack"] == SQUARE_ON_SURVIVORS or len(group) < n_images[curve["target"]]:
            continue
        for value in eps:
            is_broken, clean_correct = group["minimum_eps"] <= value, group["minimum_eps"] > 0
            correct = (~is_broken).astype(float)
            point = {**curve, "eps": value}
            of_classes = _by_class(correct, group["label"], group["group"], classes, positive)
            rows.append(point | of_classes | _rates(correct, clean_correct, clean_correct & is_broken, group["group"]))
    return pd.DataFrame(rows).reindex(columns=columns)


def _rates(
    correct: "pd.Series[float]", clean_correct: "pd.Series[bool]", success: "pd.Series[bool]", groups: "pd.Series[int]"
) -> dict[str, Any]:
    """Accuracy, error and attack success rate of some images, with intervals by group."""
    of_groups, tried = groups.to_numpy(), clean_correct.to_numpy(dtype=bool)
    accuracy = rate_estimate(correct.to_numpy(dtype=np.float64), of_groups)
    successes = rate_estimate(success.to_numpy(dtype=bool) & tried, of_groups, tried)
    return {
        "n": len(groups),
        "n_groups": groups.nunique(),
        **accuracy.columns("accuracy"),
        "top1_error": 1 - accuracy.value,
        "n_clean_correct": int(tried.sum()),
        **successes.columns("attack_success_rate"),
    }


def _by_class(
    correct: "pd.Series[float]", labels: "pd.Series[int]", groups: "pd.Series[int]", classes: list[str], positive: int
) -> dict[str, float]:
    """Balanced accuracy of some images with its interval by group, and the recall of each class."""
    outcomes = correct.to_numpy(dtype=np.float64)
    balanced = balanced_accuracies(outcomes[None], labels.to_numpy(), groups.to_numpy())[0]
    recalls = pd.Series(outcomes).groupby(labels.to_numpy()).mean().reindex(range(len(classes)))
    return {
        **balanced.columns("balanced_accuracy"),
        **{recall_name(label, classes, positive): recalls[label] for label in range(len(classes))},
    }


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
    correct, rounded = expected_correct(group), expected_correct(group, FRESH_8BIT)
    # clean images have no result after rounding: they have 8 bits
    known = rounded.notna().to_numpy()
    accuracy_8bit = rate_estimate(rounded.fillna(0).to_numpy(), group["group"].to_numpy(), known)
    rates = _rates(correct, group["clean_correct"], group["success"], group["group"])
    if group["attack"].iloc[0] == CLEAN:
        # clean rows are not attack attempts
        rates |= dict.fromkeys([name for name in rates if name.startswith("attack_success_rate")], np.nan)
    return {
        **rates,
        **_by_class(correct, group["label"], group["group"], classes, positive),
        **accuracy_8bit.columns("accuracy_8bit"),
        **{name: values[positive] for name, values in of_classes.items()},
        **{f"macro_{name}": values.mean() for name, values in of_classes.items()},
        "success_8bit_fraction": 1 - group.loc[group["success"], "correct_8bit"].mean(),
        **{f"mean_{name}": group[name].mean() for name in ("entropy", "margin", "linf", "l2", "reconstruction_error")},
    }


def confusion_table(records: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """Confusion matrix of every point in long format: columns of ``CURVE``, eps, actual, prediction, n."""
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
                    "prediction": names[predicted.ravel()],
                    "n": counts.ravel(),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def clean_predictions(records: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """Actual and predicted class of each test image by the undefended classifier, for the confusion matrix of DVC."""
    clean = records[(records["attack"] == CLEAN) & (records["target"] == UNDEFENDED)]
    labels = {"actual": clean["label"], "prediction": clean["prediction"]}
    return pd.DataFrame({name: numbers.map(dict(enumerate(classes))) for name, numbers in labels.items()})


def curves_of(table: pd.DataFrame) -> dict[tuple[str, str, str, str], pd.DataFrame]:
    """Rows of each curve by the values of ``CURVE``: the same images unchanged (eps 0), then by rising eps."""
    clean = table[table["attack"] == CLEAN]
    curves = {}
    for names, group in table[table["attack"] != CLEAN].groupby(CURVE, sort=False):
        target, threat_model, attack, surrogate = map(str, names)
        same_images = clean[(clean["target"] == target) & (clean["n"] == group["n"].iloc[0])]
        points = pd.concat([same_images, group.sort_values("eps")], ignore_index=True)
        curves[target, threat_model, attack, surrogate] = points
    return curves


def curve_table(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One metric of every curve in the format of ``dvc plots``: curve (``target/threat_model/attack``), eps, value."""
    curves = [
        points[["eps", metric]].assign(curve=f"{target}/{threat_model}/{attack_label(attack, surrogate)}")
        for (target, threat_model, attack, surrogate), points in curves_of(table).items()
    ]
    rows = pd.concat(curves, ignore_index=True).rename(columns={metric: "value"})
    return rows.dropna(subset=["value"])[["curve", "eps", "value"]]
