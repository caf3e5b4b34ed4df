"""Accuracy, sensitivity and specificity of subgroups, and their gaps to all other images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import fisher_exact
from scipy.stats import t as student

from tasks.evaluation.check_inputs import CheckOutcome
from tasks.evaluation.checks import CheckResult
from tasks.evaluation.worst_case_table import recall_name
from tasks.params import SUBGROUP
from tasks.records.vocabulary import AS_TRAINED
from tasks.statistics.groups import group_sums, rate_deviations
from tasks.statistics.intervals import jackknife_variance
from tasks.statistics.multiplicity import SIGNIFICANCE_LEVEL, holm
from tasks.statistics.rates import combination_interval, rate_intervals

COLUMNS = [
    *("target", "threat_model", "eps", "attribute", "subgroup", "metric", "value", "low", "high", "n", "n_groups"),
    *("gap", "gap_low", "gap_high", "p_value", "adjusted_p_value", "n_comparisons"),
]


def subgroup_table(
    outcomes: pd.DataFrame, split: pd.DataFrame, eps: float, classes: Sequence[str], positive: int
) -> pd.DataFrame:
    """Return the metrics of each subgroup, and the gaps to the images of all other subgroups.

    One row for each target (as trained), threat model, eps (0 for clean images, and the reported eps), attribute,
    subgroup and metric: accuracy and the recalls. ``low`` and ``high`` are a 95 % interval by group. ``gap`` is the
    value minus that of all other images, with a 95 % interval by group
    (:func:`tasks.statistics.rates.combination_interval`). ``p_value`` is below 0.05 exactly if this interval excludes 0
    (:func:`compare_rates`); ``adjusted_p_value`` is Holm's, over the ``n_comparisons`` gaps of a target. Of two
    subgroups only the first is tested, since the gap of the other is the same.

    Args:
        outcomes: of :func:`tasks.outcomes.worst_case.worst_case_outcomes`.
        split: content of ``split.parquet``; the columns ``subgroup_<attribute>`` are the attributes.
        eps: reported eps, in 1/255.
        classes: names of the classes.
        positive: label of the positive class.
    """
    attributes = [name for name in map(str, split) if name.startswith(SUBGROUP)]
    of_trained = outcomes[(outcomes["operating_point"] == AS_TRAINED) & outcomes["eps"].isin([0.0, eps])]
    rows = []
    for (target, threat_model, value), images in of_trained.groupby(["target", "threat_model", "eps"], sort=False):
        point = {"target": target, "threat_model": threat_model, "eps": value}
        for column in attributes:
            members = split[column].to_numpy()[images["image"]]
            names = sorted(set(members))
            for number, name in enumerate(names):
                for of_metric in _metrics(images, members == name, classes, positive):
                    identity = {"attribute": column.removeprefix(SUBGROUP), "subgroup": name}
                    if len(names) == 1 or (len(names) == 2 and number == 1):
                        of_metric["p_value"] = np.nan
                    rows.append(point | identity | of_metric)
    table = pd.DataFrame(rows, columns=COLUMNS)
    for _, of_target in table.groupby("target", sort=False):
        p_values = of_target["p_value"].to_numpy(dtype=np.float64)
        table.loc[of_target.index, "adjusted_p_value"] = holm(p_values)
        table.loc[of_target.index, "n_comparisons"] = int(np.count_nonzero(~np.isnan(p_values)))
    return table


def subgroup_checks(table: pd.DataFrame) -> list[CheckResult]:
    """Check that no subgroup of a target has a significant gap.

    Args:
        table: of :func:`subgroup_table`.
    """
    name = "no subgroup is significantly worse or better than the other images"
    return [
        CheckResult(str(target), "subgroups", name, **vars(_subgroup_check(rows)))
        for target, rows in table.groupby("target", sort=False)
    ]


def _subgroup_check(rows: pd.DataFrame) -> CheckOutcome:
    tested = rows[rows["p_value"].notna()]
    if tested.empty:
        return CheckOutcome("UNVERIFIED", None, "every subgroup has too few groups of images for an interval")
    significant = tested[tested["adjusted_p_value"] < SIGNIFICANCE_LEVEL]
    family = f"Holm's correction over {int(tested['n_comparisons'].iloc[0])} comparisons"
    shown = significant if len(significant) else tested
    largest = shown.iloc[shown["gap"].abs().argmax()]
    where = (
        f"{largest['attribute']} {largest['subgroup']} has {100 * largest['gap']:+.1f} points of {largest['metric']} "
        f"({'clean images' if not largest['eps'] else 'threat model ' + largest['threat_model']}, "
        f"eps = {largest['eps']:g}/255)"
    )
    if len(significant):
        explanation = f"{len(significant)} significant gaps ({family}). The largest: {where}"
        return CheckOutcome("WARN", float(largest["gap"]), explanation)
    return CheckOutcome("PASS", float(largest["gap"]), f"no significant gap ({family}). The largest: {where}")


def _metrics(
    images: pd.DataFrame, is_member: np.ndarray, classes: Sequence[str], positive: int
) -> list[dict[str, Any]]:
    """Metrics of a subgroup and their gaps; a metric is left out if a side has no images for it."""
    correct = images["robust_correct"].to_numpy(dtype=np.float64)
    labels, groups = images["label"].to_numpy(), images["group"].to_numpy()
    counted = {"accuracy": np.ones(len(labels), dtype=bool)}
    counted |= {recall_name(label, classes, positive): labels == label for label in range(len(classes))}
    found = []
    for metric, is_counted in counted.items():
        sides = [is_counted & is_member, is_counted & ~is_member]
        if sides[0].any():
            found.append({"metric": metric} | compare_rates(correct, groups, sides))
    return found


def compare_rates(correct: np.ndarray, groups: np.ndarray, sides: Sequence[np.ndarray]) -> dict[str, Any]:
    """Compare the rates of two sets of images.

    The standard error of the test is that of the interval of the difference, on the side of 0. With the variance in the
    data instead, a set without an error would count as known exactly: 6 of 6 correct groups against 80 of 100 would
    have p < 0.001, where Fisher's exact test has 0.59.

    Args:
        correct: numbers in [0, 1], ``(N,)``.
        groups: int ``(N,)``; a group may have images in both sets.
        sides: membership in the two sets, bool ``(N,)`` each.

    Returns:
        ``value``, ``low``, ``high``, ``n`` and ``n_groups`` of the first set, and ``gap``, ``gap_low``, ``gap_high``
        and ``p_value`` of its difference to the second; NaN if there are too few groups.
    """
    counted = np.array(sides, dtype=np.float64)
    sums, sizes = group_sums(counted * correct, groups), group_sums(counted, groups)
    with np.errstate(invalid="ignore"):
        rates = sums.sum(axis=1) / sizes.sum(axis=1)
    low, high = rate_intervals(sums, sizes)
    deviations = rate_deviations(sums, sizes)
    n_groups = (sizes > 0).sum(axis=1)
    result = {"value": rates[0], "low": low[0], "high": high[0]}
    result |= {"n": int(counted[0].sum()), "n_groups": int(n_groups[0]), "gap": rates[0] - rates[1]}
    if np.isnan(low).any():
        return result | {"gap_low": np.nan, "gap_high": np.nan, "p_value": np.nan}
    signs = np.array([1.0, -1.0])
    bounds = combination_interval(signs, rates[:, None], low[:, None], high[:, None], deviations[:, None])
    variance, degrees = jackknife_variance((deviations[0] - deviations[1])[:, None])
    if variance[0] > 0:
        gap = float(result["gap"])
        half_width = gap - bounds[0][0] if gap > 0 else bounds[1][0] - gap
        p_value = 2 * student.sf(abs(gap) / half_width * student.ppf(0.975, degrees[0]), degrees[0])
    else:
        # all images of a set have one outcome: a test of whole groups
        counts = [[rate * n, (1 - rate) * n] for rate, n in zip(rates, n_groups, strict=True)]
        p_value = fisher_exact(np.rint(counts).astype(int)).pvalue
    return result | {"gap_low": float(bounds[0][0]), "gap_high": float(bounds[1][0]), "p_value": float(p_value)}
