"""Checks of an evaluation that its records allow; each says where to look when it does not pass.

After Carlini et al. 2019, "On Evaluating Adversarial Robustness" (arXiv 1902.06705), and AutoAttack's flags (Croce and
Hein 2020, arXiv 2003.01690). Passing all of them proves nothing.
"""

import math
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from tasks.evaluation.perturbations import TOLERANCE, ball_excess
from tasks.evaluation.records import CLEAN
from tasks.evaluation.robustness import SWEEP, curves_of

HUGE_EPS = 127.5
"""An L-infinity ball of half the value range, in 1/255: any image can become uniform grey."""

MISSED_SHARE = 0.002
"""Of the images that attacks without gradients may break where white-box attacks failed."""

Status = Literal["PASS", "WARN", "FAIL"]


@dataclass(frozen=True)
class Check:
    """Outcome of one check."""

    name: str
    status: Status
    figure: float | None
    """What was measured, in the unit that the explanation names; None where nothing could be."""
    explanation: str


def run_checks(
    records: pd.DataFrame, smallest: pd.DataFrame, table: pd.DataFrame, leakage: dict[str, float]
) -> list[Check]:
    """All checks, in a fixed order.

    Args:
        records: as written by the step attack.
        smallest: the smallest eps that breaks each image, as written by the steps that attack.
        table: :func:`tasks.evaluation.robustness.robustness_table` and ``smallest_eps_table`` of them.
        leakage: shares of the test images with relatives in training, as the step prepare measures them.
    """
    return [
        _does_not_rise(table),
        _pgd_at_least_fgsm(table),
        _falls_at_largest_eps(table),
        _more_steps_change_little(records, smallest),
        _black_box_finds_nothing_new(smallest),
        _transfer_no_stronger(table),
        _inside_ball(records),
        _success_counts_correct_only(records),
        _no_leakage(leakage),
    ]


def _does_not_rise(table: pd.DataFrame) -> Check:
    name = "robust accuracy does not rise with eps"
    rises = []
    for curve, points in curves_of(table).items():
        lowest = points["accuracy"].cummin().shift()
        # the interval that belongs to the lowest accuracy so far
        bound = points["accuracy_high"].cummin().shift()
        for i in range(1, len(points)):
            rise = points["accuracy"][i] - lowest[i]
            rises.append((rise, points["accuracy"][i] > bound[i], f"{'/'.join(curve)} at eps {points['eps'][i]:g}"))
    return _judge_excess(name, rises, "accuracy rises above its lowest value at a smaller eps")


def _pgd_at_least_fgsm(table: pd.DataFrame) -> Check:
    name = "PGD is at least as strong as FGSM"
    adaptive = table[table["threat_model"] == "adaptive"]
    pgd, fgsm = (adaptive[adaptive["attack"] == attack].set_index(["target", "eps"]) for attack in ("pgd", "fgsm"))
    both = pgd.join(fgsm, how="inner", rsuffix="_fgsm")
    differences = [
        (accuracy - fgsm_accuracy, accuracy > fgsm_high, f"{target} at eps {eps:g}")
        for (target, eps), accuracy, fgsm_accuracy, fgsm_high in zip(
            both.index, both["accuracy"], both["accuracy_fgsm"], both["accuracy_high_fgsm"], strict=True
        )
    ]
    if not differences:
        return Check(name, "WARN", None, "not checked: needs both fgsm and pgd in attack.attacks")
    return _judge_excess(name, differences, "accuracy under adaptive PGD is above that under adaptive FGSM")


def _falls_at_largest_eps(table: pd.DataFrame) -> Check:
    name = "accuracy falls to at most 1 % at the largest eps, adaptive"
    eps = table["eps"].max()
    at_largest = table[(table["threat_model"] == "adaptive") & (table["eps"] == eps)]
    # of several attacks the strongest counts
    strongest = at_largest.groupby("target", sort=False)["accuracy"].min()
    figure = float(strongest.max())
    where = f"{100 * figure:.1f} % accuracy of {strongest.idxmax()} at eps {eps:g} under its strongest attack"
    if figure <= 0.01:
        return Check(name, "PASS", figure, where)
    if eps < HUGE_EPS:
        return Check(name, "WARN", figure, f"{where}; at {HUGE_EPS:g} this would be a failure")
    return Check(name, "FAIL", figure, f"{where}: the attack does not find what must be there")


def _more_steps_change_little(records: pd.DataFrame, smallest: pd.DataFrame) -> Check:
    name = "more steps and restarts change accuracy by less than 1 point"
    adaptive = records[(records["threat_model"] == "adaptive") & (records["attack"] == "pgd")]
    if adaptive.empty:
        return Check(name, "WARN", None, "not checked: needs pgd in attack.attacks")
    # nested balls: what breaks an image at one eps breaks it at every larger one
    broken = adaptive[~adaptive["correct"]].groupby(["target", "image"])["eps"].min().rename("broken_eps")
    both = smallest[smallest["attack"] == SWEEP].join(broken, on=["target", "image"]).fillna({"broken_eps": math.inf})
    gains = [
        (float((group["broken_eps"] > eps).mean() - (group["smallest_eps"] > eps).mean()), target, eps, len(group))
        for target, group in both.groupby("target", sort=False)
        for eps in sorted(adaptive["eps"].unique())
    ]
    figure, target, eps, n_images = max(gains)
    where = f"the sweep breaks {100 * figure:.1f} points more than PGD: {target} at eps {eps:g}"
    weakest, weak_target, weak_eps, _ = min(gains)
    if weakest <= -0.01:
        weak = f"the sweep breaks {-100 * weakest:.1f} points less than PGD: {weak_target} at eps {weak_eps:g}"
        return Check(name, "WARN", figure, f"{weak}, so it can't vouch for PGD; raise attack.sweep.n_restarts")
    if figure < 0.01:
        return Check(name, "PASS", figure, where if figure > 0 else "the sweep breaks no more than PGD")
    if round(figure * n_images) <= 1:
        return Check(name, "WARN", figure, f"{where}, one image of {n_images}")
    return Check(name, "FAIL", figure, f"{where}; take the sweep's accuracy, or raise attack.pgd.n_steps")


def _black_box_finds_nothing_new(smallest: pd.DataFrame) -> Check:
    name = "attacks without gradients break nothing that white-box attacks missed"
    images = ["target", "image"]
    lowest = smallest.groupby(["threat_model", *images])["smallest_eps"].min()
    if "black_box" not in lowest.index:
        return Check(name, "WARN", None, "not checked: needs attack.suite.n_queries or n_label_queries")
    both = lowest["black_box"].rename("asked").reset_index().join(lowest["adaptive"].rename("seen"), on=images)
    # wherever between the two eps, the white-box attacks say that it is withstood
    missed = both[both["asked"] < both["seen"]]
    shares = missed.groupby("target")["image"].nunique() / both.groupby("target")["image"].nunique()
    figure = float(shares.max()) if len(missed) else 0.0
    if not figure:
        return Check(name, "PASS", 0.0, f"none of {both['image'].nunique()} images on any target")
    target = shares.idxmax()
    numbers = ", ".join(map(str, missed.loc[missed["target"] == target, "image"]))
    explanation = (
        f"{100 * figure:.1f} % of the images of {target} at some eps (images {numbers}): gradients may be masked"
    )
    return Check(name, "FAIL" if figure > MISSED_SHARE else "WARN", figure, explanation)


def _transfer_no_stronger(table: pd.DataFrame) -> Check:
    name = "transfer is no stronger than adaptive"
    keys = ["target", "attack", "eps"]
    adaptive = table[table["threat_model"] == "adaptive"].set_index(keys)
    transfer = table[table["threat_model"] == "transfer"].set_index(keys)
    both = transfer.join(adaptive, how="inner", rsuffix="_adaptive")
    differences = [
        (adaptive_accuracy - accuracy, adaptive_accuracy > high, f"{target}/{attack} at eps {eps:g}")
        for (target, attack, eps), adaptive_accuracy, accuracy, high in zip(
            both.index, both["accuracy_adaptive"], both["accuracy"], both["accuracy_high"], strict=True
        )
    ]
    if not differences:
        return Check(name, "WARN", None, "not checked: no transfer attacks in the records")
    return _judge_excess(name, differences, "accuracy under adaptive is above that under transfer")


def _inside_ball(records: pd.DataFrame) -> Check:
    name = "every adversarial example lies in its ball"
    attacked = records[records["attack"] != CLEAN]
    norms = attacked[str(attacked["norm"].iloc[0])]
    excess = ball_excess(norms.to_numpy(), attacked["eps"].to_numpy(), attacked["radius"].to_numpy())
    figure = float(excess.max())
    n_outside = int((excess > TOLERANCE).sum())
    explanation = f"{n_outside} of {len(attacked)} leave it by more than {TOLERANCE:g}; the farthest: {figure:.2g}"
    return Check(name, "FAIL" if n_outside else "PASS", figure, explanation)


def _success_counts_correct_only(records: pd.DataFrame) -> Check:
    name = "success counts only images classified correctly before"
    clean = records[records["attack"] == CLEAN].set_index(["target", "image"])["correct"].rename("correct_before")
    before = records.join(clean, on=["target", "image"])["correct_before"].astype(bool)
    wrong = (records["success"] != (before & ~records["correct"])) | (records["clean_correct"] != before)
    n_wrong = int(wrong.sum())
    return Check(name, "FAIL" if n_wrong else "PASS", n_wrong, f"{n_wrong} of {len(records)} records count otherwise")


def _no_leakage(leakage: dict[str, float]) -> Check:
    name = "no test image has a relative in training"
    near_duplicates, group = leakage["near_duplicate_in_train"], leakage["group_in_train"]
    explanation = (
        f"{100 * near_duplicates:.1f} % of the test images have a near-duplicate in training, {100 * group:.1f} % "
        "an image of their group"
    )
    if not group:
        return Check(name, "PASS", group, explanation)
    return Check(name, "WARN", group, f"{explanation}; prepare.split.strategy grouped keeps them apart")


def _judge_excess(name: str, excesses: list[tuple[float, bool, str]], what: str) -> Check:
    """Judge differences of accuracy that should not be above 0: (difference, beyond the interval, where)."""
    beyond = [excess for excess in excesses if excess[1]]
    figure, _, where = max(beyond or excesses, key=lambda excess: excess[0])
    if figure <= 0:
        return Check(name, "PASS", float(figure), f"nowhere {what}")
    status: Status = "FAIL" if beyond else "WARN"
    extent = "beyond its interval" if beyond else "within its interval"
    return Check(name, status, float(figure), f"{what} by {100 * figure:.1f} points, {extent}: {where}")
