"""The study's claims, each held against our figures.

A claim holds, or does not, when the whole 95 % interval of its figure lies on one side of a bound that is stated with
it; otherwise so many images can't tell. What depends on eps is judged at every eps of the tables, since a large enough
eps breaks everything and a small enough one nothing.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product

import numpy as np
import pandas as pd

from tasks.params import UNDEFENDED
from tasks.records.vocabulary import CLEAN, spoken
from tasks.statistics.intervals import Estimate, bootstrap, resampled_mean, share_estimate

STUDY_ACCURACY = 0.9323
TELLING_AUROC = 0.7
"""From here up a score tells two kinds acceptably apart (Hosmer and Lemeshow 2013, "Applied Logistic Regression")."""
HELP = 0.05
"""Difference in accuracy that matters, as a share of the images: one more of twenty."""
WON_BACK = 0.5
"""Share of the accuracy lost to an attack that a defence has to win back to be of help."""

HOLDS, FAILS = "holds", "does not hold"

Resampled = Callable[[np.ndarray], np.ndarray]
"""Rows of images ``(N,)`` to how often each is drawn in each bootstrap resample, ``(R, N)``."""


@dataclass(frozen=True)
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
    elsewhere: dict[str, str] = field(default_factory=dict)
    """Outcome at the other eps, by eps."""


UNTRIED = Claim(
    "An autoencoder that is retrained on adversarial images would help",
    "called for, not tried",
    "none: benchmark does not name both autoencoders",
    *(None, None, None),
    outcome="can't be told without such an autoencoder",
    rule="needs both autoencoders in benchmark",
)


def verdict(
    records: pd.DataFrame,
    features: pd.DataFrame,
    detection: pd.DataFrame,
    kinds: Mapping[str, str],
    eps: float,
    resampled: Resampled,
) -> list[Claim]:
    """Every claim, in the order of the study; it is about the bare classifier and the autoencoder in front of it.

    Args:
        records: of every target.
        features: overlap of clean and adversarial features (``features.csv`` of the step analyze).
        detection: what detectors tell apart (``detection.csv`` of the step analyze).
        kinds: of the defences among the targets, by name.
        eps: whose figures are shown, in 1/255; one of those in the tables.
        resampled: the bootstrap's counts.
    """
    attack = headline_attack(records)
    plain, retrained = (
        [name for name in kinds if kinds[name] == kind] for kind in ("autoencoder", "retrained_autoencoder")
    )
    studied = [UNDEFENDED, *plain]
    of_attack = records[records["attack"] == attack]
    of_studied = of_attack[of_attack["target"].isin(studied)]
    overlaps = features[(features["attack"] == attack) & features["target"].isin(studied)]
    at = {
        each: [
            *_features_not_told_apart(overlaps[overlaps["eps"] == each]),
            *_limited_discrimination(detection[detection["eps"] == each], attack),
            *_compromised_resilience(of_studied[of_studied["eps"] == each], resampled),
            *_retraining_helps(of_attack[of_attack["eps"] == each], plain, retrained, resampled),
        ]
        for each in sorted(set(features["eps"]))
    }
    judged = [
        replace(
            claim,
            figure=f"{claim.figure}; {attack.upper()}, ε = {eps:g}/255",
            elsewhere={
                f"{other:g}": same.outcome
                for other, claims in at.items()
                for same in claims
                if other != eps and same.claim == claim.claim
            },
        )
        for claim in at[eps]
    ]
    if not (plain and retrained):
        judged.append(UNTRIED)
    return [_accuracy_reached(records, resampled), *judged]


def headline_attack(records: pd.DataFrame) -> str:
    """The attack that the claims are judged by: PGD, or without it the last of the records."""
    attacks = [str(attack) for attack in records["attack"].unique() if attack != CLEAN]
    return "pgd" if "pgd" in attacks else attacks[-1]


def _accuracy_reached(records: pd.DataFrame, resampled: Resampled) -> Claim:
    clean = records[(records["attack"] == CLEAN) & (records["target"] == UNDEFENDED)]
    return _judge(
        "A CNN classifies the slices with an accuracy of 93.23 %",
        "93.23 % on its test images",
        "accuracy of the undefended classifier on all clean test images",
        share_estimate(clean["correct"].to_numpy(), resampled(clean["image"].to_numpy())),
        len(clean),
        above=f"holds from {100 * STUDY_ACCURACY:.2f} % up",
        bound=STUDY_ACCURACY,
    )


def _features_not_told_apart(features: pd.DataFrame) -> list[Claim]:
    claims = []
    for names, rows in features.groupby(["space", "target", "threat_model"], sort=False):
        space, target, threat_model = map(str, names)
        by_metric = rows.set_index("metric")
        best = by_metric.loc[["probe_auroc", "knn_auroc"]].sort_values("value").iloc[-1]
        means = "probe" if best.name == "probe_auroc" else "neighbours"
        p_value = float(by_metric["value"]["mmd_p_value"])
        where = f"in the bottleneck of the {spoken(target)}"
        if space == "classifier":
            seen = "" if target == UNDEFENDED else f", seen through the {spoken(target)}"
            where = f"in the classifier's last features{seen}"
        claims.append(
            _judge(
                f"Clean and adversarial images are not told apart {where} ({threat_model} attack)",
                "the autoencoder's features overlap in PCA and t-SNE"
                + ("" if space == "bottleneck" else "; of the classifier's it says nothing"),
                f"AUROC, the better of linear probe and nearest neighbours (here the {means}), in all dimensions, "
                f"cross-validated by group of like slices; equal distributions: MMD's p = {p_value:.3g}",
                Estimate(best["value"], best["low"], best["high"]),
                int(rows["n"].iloc[0]),
                below=f"holds below {TELLING_AUROC}",
                bound=TELLING_AUROC,
            )
        )
    return claims


def _limited_discrimination(detection: pd.DataFrame, attack: str) -> list[Claim]:
    of_undefended = detection[detection["surrogate"] == UNDEFENDED]
    claims = []
    for name, knows in ((attack, "does not know of it"), (f"{attack} and detector", "knows it")):
        rows = of_undefended[of_undefended["attack"] == name].dropna(subset=["auroc_successful"])
        if rows.empty:
            continue
        columns = ["auroc_successful", "auroc_successful_low", "auroc_successful_high"]
        folded = [(_either_side(Estimate(*row[columns])), row) for _, row in rows.iterrows()]
        area, best = max(folded, key=lambda pair: pair[0].value)
        most = "" if name == attack else ", at most: a better attack may exist"
        claims.append(
            _judge(
                f"No detector tells successful adversarial images from clean ones (the attacker {knows})",
                "limited discrimination between clean and adversarial images",
                f"AUROC of the best of {len(rows)} detectors, {best['detector']}, from whichever side it tells more"
                f"{most}",
                area,
                int(best["n_successful"]),
                below=f"holds below {TELLING_AUROC}",
                bound=TELLING_AUROC,
            )
        )
    return claims


def _retraining_helps(
    records: pd.DataFrame, plain: list[str], retrained: list[str], resampled: Resampled
) -> list[Claim]:
    claims = []
    for without, using in product(plain, retrained):
        for threat_model in ("transfer", "adaptive"):
            correct = [
                records[(records["target"] == target) & (records["threat_model"] == threat_model)]
                .set_index("image")["correct"]
                .sort_index()
                for target in (without, using)
            ]
            gain = correct[1].astype(np.float64) - correct[0]
            knows = "knows of it" if threat_model == "adaptive" else "does not know of it"
            claims.append(
                _judge(
                    f"An autoencoder that is retrained on adversarial images would help (the attacker {knows})",
                    "called for, not tried",
                    f"accuracy of the {spoken(using)} minus that of the {spoken(without)}, of the same images "
                    f"({threat_model})",
                    bootstrap(partial(resampled_mean, gain.to_numpy()), resampled(gain.index.to_numpy())),
                    len(gain),
                    above=f"holds from {HELP:g} up",
                    bound=HELP,
                )
            )
    return claims


def _either_side(area: Estimate) -> Estimate:
    """An AUROC below 0.5 tells as much as its mirror image above."""
    return Estimate(1 - area.value, 1 - area.high, 1 - area.low) if area.value < 0.5 else area


def _compromised_resilience(records: pd.DataFrame, resampled: Resampled) -> list[Claim]:
    attacked = records[records["target"] == UNDEFENDED].set_index("image").sort_index()
    counts = resampled(attacked.index.to_numpy())
    claims = []
    defences = records[records["target"] != UNDEFENDED].groupby(["target", "threat_model"], sort=False)
    for names, rows in defences:
        target, threat_model = map(str, names)
        defended = rows.set_index("image")["correct"].loc[attacked.index].to_numpy()
        knows = "knows" if threat_model == "adaptive" else "does not know of"
        claims.append(
            _judge(
                f"The {spoken(target)} does not restore what an attacker takes who {knows} it",
                "compromised resilience: denoised images are still misclassified",
                f"share of the lost accuracy that the {spoken(target)} wins back ({threat_model})",
                won_back(attacked["clean_correct"].to_numpy(), attacked["correct"].to_numpy(), defended, counts),
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
