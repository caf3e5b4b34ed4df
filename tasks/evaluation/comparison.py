"""Defences side by side: each against the worst of all attacks, ranked, and compared on the same images."""

import numpy as np
import pandas as pd
from scipy.special import bdtr

from tasks.records.vocabulary import CLEAN
from tasks.statistics.intervals import wilson

COLUMNS = (
    *("threat_model", "eps", "rank", "target", "n"),
    *("clean_accuracy", "clean_accuracy_low", "clean_accuracy_high"),
    *("accuracy", "accuracy_low", "accuracy_high"),
    *("next", "n_right_alone", "n_wrong_alone", "p_value"),
    *("parameters", "multiply_adds", "looks", "n_warn", "n_fail"),
)


def withstood(records: pd.DataFrame, smallest: pd.DataFrame) -> pd.DataFrame:
    """Which images withstand every attack: target, threat_model, eps, image, withstood (bool).

    An image does where it is classified correctly unchanged, under every attack at that eps, and where no search found
    a smaller eps that breaks it: the worst case for each image, never a minimum of averages. Who may see everything
    (``adaptive``) may also ask for scores and labels alone (``black_box``).

    Args:
        records: as written by the steps that attack.
        smallest: the smallest eps that breaks each image, as written by the same.
    """
    attacked = records[records["attack"] != CLEAN]
    by_image = attacked.groupby(["target", "threat_model", "eps", "image"], sort=False)
    holds = by_image[["correct", "clean_correct"]].all().all(axis=1).rename("withstood").reset_index()
    by_queries = smallest[smallest["threat_model"] == "black_box"]
    # what is tried on some of the images only is no threat model of its own
    n_tried = by_queries.groupby(["target", "attack"])["image"].nunique().groupby("target").max()
    n_images = smallest.groupby("target")["image"].nunique()
    whole = n_tried.index[n_tried == n_images[n_tried.index]]
    asked = holds[(holds["threat_model"] == "adaptive") & holds["target"].isin(whole)]
    holds = pd.concat([holds, asked.assign(threat_model="black_box", withstood=True)], ignore_index=True)

    for threat_model, found in (("adaptive", smallest), ("black_box", by_queries)):
        lowest = found.groupby(["target", "image"])["smallest_eps"].min().rename("lowest")
        is_broken = holds[["target", "image"]].join(lowest, on=["target", "image"])["lowest"] <= holds["eps"]
        holds["withstood"] &= ~(is_broken & (holds["threat_model"] == threat_model))
    return holds


def worst_case(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Share of images that withstand every attack: target, threat_model, eps, accuracy.

    Args:
        outcomes: of :func:`withstood`.
    """
    by_point = outcomes.groupby(["target", "threat_model", "eps"], sort=False)["withstood"]
    return by_point.mean().rename("accuracy").reset_index()


def benchmark_table(records: pd.DataFrame, outcomes: pd.DataFrame, about: pd.DataFrame) -> pd.DataFrame:
    """Every target against the worst of all attacks, ranked at each threat model and eps.

    Rows: threat model, eps, then rank, from 1 for the highest accuracy; equals by clean accuracy, then by name. Beside
    the accuracies, with Wilson's 95 % intervals and on the attacked images alone: the target that is ``next`` in rank;
    on how many images this one is right and that one wrong (``n_right_alone``), or the other way round
    (``n_wrong_alone``); and McNemar's p-value of the two numbers. The last has none. Then what a prediction takes, and
    how many checks of the target warn and fail.

    Args:
        records: as written by the steps that attack.
        outcomes: of :func:`withstood`.
        about: ``parameters``, ``multiply_adds``, ``looks``, ``n_warn`` and ``n_fail`` by target.
    """
    right = outcomes.pivot(index=["threat_model", "eps", "image"], columns="target", values="withstood")
    clean = records[records["attack"] == CLEAN].pivot(index="image", columns="target", values="correct")
    rows = []
    for (threat_model, eps), of_images in right.groupby(level=["threat_model", "eps"], sort=True):
        of_images = of_images.dropna(axis="columns", how="all").astype(bool).droplevel(["threat_model", "eps"])
        clean_accuracy = clean.loc[of_images.index, of_images.columns].mean()
        order = sorted(
            map(str, of_images), key=lambda target: (-of_images[target].mean(), -clean_accuracy[target], target)
        )
        for rank, target in enumerate(order, start=1):
            row = {"threat_model": threat_model, "eps": eps, "rank": rank, "target": target, "n": len(of_images)}
            row |= {"clean_accuracy": clean_accuracy[target], "accuracy": of_images[target].mean()}
            if rank < len(order):
                row |= {"next": order[rank], **_compared(of_images[target], of_images[order[rank]])}
            rows.append(row)
    table = pd.DataFrame(rows)
    for name in ("clean_accuracy", "accuracy"):
        n_right = (table[name] * table["n"]).round()
        table[f"{name}_low"], table[f"{name}_high"] = wilson(n_right, table["n"])
    counts = {"n_right_alone": "Int64", "n_wrong_alone": "Int64"}
    return table.join(about, on="target").reindex(columns=list(COLUMNS)).astype(counts)


def minimal_eps_table(smallest: pd.DataFrame) -> pd.DataFrame:
    """How small the perturbations are that break a target's images, white box or black, over those that are right.

    A row a target: ``n`` images that are classified correctly as they are; ``withstood``, the share of them that
    nothing breaks; the quartiles ``q25``, ``median`` and ``q75`` of the smallest perturbation found, in 1/255, infinite
    where they are beyond the grid; the median's 95 % interval from order statistics, ``median_low`` and
    ``median_high`` (Conover 1999, "Practical Nonparametric Statistics", section 3.2). NaN where no image is right, or
    too few are for an interval.

    Args:
        smallest: the smallest eps that breaks each image, as written by the steps that attack.
    """
    rows = []
    by_image = smallest.groupby(["target", "image"], sort=False)["minimal_eps"].min()
    for target, of_target in by_image.groupby("target", sort=False):
        found = of_target[of_target > 0]
        row = {"target": target, "n": len(found), "withstood": np.isinf(found).mean()}
        # of images, so that no infinity is met halfway
        row |= dict(
            zip(["q25", "median", "q75"], found.quantile([0.25, 0.5, 0.75], interpolation="higher"), strict=True)
        )
        rows.append(row | dict(zip(["median_low", "median_high"], _median_interval(found), strict=True)))
    columns = ["target", "n", "withstood", "q25", "median", "median_low", "median_high", "q75"]
    return pd.DataFrame(rows).reindex(columns=columns)


def _median_interval(values: "pd.Series[float]") -> tuple[float, float]:
    """95 % interval of the median: as far in from both ends as chance puts a median in at most one of 40 cases."""
    n = len(values)
    # the share of cases in which at most so many of n values lie below the median
    n_beyond = int((bdtr(np.arange(n), n, 0.5) <= 0.025).sum())
    if not n_beyond:
        return np.nan, np.nan
    ordered = np.sort(values)
    return float(ordered[n_beyond - 1]), float(ordered[n - n_beyond])


def certified_table(certified: pd.DataFrame, eps: list[float]) -> pd.DataFrame:
    """Certified accuracy: the share of images that are right, and stay so whatever lies within a radius.

    A row a target and eps: target, eps (in 1/255, of an L2 ball as ``attack.eps`` counts it, which holds the L-infinity
    ball of the same eps), n, accuracy and its 95 % Wilson interval.

    Args:
        certified: as written by the step attack_defence.
        eps: where accuracy is told, rising; 0 for that of the smoothed classifier itself.
    """
    rows = []
    for target, found in certified.groupby("target", sort=False):
        right = found["prediction"] == found["label"]
        for value in eps:
            n_right = int((right & (found["certified_eps"] >= value)).sum())
            low, high = wilson(n_right, len(found))
            row = {"target": target, "eps": value, "n": len(found), "accuracy": n_right / len(found)}
            rows.append(row | {"accuracy_low": float(low), "accuracy_high": float(high)})
    columns = ["target", "eps", "n", "accuracy", "accuracy_low", "accuracy_high"]
    return pd.DataFrame(rows, columns=columns)


def mcnemar(n_right_alone: int, n_wrong_alone: int) -> float:
    """Exact two-sided p-value of McNemar's test (1947, Psychometrika 12, 153-157) of two classifiers' paired outcomes.

    Under the hypothesis that both are right equally often, an image that only one of them gets right falls to either
    with probability 1/2. 1 where there is no such image.

    Args:
        n_right_alone: images that the first gets right and the second wrong.
        n_wrong_alone: images that the first gets wrong and the second right.
    """
    n = n_right_alone + n_wrong_alone
    return min(1.0, 2 * float(bdtr(min(n_right_alone, n_wrong_alone), n, 0.5)))


def _compared(first: "pd.Series[bool]", second: "pd.Series[bool]") -> dict[str, float]:
    alone, other = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    return {"n_right_alone": alone, "n_wrong_alone": other, "p_value": mcnemar(alone, other)}
