"""Comparison of the targets: rank by validation images, worst-case robust accuracy, paired tests on the same images."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from tasks.evaluation.worst_case_table import constant_accuracy, value_at
from tasks.params import UNDEFENDED
from tasks.records.vocabulary import AS_TRAINED
from tasks.statistics.balanced import balanced_accuracies, compare_balanced
from tasks.statistics.intervals import UNDEFINED
from tasks.statistics.multiplicity import holm
from tasks.statistics.rates import rate_estimate

METRICS = ("accuracy", "balanced_accuracy")
COLUMNS = (
    *("operating_point", "threat_model", "eps", "rank", "target"),
    *("n_validation", "n_validation_groups"),
    *(f"validation_balanced_accuracy{bound}" for bound in ("", "_low", "_high")),
    *("n", "n_groups", "n_clean_correct", "n_broken", "n_broken_adaptive"),
    *(f"{state}_{name}{bound}" for state in ("clean", "robust") for name in METRICS for bound in ("", "_low", "_high")),
    *("robust_accuracy_8bit", "robust_balanced_accuracy_8bit"),
    *("gain", "gain_low", "gain_high", "gain_over_better", "gain_over_better_low", "gain_over_better_high"),
    *("detectable_gain", "p_value_gain", "p_value_gain_holm"),
    *("next_target", "difference", "difference_low", "difference_high", "detectable_difference"),
    *("n_only_this_correct", "n_only_next_correct", "p_value", "p_value_holm"),
    *("n_parameters", "multiply_adds", "n_eot_samples", "n_warn", "n_fail"),
)
KEYS = ["operating_point", "threat_model", "eps"]
"""Columns that identify one ranking."""


def comparison_table(
    table: pd.DataFrame, outcomes: pd.DataFrame, validation: pd.DataFrame, costs: pd.DataFrame, eps: float
) -> pd.DataFrame:
    """All targets ranked by balanced robust accuracy on validation images, at each operating point, threat model, eps.

    Rows are sorted by operating point, threat model, eps and rank. Rank 1 has the highest balanced accuracy on
    validation images under the sweep, as trained, at this eps. The other columns are results on test images, which the
    rank does not use. A balanced accuracy below that of a constant prediction counts as equal to it, so a target gains
    nothing by predicting one class for all images. Ties are resolved by balanced accuracy on unchanged validation
    images, then by name; values that differ by less than 1e-9 tie, since the mean of 0.9 and 0.8 is not exactly that of
    1 and 0.7.

    Each target is compared with the undefended classifier (``gain``) and with the ``next_target`` in rank, on the same
    test images: difference of the balanced accuracies in the worst case with its interval by group, the difference that
    these images can show, and the p-value of the sign-flip test by group; with the next target also the numbers of
    images that only one of the two classifies correctly. ``gain_over_better`` is the difference from the better of the
    undefended classifier and a constant prediction. Of the images that are correct without an attack, ``n_broken`` are
    broken under the threat model, and ``n_broken_adaptive`` of the same images under ``adaptive``; of a random target,
    these are expected numbers. At the reported eps, the comparisons of each kind at one operating point and threat
    model are a family, whose p-values are also corrected by Holm's method. At other eps they are descriptive. The last
    target has no next target. The undefended classifier is left out under transfer attacks, since an attack on itself
    is adaptive.

    Args:
        table: of :func:`tasks.evaluation.worst_case_table.worst_case_table`.
        outcomes: of each image, from :func:`tasks.outcomes.worst_case.worst_case_outcomes`.
        validation: of :func:`tasks.evaluation.selection.validation_table`.
        costs: ``n_parameters``, ``multiply_adds``, ``n_eot_samples``, ``n_warn`` and ``n_fail`` by target.
        eps: ``analyze.eps``.
    """
    wide = table.pivot(index=[*KEYS, "target"], columns="metric", values=["value", "low", "high"])
    n = table[table["metric"] == "accuracy"].set_index([*KEYS, "target"])[["n", "n_groups"]]
    lowest = constant_accuracy(table)
    rows: list[dict[str, object]] = []
    # defences are also attacked by transfer from the undefended classifier, whose own accuracy is not comparable
    is_unequal = (outcomes["threat_model"] == "transfer") & (outcomes["target"] == UNDEFENDED)
    by_image = outcomes.pivot(index=[*KEYS, "image"], columns="target", values="robust_correct").astype(float)
    for names, of_point in outcomes[(outcomes["eps"] > 0) & ~is_unequal].groupby(KEYS, sort=True):
        point, threat_model, value = names
        correct = of_point.pivot(index="image", columns="target", values="robust_correct").astype(float)
        images = of_point.drop_duplicates("image").set_index("image").loc[correct.index]
        labels, groups = images["label"].to_numpy(), images["group"].to_numpy()
        clean, robust = (wide.xs((point, threat_model, each), level=KEYS) for each in (0.0, value))
        numbers: dict[Any, dict[Any, Any]] = pd.DataFrame(n.xs(names, level=KEYS)).to_dict("index")
        at = {"clean": (point, threat_model, 0.0), "adaptive": (point, "adaptive", value)}
        same_images = {state: by_image.xs(keys, level=KEYS).reindex(correct.index) for state, keys in at.items()}
        order = ranked(map(str, correct), validation, float(str(value)))
        # both kinds of comparisons have one less than targets
        n_comparisons = len(order) - 1 if value == eps else 1
        for rank, (target, validated) in enumerate(order.items(), start=1):
            row = {**dict(zip(KEYS, names, strict=True)), "rank": rank, "target": target}
            row |= validated | numbers[target]
            row |= {
                "n_clean_correct": same_images["clean"][target].sum(),
                "n_broken": (same_images["clean"][target] - correct[target]).sum(),
                "n_broken_adaptive": (same_images["clean"][target] - same_images["adaptive"][target]).sum(),
            }
            for state, of_state in (("clean", clean), ("robust", robust)):
                for metric in METRICS:
                    for bound, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
                        row[f"{state}_{metric}{suffix}"] = of_state[bound][metric][target]
            for metric in METRICS:
                # without adversarial images at this operating point and threat model, there is no such row
                row[f"robust_{metric}_8bit"] = robust["value"].get(f"{metric}_8bit", {}).get(target)
            if target != UNDEFENDED and UNDEFENDED in correct:
                both = correct[target].to_numpy(), correct[UNDEFENDED].to_numpy()
                found = compare_balanced(*both, labels, groups, n_comparisons)
                row |= found.difference.columns("gain") | found.difference.columns("gain_over_better")
                if robust["value"]["balanced_accuracy"][UNDEFENDED] < lowest:
                    for bound, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
                        row[f"gain_over_better{suffix}"] = robust[bound]["balanced_accuracy"][target] - lowest
                row |= {"detectable_gain": found.detectable_difference, "p_value_gain": found.p_value}
            if rank < len(order):
                following = list(order)[rank]
                both = correct[target].to_numpy(), correct[following].to_numpy()
                found = compare_balanced(*both, labels, groups, n_comparisons)
                row |= found.difference.columns("difference") | {
                    "next_target": following,
                    "detectable_difference": found.detectable_difference,
                    "n_only_this_correct": found.n_only_first,
                    "n_only_next_correct": found.n_only_second,
                    "p_value": found.p_value,
                }
            rows.append(row)
    compared = pd.DataFrame(rows).join(costs, on="target").reindex(columns=list(COLUMNS))
    for p_value in ("p_value", "p_value_gain"):
        families = compared[compared["eps"] == eps].groupby(KEYS[:2], sort=False)[p_value]
        compared[f"{p_value}_holm"] = families.transform(lambda of_family: holm(of_family.to_numpy(dtype=float)))
    counts = ["n_validation", "n_validation_groups", "n", "n_groups", "n_only_this_correct", "n_only_next_correct"]
    return compared.astype(dict.fromkeys(counts, "Int64"))


def ranked(targets: Iterable[str], validation: pd.DataFrame, eps: float) -> dict[str, dict[str, object]]:
    """Return the targets in the order of :func:`comparison_table`, each with its columns of the validation images.

    Args:
        targets: their names.
        validation: of :func:`tasks.evaluation.selection.validation_table`.
        eps: of the sweep.
    """
    found = {
        target: [value_at(validation, "balanced_accuracy", target=target, eps=each) for each in (eps, 0.0)]
        for target in targets
    }
    lowest = constant_accuracy(validation)
    order = sorted(found, key=lambda target: (*(-credited(each["value"], lowest) for each in found[target]), target))
    names = [f"validation_balanced_accuracy{bound}" for bound in ("", "_low", "_high")]
    return {
        target: {"n_validation": int(robust["n"]), "n_validation_groups": int(robust["n_groups"])}
        | dict(zip(names, robust[["value", "low", "high"]], strict=True))
        for target in order
        for robust in [found[target][0]]
    }


def credited(balanced_accuracy: float, constant: float) -> float:
    """Return a balanced accuracy, or that of a constant prediction if it is higher; equal values are exactly equal."""
    return round(max(balanced_accuracy, constant), 9)


def minimum_perturbation_table(minimum_eps: pd.DataFrame) -> pd.DataFrame:
    """Size of the smallest perturbations that break the images of each target, over correctly classified images.

    One row for each target: ``n`` correctly classified images; ``unbroken_fraction``, the fraction of them that no
    attack breaks; the quartiles ``q25``, ``median`` and ``q75`` of the smallest perturbation found, in 1/255, infinite
    beyond the grid; the 95 % interval of the median by group, ``median_low`` and ``median_high``. NaN where no image is
    correct, or where there are too few groups for an interval.

    Args:
        minimum_eps: the smallest eps that breaks each image, as written by the attack steps.
    """
    rows = []
    as_trained = minimum_eps[minimum_eps["operating_point"] == AS_TRAINED]
    by_image = as_trained.groupby(["target", "group", "image"], sort=False)["minimum_perturbation"].min()
    for target, of_target in by_image.groupby("target", sort=False):
        found = of_target[of_target > 0]
        groups = found.index.get_level_values("group").to_numpy()
        row = {"target": target, "n": len(found), "n_groups": len(set(groups))}
        row |= {"unbroken_fraction": np.isinf(found).mean()}
        # quartiles are values of images, since the mean of a finite and an infinite value is infinite
        row |= dict(
            zip(["q25", "median", "q75"], found.quantile([0.25, 0.5, 0.75], interpolation="higher"), strict=True)
        )
        low, high = _median_interval(found.to_numpy(), groups)
        rows.append(row | {"median_low": low, "median_high": high})
    columns = ["target", "n", "n_groups", "unbroken_fraction", "q25", "median", "median_low", "median_high", "q75"]
    return pd.DataFrame(rows).reindex(columns=columns)


def certified_accuracy_table(certified: pd.DataFrame, eps: list[float]) -> pd.DataFrame:
    """Certified accuracy: the fraction of images that are correct, with a certified radius of at least eps.

    One row for each target and eps: target, eps (in 1/255, of an L2 ball as ``attack.eps`` counts it, containing the
    L-infinity ball of the same eps), n, n_groups, accuracy and balanced_accuracy with their 95 % intervals by group,
    and largest_eps, the largest radius that the number of noisy copies can certify. Above it the accuracies are unknown
    (NaN).

    Args:
        certified: as written by the step attack_defence.
        eps: grid, rising; 0 for the accuracy of the smoothed classifier itself.
    """
    rows = []
    for target, found in certified.groupby("target", sort=False):
        correct, largest = found["prediction"] == found["label"], float(found["largest_eps"].iloc[0])
        for value in eps:
            is_certified, groups = (correct & (found["certified_eps"] >= value)).to_numpy(), found["group"].to_numpy()
            accuracy = rate_estimate(is_certified, groups)
            balanced = balanced_accuracies(is_certified[None], found["label"].to_numpy(), groups)[0]
            if value > largest:
                accuracy = balanced = UNDEFINED
            row = {"target": target, "eps": value, "n": len(found), "n_groups": found["group"].nunique()}
            row |= accuracy.columns("accuracy") | balanced.columns("balanced_accuracy") | {"largest_eps": largest}
            rows.append(row)
    rates = [f"{name}{bound}" for name in METRICS for bound in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["target", "eps", "n", "n_groups", *rates, "largest_eps"])


def _median_interval(values: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """95 % interval of the median by group (Woodruff 1952, JASA 47, 635-646); NaN for too few groups.

    The bounds are the quantiles at the bounds of the fraction of images in the lower half: values of images, the lower
    bound rounded down and the upper one up. If both are rounded up, the lower one is too high in 13 % of samples of 8
    groups.
    """
    if not len(values):
        return np.nan, np.nan
    in_lower_half = np.argsort(np.argsort(values, kind="stable")) < len(values) / 2
    fraction = rate_estimate(in_lower_half, groups)
    if np.isnan(fraction.low):
        return np.nan, np.nan
    shift = 0.5 - fraction.value
    low, high = (np.clip(bound + shift, 0, 1) for bound in (fraction.low, fraction.high))
    return float(np.quantile(values, low, method="lower")), float(np.quantile(values, high, method="higher"))
