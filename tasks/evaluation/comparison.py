"""Comparison of the targets: worst-case robust accuracy, rank, and paired tests on the same images."""

import numpy as np
import pandas as pd
from scipy.special import bdtr

from tasks.records.vocabulary import CLEAN
from tasks.statistics.intervals import wilson
from tasks.statistics.paired import mcnemar

COLUMNS = (
    *("threat_model", "eps", "rank", "target", "n"),
    *("clean_accuracy", "clean_accuracy_low", "clean_accuracy_high"),
    *("robust_accuracy", "robust_accuracy_low", "robust_accuracy_high"),
    *("next_target", "n_only_this_correct", "n_only_next_correct", "p_value"),
    *("n_parameters", "multiply_adds", "n_eot_samples", "n_warn", "n_fail"),
)


def comparison_table(records: pd.DataFrame, outcomes: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """All targets ranked by worst-case robust accuracy, at each threat model and eps.

    Rows are sorted by threat model, eps and rank; rank 1 has the highest robust accuracy, ties are resolved by clean
    accuracy, then by name. Accuracies are of the attacked images, with Wilson's 95 % intervals. Each target is compared
    with the ``next_target`` in rank on the same images: the numbers of images that only one of the two classifies
    correctly, and the p-value of McNemar's test. The last target has no comparison.

    Args:
        records: as written by the attack steps.
        outcomes: of :func:`tasks.records.worst_case.worst_case_outcomes`.
        costs: ``n_parameters``, ``multiply_adds``, ``n_eot_samples``, ``n_warn`` and ``n_fail`` by target.
    """
    correct = outcomes.pivot(index=["threat_model", "eps", "image"], columns="target", values="robust_correct")
    clean = records[records["attack"] == CLEAN].pivot(index="image", columns="target", values="correct")
    rows = []
    for (threat_model, eps), of_images in correct.groupby(level=["threat_model", "eps"], sort=True):
        of_images = of_images.dropna(axis="columns", how="all").astype(bool).droplevel(["threat_model", "eps"])
        clean_accuracy = clean.loc[of_images.index, of_images.columns].mean()
        order = sorted(
            map(str, of_images), key=lambda target: (-of_images[target].mean(), -clean_accuracy[target], target)
        )
        for rank, target in enumerate(order, start=1):
            row = {"threat_model": threat_model, "eps": eps, "rank": rank, "target": target, "n": len(of_images)}
            row |= {"clean_accuracy": clean_accuracy[target], "robust_accuracy": of_images[target].mean()}
            if rank < len(order):
                row |= {"next_target": order[rank], **_paired(of_images[target], of_images[order[rank]])}
            rows.append(row)
    table = pd.DataFrame(rows)
    for name in ("clean_accuracy", "robust_accuracy"):
        n_correct = (table[name] * table["n"]).round()
        table[f"{name}_low"], table[f"{name}_high"] = wilson(n_correct, table["n"])
    counts = {"n_only_this_correct": "Int64", "n_only_next_correct": "Int64"}
    return table.join(costs, on="target").reindex(columns=list(COLUMNS)).astype(counts)


def minimum_perturbation_table(minimum_eps: pd.DataFrame) -> pd.DataFrame:
    """Size of the smallest perturbations that break the images of each target, over correctly classified images.

    One row for each target: ``n`` correctly classified images; ``unbroken_fraction``, the fraction of them that no
    attack breaks; the quartiles ``q25``, ``median`` and ``q75`` of the smallest perturbation found, in 1/255, infinite
    beyond the grid; the 95 % interval of the median from order statistics, ``median_low`` and ``median_high`` (Conover
    1999, "Practical Nonparametric Statistics", section 3.2). NaN where no image is correct, or too few for an interval.

    Args:
        minimum_eps: the smallest eps that breaks each image, as written by the attack steps.
    """
    rows = []
    by_image = minimum_eps.groupby(["target", "image"], sort=False)["minimum_perturbation"].min()
    for target, of_target in by_image.groupby("target", sort=False):
        found = of_target[of_target > 0]
        row = {"target": target, "n": len(found), "unbroken_fraction": np.isinf(found).mean()}
        # quartiles are values of images, since the mean of a finite and an infinite value is infinite
        row |= dict(
            zip(["q25", "median", "q75"], found.quantile([0.25, 0.5, 0.75], interpolation="higher"), strict=True)
        )
        rows.append(row | dict(zip(["median_low", "median_high"], _median_interval(found), strict=True)))
    columns = ["target", "n", "unbroken_fraction", "q25", "median", "median_low", "median_high", "q75"]
    return pd.DataFrame(rows).reindex(columns=columns)


def certified_accuracy_table(certified: pd.DataFrame, eps: list[float]) -> pd.DataFrame:
    """Certified accuracy: the fraction of images that are correct, with a certified radius of at least eps.

    One row for each target and eps: target, eps (in 1/255, of an L2 ball as ``attack.eps`` counts it, containing the
    L-infinity ball of the same eps), n, accuracy and its 95 % Wilson interval.

    Args:
        certified: as written by the step attack_defence.
        eps: grid, rising; 0 for the accuracy of the smoothed classifier itself.
    """
    rows = []
    for target, found in certified.groupby("target", sort=False):
        correct = found["prediction"] == found["label"]
        for value in eps:
            n_correct = int((correct & (found["certified_eps"] >= value)).sum())
            low, high = wilson(n_correct, len(found))
            row = {"target": target, "eps": value, "n": len(found), "accuracy": n_correct / len(found)}
            rows.append(row | {"accuracy_low": float(low), "accuracy_high": float(high)})
    columns = ["target", "eps", "n", "accuracy", "accuracy_low", "accuracy_high"]
    return pd.DataFrame(rows, columns=columns)


def _median_interval(values: "pd.Series[float]") -> tuple[float, float]:
    """95 % interval of the median from order statistics; NaN for too few values."""
    n = len(values)
    # order statistics below which the median lies with a probability of at most 2.5 %
    n_beyond = int((bdtr(np.arange(n), n, 0.5) <= 0.025).sum())
    if not n_beyond:
        return np.nan, np.nan
    ordered = np.sort(values)
    return float(ordered[n_beyond - 1]), float(ordered[n - n_beyond])


def _paired(first: "pd.Series[bool]", second: "pd.Series[bool]") -> dict[str, float]:
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    p_value = mcnemar(only_first, only_second)
    return {"n_only_this_correct": only_first, "n_only_next_correct": only_second, "p_value": p_value}
