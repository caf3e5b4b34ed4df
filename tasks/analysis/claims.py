"""Claims of the study, and their outcome for our records.

Every claim has a measured value with its 95 % interval by group, and a bound. Its result is the side of the bound on
which the value is, if that is significant after Holm's correction over all claims at the reported eps. The results at
other eps are descriptive: they are not corrected.

An accuracy under attack is an upper bound, since a stronger attack may exist. So that a defence does not help can hold,
and that it helps can only be "not broken by these attacks". Claims about defences use the worst case of each image at
the same operating point for all targets.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from statistics import NormalDist
from typing import Literal

import numpy as np
import pandas as pd

from tasks.params import UNDEFENDED, ClaimBounds
from tasks.records.vocabulary import CLEAN, FIXED_SENSITIVITY, RECALIBRATED, display_name
from tasks.records.worst_case import robust_outcomes
from tasks.statistics.balanced import balanced_ratio, compare_balanced
from tasks.statistics.intervals import Estimate
from tasks.statistics.multiplicity import holm
from tasks.statistics.rates import rate_estimate

ALPHA = 0.05
"""Significance level of the family of all claims at the reported eps."""
POWER = 0.8
"""Power of the smallest difference that the data can show."""
BOUND_SHIFTS = (-0.1, -0.05, 0.05, 0.1)
"""Changes of the bound at which each claim is judged again."""

Result = Literal[
    "holds", "does not hold", "not broken by these attacks", "not significant", "too few groups", "not tested"
]
"""``not tested``: the run has no such defence."""


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
    """Bounds of the 95 % interval by group; None if there are too few groups."""
    n: int | None
    """Number of images; None if the claim was not tested."""
    n_groups: int | None
    """Number of their groups."""
    bound: float | None
    above: bool
    """True if the claim holds above the bound; otherwise it holds below."""
    bounds_robustness: bool
    """True if a value above the bound comes from a robust accuracy, which is an upper bound only."""
    p_value: float | None = None
    """Two-sided, that the true value equals the bound; from the interval on the normal scale."""
    p_value_holm: float | None = None
    """Corrected for all claims at the reported eps."""
    detectable_difference: float | None = None
    """Smallest distance from the bound that these data show with 80 % probability."""
    result_by_eps: dict[str, Result] = field(default_factory=dict)
    """Result at the other eps, by eps; not corrected."""
    result_by_bound: dict[str, Result] = field(default_factory=dict)
    """Result with other bounds, by bound."""


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
    n_groups=None,
    bound=None,
    above=True,
    bounds_robustness=True,
)


def judge_claims(
    records: pd.DataFrame,
    worst: pd.DataFrame,
    features: pd.DataFrame,
    detection: pd.DataFrame,
    kinds: Mapping[str, str],
    eps: float,
    bounds: ClaimBounds,
) -> list[Claim]:
    """Judge every claim, in the order of the study.

    The claims are about the undefended classifier and the classifier behind an autoencoder.

    Args:
        records: of all targets.
        worst: of :func:`tasks.records.worst_case.smallest_breaking_eps`.
        features: overlap of clean and adversarial features (``features.csv``).
        detection: AUROC of the detectors (``detection.csv``).
        kinds: kind of each defence among the targets, by name.
        eps: ``analyze.eps``, the eps of the values and of the family; one of those in the tables.
        bounds: of the claims.
    """
    attack = analysed_attack(records)
    names = {
        kind: [name for name in kinds if kinds[name] == kind]
        for kind in ("autoencoder", "retrained_autoencoder", "denoising_autoencoder")
    }
    plain, retrained = names["autoencoder"], names["retrained_autoencoder"]
    overlaps = features[(features["attack"] == attack) & features["target"].isin([UNDEFENDED, *plain])]
    compared = at_comparison_point(worst)
    by_eps = {
        each: [
            *_features_overlap(overlaps[overlaps["eps"] == each], attack, bounds.separable_auroc),
            *_detection_is_limited(detection[detection["eps"] == each], attack, bounds.separable_auroc),
            *_defences_do_not_restore(compared, plain, each, bounds.min_restored_fraction),
            *_retraining_helps(compared, plain, names["denoising_autoencoder"], retrained, each, bounds),
        ]
        for each in sorted(set(features["eps"]))
    }
    family = [_accuracy_is_reached(records, bounds.study_accuracy), *by_eps[eps]]
    corrected = holm(np.array([math.nan if claim.p_value is None else claim.p_value for claim in family]))
    judged = [
        replace(
            claim,
            result=result_of(claim, claim.bound, p_value),
            p_value_holm=None if math.isnan(p_value) else float(p_value),
            result_by_bound={
                f"{claim.bound + shift:.4g}": result_of(claim, claim.bound + shift)
                for shift in BOUND_SHIFTS
                if claim.bound is not None and 0 <= claim.bound + shift <= 1
            },
            result_by_eps={
                f"{other:g}": result_of(again, again.bound)
                for other, claims in by_eps.items()
                for again in claims
                if other != eps and again.key == claim.key
            },
        )
        for claim, p_value in zip(family, corrected, strict=True)
    ]
    return judged if plain and retrained else [*judged, RETRAINING_NOT_TESTED]


def analysed_attack(records: pd.DataFrame) -> str:
    """The attack whose images are analysed: PGD, or FGSM without PGD."""
    return "pgd" if (records["attack"] == "pgd").any() else "fgsm"


def at_comparison_point(worst: pd.DataFrame) -> pd.DataFrame:
    """Rows of the worst cases at the operating point at which targets are compared.

    This is ``fixed_sensitivity`` with two classes, otherwise ``recalibrated``; ``as_trained`` where validation images
    allow no other.
    """
    points = worst.groupby("operating_point")["target"].nunique()
    complete = points.index[points == worst["target"].nunique()]
    for name in (FIXED_SENSITIVITY, RECALIBRATED):
        if name in complete:
            return worst[worst["operating_point"] == name]
    return worst[worst["operating_point"] == "as_trained"]


def result_of(claim: Claim, bound: float | None, p_value: float | None = None) -> Result:
    """Result of a claim with a bound.

    Args:
        claim: with its value and interval.
        bound: of the value; None if the claim was not tested.
        p_value: corrected; the interval decides without it.
    """
    if bound is None:
        return "not tested"
    if claim.value is None or claim.low is None or claim.high is None:
        return "too few groups"
    is_significant = claim.low >= bound or claim.high < bound
    if not is_significant or (p_value is not None and not p_value <= ALPHA):
        return "not significant"
    is_above = claim.value >= bound
    if is_above and claim.bounds_robustness:
        return "not broken by these attacks"
    return "holds" if is_above == claim.above else "does not hold"


def _accuracy_is_reached(records: pd.DataFrame, bound: float) -> Claim:
    clean = records[(records["attack"] == CLEAN) & (records["target"] == UNDEFENDED)]
    groups = clean["group"].to_numpy()
    return _claim(
        "accuracy",
        f"A CNN classifies the slices with an accuracy of {100 * bound:.4g} %",
        "93.23 % on its test images",
        "accuracy of the undefended classifier on all clean test images",
        rate_estimate(clean["correct"].to_numpy(dtype=bool), groups),
        len(clean),
        len(set(groups)),
        bound,
        above=True,
    )


def _features_overlap(features: pd.DataFrame, attack: str, bound: float) -> list[Claim]:
    claims = []
    for names, rows in features.groupby(["feature_space", "target", "threat_model"], sort=False):
        space, target, threat_model = map(str, names)
        by_metric = rows.set_index("metric")
        both = by_metric.loc[["linear_probe_auroc", "knn_auroc"]].sort_values("value")
        method = "probe" if both.index[-1] == "linear_probe_auroc" else "neighbours"
        p_value = float(by_metric["value"]["mmd_p_value"])
        where = f"in the bottleneck of the {display_name(target)}"
        if space == "classifier":
            behind = "" if target == UNDEFENDED else f" behind the {display_name(target)}"
            where = f"in the penultimate features of the classifier{behind}"
        claims.append(
            _claim(
                f"overlap/{space}/{target}/{threat_model}",
                f"Clean and adversarial images are hardly separable (AUROC below {bound:g}) {where} ({threat_model} "
                "attack)",
                "the autoencoder's features overlap in PCA and t-SNE"
                + ("" if space == "bottleneck" else "; it reports nothing about the classifier's features"),
                f"AUROC of the better of linear probe and nearest neighbours (here the {method}) in all dimensions, "
                f"cross-validated by group, {attack.upper()}; p-value of equal distributions (MMD): {p_value:.3g}",
                _best([Estimate(*row) for row in both[["value", "low", "high"]].to_numpy()]),
                int(rows["n"].iloc[0]),
                int(rows["n_groups"].iloc[0]),
                bound,
                above=False,
            )
        )
    return claims


def _detection_is_limited(detection: pd.DataFrame, attack: str, bound: float) -> list[Claim]:
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
        _, best = max(folded, key=lambda pair: pair[0].value)
        claims.append(
            _claim(
                f"detection/{access}",
                f"No detector separates successful adversarial images from clean images ({attacker})",
                "limited discrimination between clean and adversarial images",
                f"AUROC of the best of {len(rows)} detectors, {best['detector']}, with the better sign of its score",
                _best([area for area, _ in folded]),
                int(best["n_successful"]),
                int(best["n_groups_successful"]),
                bound,
                above=False,
                # a detector that detects these attacks may be evaded by stronger ones
                bounds_robustness=access == "aware",
            )
        )
    return claims


def _at_least_half(area: Estimate) -> Estimate:
    """AUROC of the score or of the negated score, whichever is larger."""
    return Estimate(1 - area.value, 1 - area.high, 1 - area.low) if area.value < 0.5 else area


def _best(estimates: Sequence[Estimate]) -> Estimate:
    """The largest of several estimates, with an interval that allows for the choice.

    All are below a bound if the largest upper bound is. One of k is above it if its lower bound is at the level of 1 -
    0.05 / k (Bonferroni).
    """
    largest = max(estimates, key=lambda estimate: estimate.value)
    normal = NormalDist()
    factor = normal.inv_cdf(1 - 0.025 / len(estimates)) / normal.inv_cdf(0.975)
    low = largest.value - factor * (largest.value - largest.low)
    return Estimate(largest.value, low, max(estimate.high for estimate in estimates))


def _outcomes(compared: pd.DataFrame, target: str, threat_model: str, eps: float) -> pd.DataFrame:
    """Label, group and robust_correct of each image in the worst case at an eps, by image."""
    is_wanted = (compared["target"] == target) & (compared["threat_model"] == threat_model)
    return robust_outcomes(compared[is_wanted], [eps]).set_index("image").sort_index()


def _defences_do_not_restore(compared: pd.DataFrame, plain: list[str], eps: float, bound: float) -> list[Claim]:
    clean, bare = (_outcomes(compared, UNDEFENDED, "adaptive", each) for each in (0.0, eps))
    labels, groups = bare["label"].to_numpy(), bare["group"].to_numpy()
    lost = clean["robust_correct"].to_numpy(dtype=np.float64) - bare["robust_correct"]
    claims = []
    for target, threat_model in product(plain, ("transfer", "adaptive")):
        defended = _outcomes(compared, target, threat_model, eps)["robust_correct"].loc[bare.index]
        restored = defended.to_numpy(dtype=np.float64) - bare["robust_correct"]
        claims.append(
            _claim(
                f"restoration/{target}/{threat_model}",
                f"The {display_name(target)} does not restore the accuracy that {threat_model} attacks take",
                "compromised resilience: denoised images are still misclassified",
                f"fraction of the lost balanced accuracy that the {display_name(target)} restores, worst case of "
                f"{threat_model} attacks",
                balanced_ratio(restored.to_numpy(), lost.to_numpy(), labels, groups),
                len(bare),
                len(set(groups)),
                bound,
                above=False,
                bounds_robustness=True,
            )
        )
    return claims


def _retraining_helps(
    compared: pd.DataFrame,
    plain: list[str],
    noise_only: list[str],
    retrained: list[str],
    eps: float,
    bounds: ClaimBounds,
) -> list[Claim]:
    """Compare retrained autoencoders with those that were trained further on noise alone, or without such a control."""
    claims = []
    for without, using, threat_model in product(noise_only or plain, retrained, ("transfer", "adaptive")):
        before, after = (_outcomes(compared, target, threat_model, eps) for target in (without, using))
        found = compare_balanced(
            after["robust_correct"].to_numpy(dtype=bool),
            before["robust_correct"].loc[after.index].to_numpy(dtype=bool),
            after["label"].to_numpy(),
            after["group"].to_numpy(),
        )
        control = "" if noise_only else "; without a control that is trained further on noise alone"
        claims.append(
            _claim(
                f"retraining/{without}/{using}/{threat_model}",
                f"An autoencoder that is retrained on adversarial images helps ({threat_model} attack)",
                "proposed as future work",
                f"balanced accuracy of the {display_name(using)} minus that of the {display_name(without)}, worst case "
                f"of {threat_model} attacks{control}",
                found.difference,
                len(after),
                after["group"].nunique(),
                bounds.min_accuracy_gain,
                above=True,
                bounds_robustness=True,
            )
        )
    return claims


def _claim(
    key: str,
    statement: str,
    study_result: str,
    measure: str,
    measured: Estimate,
    n: int,
    n_groups: int,
    bound: float,
    *,
    above: bool,
    bounds_robustness: bool = False,
) -> Claim:
    """A claim with its p-value and detectable difference; its result is not judged yet."""
    value, low, high = (None if math.isnan(number) else float(number) for number in measured)
    claim = Claim(
        key, "not tested", statement, study_result, measure, value, low, high, n, n_groups, bound, above,
        bounds_robustness,
    )  # fmt: skip
    if value is None or low is None or high is None:
        return claim
    normal = NormalDist()
    distance = value - low if value >= bound else high - value
    z = normal.inv_cdf(0.975) * abs(value - bound) / distance if distance > 0 else math.inf
    detectable = (normal.inv_cdf(0.975) + normal.inv_cdf(POWER)) / normal.inv_cdf(0.975) * (high - low) / 2
    return replace(claim, p_value=2 * (1 - normal.cdf(z)), detectable_difference=detectable)
