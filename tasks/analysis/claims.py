"""Claims of the study, and their outcome for our records.

Every claim has a measured value and a bound. The claim holds, or does not hold, if the whole 95 % interval of the value
is on one side of the bound. Otherwise the result is not significant for this number of images. Claims about attacks are
judged at every eps of the tables.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Literal

import numpy as np
import pandas as pd

from tasks.params import UNDEFENDED
from tasks.records.vocabulary import CLEAN, display_name
from tasks.statistics.groups import GroupJackknife
from tasks.statistics.intervals import UNBOUNDED, Estimate
from tasks.statistics.paired import compare_paired
from tasks.statistics.rates import rate_estimate
from tasks.statistics.resampled import resampled_ratio

STUDY_ACCURACY = 0.9323
"""Accuracy that the study reports."""
SEPARABLE_AUROC = 0.7
"""AUROC from which two sets count as separable (Hosmer and Lemeshow 2013, "Applied Logistic Regression")."""
MIN_ACCURACY_GAIN = 0.05
"""Gain in accuracy from which retraining counts as helpful."""
MIN_RESTORED_FRACTION = 0.5
"""Fraction of the lost accuracy that a defence must restore to count as helpful."""

Result = Literal["holds", "does not hold", "not significant", "not tested"]
"""``not tested``: the run has no such defence."""

JackknifeOf = Callable[[np.ndarray], GroupJackknife]
"""Takes rows of images ``(N,)``, returns the jackknife of these images."""


@dataclass(frozen=True)
class Claim:
    """A claim of the study and its outcome."""

    key: str
    """Identifies the claim at every eps; does not change with its wording."""
    result: Result
    statement: str
    study_result: str
    """Result that the study reports."""
    measure: str
    """Description of the measured value."""
    value: float | None
    low: float | None
    high: float | None
    n: int | None
    """Number of images; None if the claim was not tested."""
    rule: str
    """When the claim holds and when it does not."""
    result_by_eps: dict[str, Result] = field(default_factory=dict)
    """Result at the other eps, by eps."""


RETRAINING_NOT_TESTED = Claim(
    key="retraining",
    result="not tested",
    statement="An autoencoder that is retrained on adversarial images helps",
    study_result="proposed as future work",
    measure="none: selected_defences does not name both autoencoders",
    value=None,
    low=None,
    high=None,
    n=None,
    rule="needs an autoencoder and a retrained autoencoder in selected_defences",
)


def judge_claims(
    records: pd.DataFrame,
    features: pd.DataFrame,
    detection: pd.DataFrame,
    kinds: Mapping[str, str],
    eps: float,
    jackknife_of: JackknifeOf,
) -> list[Claim]:
    """Judge every claim, in the order of the study.

    The claims are about the undefended classifier and the classifier behind an autoencoder.

    Args:
        records: of all targets.
        features: overlap of clean and adversarial features (``features.csv``).
        detection: AUROC of the detectors (``detection.csv``).
        kinds: kind of each defence among the targets, by name.
        eps: eps of the values, in 1/255; one of those in the tables. Other eps get an outcome only.
        jackknife_of: gives the groups of images.
    """
    attack = headline_attack(records)
    plain, retrained = (
        [name for name in kinds if kinds[name] == kind] for kind in ("autoencoder", "retrained_autoencoder")
    )
    of_attack = records[records["attack"] == attack]
    of_study = of_attack[of_attack["target"].isin([UNDEFENDED, *plain])]
    overlaps = features[(features["attack"] == attack) & features["target"].isin([UNDEFENDED, *plain])]
    by_eps = {
        each: [
            *_features_overlap(overlaps[overlaps["eps"] == each]),
            *_detection_is_limited(detection[detection["eps"] == each], attack),
            *_defences_do_not_restore(of_study[of_study["eps"] == each], jackknife_of),
            *_retraining_helps(of_attack[of_attack["eps"] == each], plain, retrained, jackknife_of),
        ]
        for each in sorted(set(features["eps"]))
    }
    results = {(claim.key, each): claim.result for each, claims in by_eps.items() for claim in claims}
    judged = [
        replace(
            claim,
            measure=f"{claim.measure}; {attack.upper()}, ε = {eps:g}/255",
            result_by_eps={
                f"{other:g}": results[claim.key, other]
                for other in by_eps
                if other != eps and (claim.key, other) in results
            },
        )
        for claim in by_eps[eps]
    ]
    if not (plain and retrained):
        judged.append(RETRAINING_NOT_TESTED)
    return [_accuracy_is_reached(records, jackknife_of), *judged]


def headline_attack(records: pd.DataFrame) -> str:
    """The attack of the claims: PGD, or the last attack of the records without PGD."""
    attacks = [str(attack) for attack in records["attack"].unique() if attack != CLEAN]
    return "pgd" if "pgd" in attacks else attacks[-1]


def _accuracy_is_reached(records: pd.DataFrame, jackknife_of: JackknifeOf) -> Claim:
    clean = records[(records["attack"] == CLEAN) & (records["target"] == UNDEFENDED)]
    return _judge(
        "accuracy",
        "A CNN classifies the slices with an accuracy of 93.23 %",
        "93.23 % on its test images",
        "accuracy of the undefended classifier on all clean test images",
        rate_estimate(clean["correct"].to_numpy(), jackknife_of(clean["image"].to_numpy()).groups),
        len(clean),
        above=f"holds from {100 * STUDY_ACCURACY:.2f} % up",
        bound=STUDY_ACCURACY,
    )


def _features_overlap(features: pd.DataFrame) -> list[Claim]:
    claims = []
    for names, rows in features.groupby(["feature_space", "target", "threat_model"], sort=False):
        space, target, threat_model = map(str, names)
        by_metric = rows.set_index("metric")
        best = by_metric.loc[["linear_probe_auroc", "knn_auroc"]].sort_values("value").iloc[-1]
        method = "probe" if best.name == "linear_probe_auroc" else "neighbours"
        p_value = float(by_metric["value"]["mmd_p_value"])
        where = f"in the bottleneck of the {display_name(target)}"
        if space == "classifier":
            behind = "" if target == UNDEFENDED else f" behind the {display_name(target)}"
            where = f"in the penultimate features of the classifier{behind}"
        claims.append(
            _judge(
                f"overlap/{space}/{target}/{threat_model}",
                f"Clean and adversarial images are not separable {where} ({threat_model} attack)",
                "the autoencoder's features overlap in PCA and t-SNE"
                + ("" if space == "bottleneck" else "; it reports nothing about the classifier's features"),
                f"AUROC of the better of linear probe and nearest neighbours (here the {method}) in all dimensions, "
                f"cross-validated by group; p-value of equal distributions (MMD): {p_value:.3g}",
                Estimate(best["value"], best["low"], best["high"]),
                int(rows["n"].iloc[0]),
                below=f"holds below {SEPARABLE_AUROC}",
                bound=SEPARABLE_AUROC,
            )
        )
    return claims


def _detection_is_limited(detection: pd.DataFrame, attack: str) -> list[Claim]:
    of_undefended = detection[detection["surrogate"] == UNDEFENDED]
    claims = []
    for access, name, attacker in (
        ("unaware", attack, "attack without access to the detector"),
        ("aware", f"{attack} and detector", "adaptive attack on the detector"),
    ):
        rows = of_undefended[of_undefended["attack"] == name].dropna(subset=["auroc_successful"])
        if rows.empty:
            continue
        columns = ["auroc_successful", "auroc_successful_low", "auroc_successful_high"]
        folded = [(_at_least_half(Estimate(*row[columns])), row) for _, row in rows.iterrows()]
        area, best = max(folded, key=lambda pair: pair[0].value)
        most = "" if name == attack else "; an upper bound, since a stronger attack may exist"
        claims.append(
            _judge(
                f"detection/{access}",
                f"No detector separates successful adversarial images from clean images ({attacker})",
                "limited discrimination between clean and adversarial images",
                f"AUROC of the best of {len(rows)} detectors, {best['detector']}, with the better sign of its score"
                f"{most}",
                area,
                int(best["n_successful"]),
                below=f"holds below {SEPARABLE_AUROC}",
                bound=SEPARABLE_AUROC,
            )
        )
    return claims


def _at_least_half(area: Estimate) -> Estimate:
    """AUROC of the score or of the negated score, whichever is larger."""
    return Estimate(1 - area.value, 1 - area.high, 1 - area.low) if area.value < 0.5 else area


def _defences_do_not_restore(records: pd.DataFrame, jackknife_of: JackknifeOf) -> list[Claim]:
    attacked = records[records["target"] == UNDEFENDED].set_index("image").sort_index()
    jackknife = jackknife_of(attacked.index.to_numpy())
    claims = []
    defences = records[records["target"] != UNDEFENDED].groupby(["target", "threat_model"], sort=False)
    for names, rows in defences:
        target, threat_model = map(str, names)
        defended = rows.set_index("image")["correct"].loc[attacked.index].to_numpy()
        claims.append(
            _judge(
                f"restoration/{target}/{threat_model}",
                f"The {display_name(target)} does not restore the accuracy that {threat_model} attacks take",
                "compromised resilience: denoised images are still misclassified",
                f"fraction of the lost accuracy that the {display_name(target)} restores ({threat_model})",
                restored_fraction(
                    attacked["clean_correct"].to_numpy(), attacked["correct"].to_numpy(), defended, jackknife
                ),
                len(attacked),
                below=f"holds below {100 * MIN_RESTORED_FRACTION:.0f} %",
                bound=MIN_RESTORED_FRACTION,
            )
        )
    return claims


def restored_fraction(
    clean: np.ndarray, undefended: np.ndarray, defended: np.ndarray, jackknife: GroupJackknife
) -> Estimate:
    """Fraction of the accuracy lost to an attack that a defence restores, with its 95 % interval by group.

    1: the defended classifier under attack is as accurate as the undefended classifier on clean images. 0: it is as
    accurate as the undefended classifier under attack. Negative: it is less accurate than that. NaN if no accuracy was
    lost.

    Args:
        clean: whether the undefended classifier is correct on each clean image, bool ``(N,)``.
        undefended: whether it is correct under attack, bool ``(N,)``.
        defended: whether the defended classifier is correct under attack, bool ``(N,)``.
        jackknife: of the images.
    """
    lost = clean.astype(np.float64) - undefended
    restored = defended.astype(np.float64) - undefended

    return jackknife.estimate(partial(resampled_ratio, restored, lost), UNBOUNDED)


def _retraining_helps(
    records: pd.DataFrame, plain: list[str], retrained: list[str], jackknife_of: JackknifeOf
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
            groups = jackknife_of(correct[1].index.to_numpy()).groups
            gain = compare_paired(correct[1].to_numpy(), correct[0].to_numpy(), groups).difference
            claims.append(
                _judge(
                    f"retraining/{without}/{using}/{threat_model}",
                    f"An autoencoder that is retrained on adversarial images helps ({threat_model} attack)",
                    "proposed as future work",
                    f"accuracy of the {display_name(using)} minus accuracy of the {display_name(without)}, on the same "
                    f"images ({threat_model})",
                    gain,
                    len(groups),
                    above=f"holds from {MIN_ACCURACY_GAIN:g} up",
                    bound=MIN_ACCURACY_GAIN,
                )
            )
    return claims


def _judge(
    key: str,
    statement: str,
    study_result: str,
    measure: str,
    measured: Estimate,
    n: int,
    *,
    bound: float,
    above: str = "",
    below: str = "",
) -> Claim:
    """Judge a claim by the side of the bound on which the interval is; it holds ``above`` or ``below`` the bound."""
    result: Result = "not significant"
    if measured.low >= bound:
        result = "holds" if above else "does not hold"
    elif measured.high < bound:
        result = "does not hold" if above else "holds"
    value, low, high = (None if math.isnan(number) else float(number) for number in measured)
    rule = f"{above or below}, if the whole 95 % interval is there; does not hold, if all of it is on the other side"
    return Claim(key, result, statement, study_result, measure, value, low, high, n, rule)
