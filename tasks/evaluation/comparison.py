"""Comparison of the targets: worst-case robust accuracy, rank, and paired tests on the same images."""

from typing import Any

import numpy as np
import pandas as pd

from tasks.records.vocabulary import AS_TRAINED
from tasks.statistics.balanced import compare_balanced
from tasks.statistics.multiplicity import holm
from tasks.statistics.rates import rate_estimate

METRICS = ("accuracy", "balanced_accuracy")
COLUMNS = (
    *("operating_point", "threat_model", "eps", "rank", "target", "n", "n_groups"),
    *(f"{state}_{name}{bound}" for state in ("clean", "robust") for name in METRICS for bound in ("", "_low", "_high")),
    *("next_target", "difference", "difference_low", "difference_high", "detectable_difference"),
    *("n_only_this_correct", "n_only_next_correct", "p_value", "p_value_holm"),
    *("n_parameters", "multiply_adds", "n_eot_samples", "n_warn", "n_fail"),
)


def comparison_table(table: pd.DataFrame, outcomes: pd.DataFrame, costs: pd.DataFrame, eps: float) -> pd.DataFrame:
    """All targets ranked by balanced robust accuracy, at each operating point, threat model and eps.

    Rows are sorted by operating point, threat model, eps and rank. Rank 1 has the highest balanced robust accuracy. So
    a defence gains nothing by moving all images to one class. Ties are resolved by balanced clean accuracy, then by
    name.
    Each target is compared with the ``next_target`` in rank on the same images: ``difference`` of the balanced
    accuracies with its interval by group, the difference that these images can show, the numbers of images that only
    one of the two classifies correctly, and the p-value of the sign-flip test by group. The comparisons of one
    operating point and threat model at the reported eps are a family, whose p-values are also corrected by Holm's
    method; at other eps they are descriptive. The last target has no comparison.

    Args:
        table: of :func:`tasks.evaluation.worst_case_table.worst_case_table`.
        outcomes: of each image, from the same function.
        costs: ``n_parameters``, ``multiply_adds``, ``n_eot_samples``, ``n_warn`` and ``n_fail`` by target.
        eps: ``analyze.eps``.
    """
    keys = ["operating_point", "threat_model", "eps"]
    wide = table.pivot(index=[*keys, "target"], columns="metric", values=["value", "low", "high"])
    n = table[table["metric"] == "accuracy"].set_index([*keys, "target"])[["n", "n_groups"]]
    rows: list[dict[str, object]] = []
    for names, of_point in outcomes[outcomes["eps"] > 0].groupby(keys, sort=True):
        point, threat_model, value = names
        correct = of_point.pivot(index="image", columns="target", values="robust_correct").astype(bool)
        images = of_point.drop_duplicates("image").set_index("image").loc[correct.index]
        labels, groups = images["label"].to_numpy(), images["group"].to_numpy()
        clean, robust = (wide.xs((point, threat_model, each), level=keys) for each in (0.0, value))
        ordering = robust["value"]["balanced_accuracy"], clean["value"]["balanced_accuracy"]
        order = sorted(map(str, correct), key=lambda target: (*(-each[target] for each in ordering), target))
        numbers: dict[Any, dict[Any, Any]] = pd.DataFrame(n.xs(names, level=keys)).to_dict("index")
        for rank, target in enumerate(order, start=1):
            row = {**dict(zip(keys, names, strict=True)), "rank": rank, "target": target, **numbers[target]}
            for state, of_state in (("clean", clean), ("robust", robust)):
                for metric in METRICS:
                    for bound, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
                        row[f"{state}_{metric}{suffix}"] = of_state[bound][metric][target]
            if rank < len(order):
                following = order[rank]
                found = compare_balanced(correct[target].to_numpy(), correct[following].to_numpy(), labels, groups)
                row |= {
                    "next_target": following,
                    "difference": found.difference.value,
                    "difference_low": found.difference.low,
                    "difference_high": found.difference.high,
                    "detectable_difference": found.detectable_difference,
                    "n_only_this_correct": found.n_only_first,
                    "n_only_next_correct": found.n_only_second,
                    "p_value": found.p_value,
                }
            rows.append(row)
    compared = pd.DataFrame(rows).join(costs, on="target").reindex(columns=list(COLUMNS))
    families = compared[compared["eps"] == eps].groupby(keys[:2], sort=False)["p_value"]
    compared["p_value_holm"] = families.transform(lambda of_family: holm(of_family.to_numpy(dtype=float)))
    counts = dict.fromkeys(["n", "n_groups", "n_only_this_correct", "n_only_next_correct"], "Int64")
    return compared.astype(counts)


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
    L-infinity ball of the same eps), n, n_groups, accuracy and its 95 % interval by group.

    Args:
        certified: as written by the step attack_defence.
        eps: grid, rising; 0 for the accuracy of the smoothed classifier itself.
    """
    rows = []
    for target, found in certified.groupby("target", sort=False):
        correct = found["prediction"] == found["label"]
        for value in eps:
            accuracy = rate_estimate(
                (correct & (found["certified_eps"] >= value)).to_numpy(), found["group"].to_numpy()
            )
            row = {"target": target, "eps": value, "n": len(found), "n_groups": found["group"].nunique()}
            row |= {"accuracy": accuracy.value, "accuracy_low": accuracy.low, "accuracy_high": accuracy.high}
            rows.append(row)
    columns = ["target", "eps", "n", "n_groups", "accuracy", "accuracy_low", "accuracy_high"]
    return pd.DataFrame(rows, columns=columns)


def _median_interval(values: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """95 % interval of the median by group (Woodruff 1952, JASA 47, 635-646); NaN for too few groups.

    The bounds are the quantiles at the bounds of the fraction of images in the lower half.
    """
    if not len(values):
        return np.nan, np.nan
    in_lower_half = np.argsort(np.argsort(values, kind="stable")) < len(values) / 2
    fraction = rate_estimate(in_lower_half, groups)
    if np.isnan(fraction.low):
        return np.nan, np.nan
    shift = 0.5 - fraction.value
    low, high = (np.clip(bound + shift, 0, 1) for bound in (fraction.low, fraction.high))
    return float(np.quantile(values, low, method="higher")), float(np.quantile(values, high, method="higher"))
