"""Learning curves of active learning: how well a classifier does with so many labels, and which function asks best."""

from pathlib import Path

import numpy as np
import pandas as pd

from tasks.statistics.calibration import expected_calibration_error
from tasks.statistics.intervals import over_seeds, wilson

RANDOM = "random"
"""The function that all others are compared with."""
ALL_LABELS = "all labels"
"""Name of the classifier that was trained on every training image, with its true label."""
TARGETS = (0.9, 0.95)
"""Shares of the clean accuracy with all labels that are to be reached."""
RUN = ["acquisition", "seed"]


def cycle_table(tested: pd.DataFrame, queries: pd.DataFrame, pools: pd.DataFrame, positive: int) -> pd.DataFrame:
    """A row for each acquisition function, seed and cycle, in the order of ``pools``.

    Columns: ``acquisition``, ``seed``, ``cycle``; ``n_labelled`` that the classifier was trained on, ``n_queried`` of
    them in this cycle; ``labelling_accuracy``: of the classifier before, on what it was about to be told;
    ``told_accuracy``: share of this cycle's labels that are true; ``positive_share`` of the queried images;
    ``clean_accuracy`` and ``ece`` on ``n_test`` images; ``robust_accuracy`` on ``n_attacked`` of them, and ``gap``, by
    which it is below the clean accuracy of these; ``pool_entropy``: mean over ``n_pool`` images without a label, nats.
    Accuracies have their 95 % Wilson interval in ``_low`` and ``_high``. What there is nothing to tell of is NaN.

    Args:
        tested: a row for each function, seed, cycle and test image: ``label``, ``predicted``, ``confidence``,
            ``robust`` (1: right, also under attack; NaN: not attacked).
        queries: a row for each queried image: ``label``, ``predicted`` by the classifier that asks, ``told``.
        pools: a row for each function, seed and cycle: ``n_labelled``, ``n_pool``, ``pool_entropy``.
        positive: label of the positive class.
    """
    key = [*RUN, "cycle"]
    queried = dict(iter(queries.groupby(key)))
    of_cycle = dict(iter(tested.groupby(key)))
    rows = []
    for _, pool in pools.iterrows():
        at = tuple(pool[key])
        rows.append(pool.to_dict() | _of_query(queried.get(at, queries.iloc[:0]), positive) | _of_test(of_cycle[at]))
    return pd.DataFrame(rows)


def _of_query(queried: pd.DataFrame, positive: int) -> dict[str, float]:
    label = queried["label"]
    return (
        {"n_queried": len(queried)}
        | _share("labelling_accuracy", queried["predicted"] == label)
        | {"told_accuracy": (queried["told"] == label).mean(), "positive_share": (label == positive).mean()}
    )


def _of_test(tested: pd.DataFrame) -> dict[str, float]:
    is_right = tested["predicted"] == tested["label"]
    attacked = tested["robust"].notna()
    robust = tested.loc[attacked, "robust"] == 1
    once = np.ones((1, len(tested)))
    ece = expected_calibration_error(tested["confidence"].to_numpy(), is_right.to_numpy(), once)
    return (
        {"n_test": len(tested), "n_attacked": int(attacked.sum())}
        | _share("clean_accuracy", is_right)
        | _share("robust_accuracy", robust)
        | {"gap": is_right[attacked].mean() - robust.mean(), "ece": float(ece[0])}
    )


def _share(name: str, hits: "pd.Series[bool]") -> dict[str, float]:
    low, high = wilson(hits.sum(), len(hits))
    return {name: hits.mean(), f"{name}_low": float(low), f"{name}_high": float(high)}


def curve_table(cycles: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds, a row for each acquisition function, cycle and metric.

    Columns: ``value``; ``low`` and ``high``, Student's 95 % interval over the seeds; ``sd``, their standard deviation;
    the last three are NaN with one seed. Cycles that not every seed reached are left out.

    Args:
        cycles: of :func:`cycle_table`.
    """
    metrics = [
        "labelling_accuracy",
        "clean_accuracy",
        "robust_accuracy",
        "gap",
        "ece",
        "pool_entropy",
        "positive_share",
    ]
    n_seeds = cycles["seed"].nunique()
    rows = []
    for (acquisition, cycle), at in cycles.groupby(["acquisition", "cycle"], sort=False):
        if len(at) == n_seeds:
            key = {"acquisition": acquisition, "cycle": cycle, "n_labelled": at["n_labelled"].mean()}
            rows += [key | {"metric": metric} | over_seeds(at[metric].to_numpy()) for metric in metrics]
    return pd.DataFrame(rows)


def summary_table(cycles: pd.DataFrame) -> pd.DataFrame:
    """What decides, a row for each acquisition function and quantity, with the columns of :func:`curve_table`.

    Quantities: ``clean_area`` and ``robust_area``, the mean accuracy over the labels from the first to the last that
    all runs of the seed reached (area under the learning curve over its width); these minus random's of the same seed,
    ``clean_area_gain`` and ``robust_area_gain``; ``labels_90`` and ``labels_95``, labels from which the clean accuracy
    reaches that share of the one with all labels (linear between cycles; over the seeds that reach it, as many as
    ``n_seeds`` tells, without an interval unless all do); ``labels_90_saved`` and ``labels_95_saved``, by how many
    fewer these are than random's; ``final_clean`` and ``final_robust``, the accuracies, and ``final_gap``, after the
    last cycle; ``final_clean_gain`` and ``final_robust_gain`` against random, where it has as many labels then.

    Args:
        cycles: of :func:`cycle_table`, with the rows of :data:`RANDOM` and :data:`ALL_LABELS`.
    """
    curves = cycles[cycles["acquisition"] != ALL_LABELS]
    full = cycles[cycles["acquisition"] == ALL_LABELS]
    best_of = dict(zip(full["seed"], full["clean_accuracy"], strict=True))
    most_of = curves.groupby(RUN)["n_labelled"].max().groupby("seed").min().to_dict()
    n_seeds = cycles["seed"].nunique()
    of_runs: dict[tuple[str, int], dict[str, float]] = {}
    labels_at_end: dict[tuple[str, int], float] = {}
    for (acquisition, seed), run in curves.groupby(RUN, sort=False):
        labels = run["n_labelled"].to_numpy(float)
        clean, robust = (run[f"{kind}_accuracy"].to_numpy(float) for kind in ("clean", "robust"))
        last, most = run.iloc[-1], float(most_of[seed])
        of_run = {"clean_area": _area(labels, clean, most), "robust_area": _area(labels, robust, most)}
        of_run |= {f"labels_{100 * share:.0f}": _reached(labels, clean, share * best_of[seed]) for share in TARGETS}
        of_run |= {f"final_{kind}": last[f"{kind}_accuracy"] for kind in ("clean", "robust")}
        of_runs[str(acquisition), int(str(seed))] = of_run | {"final_gap": last["gap"]}
        labels_at_end[str(acquisition), int(str(seed))] = labels[-1]
    runs = pd.DataFrame(of_runs.values(), index=pd.MultiIndex.from_tuples(of_runs, names=RUN))
    random = runs.loc[RANDOM]
    rows = []
    for acquisition in dict.fromkeys(curves["acquisition"]):
        own = runs.loc[acquisition]
        quantities = {str(name): own[name] for name in own}
        if acquisition != RANDOM:
            quantities |= {f"{name}_gain": own[name] - random[name] for name in ("clean_area", "robust_area")}
            as_many = pd.Series(
                {seed: labels_at_end[acquisition, seed] == labels_at_end[RANDOM, seed] for seed in own.index}
            )
            for name in ("final_clean", "final_robust"):
                quantities[f"{name}_gain"] = (own[name] - random[name]).where(as_many)
            quantities |= {f"{name}_saved": random[name] - own[name] for name in ("labels_90", "labels_95")}
        for name, values in quantities.items():
            told = values.dropna().to_numpy()
            over = over_seeds(told)
            # those that got there are no sample of all
            over |= {} if len(told) == n_seeds else dict.fromkeys(("low", "high", "sd"), float("nan"))
            rows.append({"acquisition": acquisition, "quantity": name} | over | {"n_seeds": len(told)})
    return pd.DataFrame(rows)


def plot_tables(curves: pd.DataFrame, folder: Path) -> dict[Path, pd.DataFrame]:
    """The curves as ``dvc plots`` wants them: a row for each number of labels, a column for each function."""
    learned = curves[curves["acquisition"] != ALL_LABELS]
    of_metrics = learned.dropna(subset=["value"]).groupby("metric", sort=False)
    return {
        folder / f"{metric}.csv": rows.pivot(index="n_labelled", columns="acquisition", values="value").reset_index()
        for metric, rows in of_metrics
    }


def _area(labels: np.ndarray, accuracy: np.ndarray, most: float) -> float:
    """Mean height of the curve up to ``most`` labels; NaN where it has no width."""
    if most <= labels[0]:
        return float("nan")
    at = np.append(labels[labels < most], most)
    heights = np.interp(at, labels, accuracy)
    return float(np.trapezoid(heights, at) / (at[-1] - at[0]))


def _reached(labels: np.ndarray, accuracy: np.ndarray, target: float) -> float:
    """Labels from which an accuracy is reached for the first time; NaN if it is not."""
    above = np.flatnonzero(accuracy >= target)
    if not above.size:
        return float("nan")
    first = above[0]
    if first == 0:
        return float(labels[0])
    part = (target - accuracy[first - 1]) / (accuracy[first] - accuracy[first - 1])
    return float(labels[first - 1] + part * (labels[first] - labels[first - 1]))
