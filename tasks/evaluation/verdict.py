"""The study's claims, each held against our figures.

A claim holds, or does not, when the whole 95 % interval of its figure lies on one side of a bound that is stated with
it; otherwise so many images can't tell.
"""

import dataclasses
import math

import numpy as np
import pandas as pd

from tasks.evaluation.intervals import Estimate, bootstrap, wilson
from tasks.evaluation.records import CLEAN

STUDY_ACCURACY = 0.9323
TELLING_AUROC = 0.7
"""From here up a score tells two kinds acceptably apart (Hosmer and Lemeshow 2013, "Applied Logistic Regression")."""
WON_BACK = 0.5
"""Share of the accuracy lost to an attack that a defence has to win back to be of help."""

HOLDS, FAILS = "holds", "does not hold"


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim of the study, and what our figures say of it."""

    claim: str
    study: str
    """What the study reports."""
    figure: str
    """What was measured here, in words, without its value."""
    value: float | None
    low: float | None
    high: float | None
    outcome: str
    rule: str
    """When the claim holds and when it does not."""


def verdict(
    records: pd.DataFrame, features: pd.DataFrame, detection: pd.DataFrame, eps: float, counts: np.ndarray
) -> list[Claim]:
    """Every claim, in the order of the study.

    Args:
        records: as written by the step attack.
        features: overlap of clean and adversarial features (``features.csv`` of the step analyze).
        detection: what detectors tell apart (``detection.csv`` of the step analyze).
        eps: at which the claims are judged, in 1/255.
        counts: how often each attacked image is drawn in each bootstrap resample, ``(R, N)``.
    """
    attack = headline_attack(records)
    return [
        _accuracy_reached(records),
        *_features_overlap(features, attack, eps, counts.shape[1]),
        *_limited_discrimination(detection, attack, eps),
        *_compromised_resilience(records, attack, eps, counts),
        Claim(
            "An autoencoder that is retrained on adversarial images would help",
            "called for, not tried",
            "none: every autoencoder among the targets was trained on noise alone",
            *(None, None, None),
            outcome="can't be told without such an autoencoder",
            rule="needs a retrained autoencoder among the targets",
        ),
    ]


def headline_attack(records: pd.DataFrame) -> str:
    """The attack that the claims are judged by: PGD, or without it the last of the records."""
    attacks = [str(attack) for attack in records["attack"].unique() if attack != CLEAN]
    return "pgd" if "pgd" in attacks else attacks[-1]


def _accuracy_reached(records: pd.DataFrame) -> Claim:
    clean = records[(records["attack"] == CLEAN) & (records["target"] == "undefended")]
    n, n_correct = len(clean), int(clean["correct"].sum())
    low, high = wilson(n_correct, n)
    return _judge(
        "A CNN classifies the slices with an accuracy of 93.23 %",
        "93.23 % on its test images",
        "accuracy of the undefended classifier on all clean test images",
        Estimate(n_correct / n, float(low), float(high)),
        n,
        above=f"holds from {100 * STUDY_ACCURACY:.2f} % up",
        bound=STUDY_ACCURACY,
    )


def _features_overlap(features: pd.DataFrame, attack: str, eps: float, n: int) -> list[Claim]:
    at = features[(features["attack"] == attack) & (features["eps"] == eps)]
    claims = []
    for (space, target, threat_model), rows in at.groupby(["space", "target", "threat_model"], sort=False):
        by_metric = rows.set_index("metric")
        best = by_metric.loc[["probe_auroc", "knn_auroc"]].sort_values("value").iloc[-1]
        where = {"bottleneck": f"in the bottleneck of the {target}", "classifier": "in the classifier's last features"}
        seen = "" if space == "bottleneck" or target == "undefended" else f", seen through the {target}"
        claims.append(
            _judge(
                f"Clean and adversarial features overlap {where[str(space)]}{seen} ({threat_model} attack)",
                "they overlap in PCA and t-SNE pictures of the autoencoder's features",
                f"AUROC in all dimensions, cross-validated by patient, of the better of linear probe and nearest "
                f"neighbours: {'probe' if best.name == 'probe_auroc' else 'neighbours'}; {attack.upper()}, "
                f"ε = {eps:g}/255",
                Estimate(best["value"], best["low"], best["high"]),
                n,
                below=f"holds below {TELLING_AUROC}",
                bound=TELLING_AUROC,
            )
        )
    return claims


def _limited_discrimination(detection: pd.DataFrame, attack: str, eps: float) -> list[Claim]:
    at = detection[(detection["eps"] == eps) & (detection["surrogate"] == "undefended")]
    claims = []
    for name, knows in ((attack, "does not know of it"), (f"{attack} and detector", "knows it, each detector its own")):
        rows = at[at["attack"] == name].dropna(subset=["auroc"])
        if rows.empty:
            continue
        best = rows.sort_values("auroc").iloc[-1]
        claims.append(
            _judge(
                f"Adversarial images can hardly be told from clean ones (the attacker {knows})",
                "limited discrimination between clean and adversarial images",
                f"AUROC of the best of {len(rows)} detectors, {best['detector']}; {attack.upper()}, ε = {eps:g}/255",
                Estimate(best["auroc"], best["auroc_low"], best["auroc_high"]),
                int(best["n"]),
                below=f"holds below {TELLING_AUROC}",
                bound=TELLING_AUROC,
            )
        )
    return claims


def _compromised_resilience(records: pd.DataFrame, attack: str, eps: float, counts: np.ndarray) -> list[Claim]:
    at = records[(records["attack"] == attack) & (records["eps"] == eps)]
    attacked = at[at["target"] == "undefended"].set_index("image")
    clean = attacked["clean_correct"].to_numpy()
    bare = attacked["correct"].to_numpy()
    claims = []
    for (target, threat_model), rows in at[at["target"] != "undefended"].groupby(
        ["target", "threat_model"], sort=False
    ):
        defended = rows.set_index("image")["correct"].loc[attacked.index].to_numpy()
        knows = "knows" if threat_model == "adaptive" else "does not know of"
        claims.append(
            _judge(
                f"The {target} does not restore what an attacker takes who {knows} it",
                "compromised resilience: the denoised images are still misclassified",
                f"share of the lost accuracy that the {target} wins back; {attack.upper()}, ε = {eps:g}/255, "
                f"{threat_model}",
                won_back(clean, bare, defended, counts),
                len(attacked),
                below=f"holds below {100 * WON_BACK:.0f} %",
                bound=WON_BACK,
            )
        )
    return claims


def won_back(clean: np.ndarray, bare: np.ndarray, defended: np.ndarray, counts: np.ndarray) -> Estimate:
    """Share of the accuracy lost to an attack that a defence wins back, with its bootstrap interval.

    1: the defended classifier under attack is as accurate as the bare one on clean images; 0: as the bare one under
    attack; below 0: less so. NaN where nothing was lost.

    Args:
        clean: whether the bare classifier is right on each clean image, bool ``(N,)``.
        bare: whether it is under attack, bool ``(N,)``.
        defended: whether the defended one is, bool ``(N,)``.
        counts: how often each image is drawn in each resample, ``(R, N)``.
    """
    lost = clean.astype(np.float64) - bare
    won = defended.astype(np.float64) - bare

    def share(resamples: np.ndarray) -> np.ndarray:
        all_lost = resamples @ lost
        shares: np.ndarray = np.divide(
            resamples @ won, all_lost, out=np.full(len(all_lost), np.nan), where=all_lost > 0
        )
        return shares

    return bootstrap(share, counts)


def _judge(
    claim: str,
    study: str,
    figure: str,
    measured: Estimate,
    n: int,
    *,
    bound: float,
    above: str = "",
    below: str = "",
) -> Claim:
    """A claim judged by the side of the bound on which the interval lies; it holds ``above`` or ``below`` it."""
    outcome = f"can't be told from {n} images"
    if measured.low >= bound:
        outcome = HOLDS if above else FAILS
    elif measured.high < bound:
        outcome = FAILS if above else HOLDS
    value, low, high = (None if math.isnan(number) else float(number) for number in measured)
    rule = f"{above or below}, when all of the 95 % interval lies there; does not when all of it lies on the other side"
    return Claim(claim, study, figure, value, low, high, outcome, rule)
