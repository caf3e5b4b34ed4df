"""Claims of the study, and their results on the records of this run.

Every claim has a measured value with its 95 % interval by group, and a bound. A claim has a result if its value is
significantly on one side of the bound, after Holm's correction over all claims at the reported eps. The results at
other eps are descriptive: they are not corrected.

An accuracy under attack is an upper bound, since a stronger attack may exist. So the claim that a defence does not help
can hold, but the claim that it helps can only be "not broken by these attacks". Claims about defences use the worst
case of each image at the same operating point for all targets. The claim that a defence does not help compares two
upper bounds. It needs an attack on the other target that has converged; otherwise the accuracy of that target may be
too high.

An AUROC of probes or detectors is a lower bound on separability, since a better one may exist. So the claim that images
are not separable can be refuted, but it can never hold: its other results are "not separated by these probes" (or "by
these detectors") and "no power". It has no power if the attack breaks too few groups, or if the probe is not known to
find the classes.

A claim whose detectable difference is larger than the distance from its bound to the largest possible value has no
power either: no possible value above the bound could be shown with these data. An AUROC is at most 1. A retrained
autoencoder can gain at most its accuracy without attack minus the accuracy of its control under attack.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from tasks.analysis.claim_measures import (
    Claim,
    Result,
    accuracy_is_reached,
    defences_do_not_restore,
    detection_is_limited,
    features_overlap,
    retraining_helps,
)
from tasks.params import SAVED_ATTACKS, UNDEFENDED, ClaimBounds, Defence, DenoisingAutoencoder, RetrainedAutoencoder
from tasks.records.vocabulary import FIXED_SENSITIVITY, RECALIBRATED
from tasks.statistics.multiplicity import SIGNIFICANCE_LEVEL, holm

BOUND_SHIFTS = (-0.1, -0.05, 0.05, 0.1)
"""Changes of the bound with which each claim is judged again."""

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
    defences: Mapping[str, Defence],
    eps: float,
    bounds: ClaimBounds,
    unconverged: Mapping[str, Collection[float]],
) -> list[Claim]:
    """Judge every claim, in the order of the study.

    The claims are about the undefended classifier and the classifier behind an autoencoder.

    Args:
        records: of all targets.
        worst: of :func:`tasks.outcomes.worst_case.worst_case_outcomes`.
        features: overlap of clean and adversarial features (``features.csv``).
        detection: AUROC of the detectors (``detection.csv``).
        defences: settings of each defence among the targets, by name.
        eps: ``analyze.eps``, the eps of the values and of the family; one of those in the tables.
        bounds: of the claims.
        unconverged: eps at which the attack on a target has not converged, by target with a doubled stage.
    """
    attack = analysed_attack(records)
    plain = [name for name, settings in defences.items() if settings.kind == "autoencoder"]
    controls = noise_only_controls(defences)
    overlaps = features[(features["attack"] == attack) & features["target"].isin([UNDEFENDED, *plain])]
    compared = at_comparison_point(worst)
    by_eps = {
        each: [
            *features_overlap(overlaps[overlaps["eps"] == each], attack, bounds.separable_auroc),
            *detection_is_limited(detection[detection["eps"] == each], attack, bounds.separable_auroc),
            *defences_do_not_restore(compared, plain, each, bounds.min_restored_fraction, unconverged),
            *retraining_helps(compared, plain, controls, each, bounds.min_accuracy_gain, unconverged),
        ]
        for each in sorted(set(features["eps"]))
    }
    family = [accuracy_is_reached(records, bounds.study_accuracy), *by_eps[eps]]
    corrected = holm(np.array([math.nan if claim.p_value is None else claim.p_value for claim in family]))
    judged = [_judged(claim, p_value, eps, by_eps) for claim, p_value in zip(family, corrected, strict=True)]
    return judged if plain and controls else [*judged, RETRAINING_NOT_TESTED]


def _judged(claim: Claim, p_value: float, eps: float, by_eps: Mapping[float, list[Claim]]) -> Claim:
    """A claim at the reported eps with its result, and with its results at other eps and other bounds."""
    assert claim.bound is not None
    at_eps = {each: again for each, claims in by_eps.items() for again in claims if again.key == claim.key}
    others = [bound for shift in BOUND_SHIFTS if 0 <= (bound := claim.bound + shift) <= 1]
    result, reasons = result_of(claim, claim.bound, p_value), claim.reasons_without_power
    if result == "no power" and not can_show(claim, claim.bound):
        room = f"{max(claim.largest - claim.bound, 0):.4g}, up to {claim.largest:.4g}"
        reasons = [*reasons, f"the detectable distance from the bound is larger than {room}"]
    return replace(
        claim,
        result=result,
        reasons_without_power=reasons,
        p_value_holm=None if math.isnan(p_value) else float(p_value),
        result_by_bound={f"{bound:.4g}": result_of(claim, bound) for bound in others},
        result_by_bound_and_eps={
            f"{bound:.4g}": {f"{each:g}": result_of(again, bound) for each, again in at_eps.items()}
            for bound in sorted([*others, claim.bound])
        },
        result_by_eps={f"{each:g}": result_of(again, again.bound) for each, again in at_eps.items() if each != eps},
    )


def noise_only_controls(defences: Mapping[str, Defence]) -> dict[str, list[str]]:
    """Return the controls of each retrained autoencoder: the same network and epochs, on noise alone.

    Args:
        defences: settings of each defence, by name.
    """
    return {
        name: [
            other
            for other, control in defences.items()
            if isinstance(control, DenoisingAutoencoder)
            and (control.architecture, control.training) == (settings.architecture, settings.training)
        ]
        for name, settings in defences.items()
        if isinstance(settings, RetrainedAutoencoder)
    }


def analysed_attack(records: pd.DataFrame) -> str:
    """The attack whose images are analysed: PGD, or without PGD the first of ``SAVED_ATTACKS`` that ran."""
    ran = set(records["attack"])
    return "pgd" if "pgd" in ran else next(attack for attack in SAVED_ATTACKS if attack in ran)


def at_comparison_point(worst: pd.DataFrame) -> pd.DataFrame:
    """Rows of the worst cases at the operating point at which targets are compared.

    This is ``fixed_sensitivity`` with two classes, otherwise ``recalibrated``; ``as_trained`` if the validation images
    allow no other operating point.
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
    if claim.value is None:
        # detectors without different scores give no claim, so the groups are too few for pairs
        return "too few groups" if claim.separated_by == "detectors" else "undefined"
    if claim.low is None or claim.high is None:
        return "too few groups"
    if claim.low == claim.high:
        # an interval of width 0 gives no conclusion
        return "undefined"
    is_significant = (claim.low >= bound or claim.high < bound) and (p_value is None or p_value <= SIGNIFICANCE_LEVEL)
    is_above = claim.value >= bound
    if claim.reasons_without_power and not (is_significant and is_above):
        return "no power"
    if not is_significant:
        return "not significant" if can_show(claim, bound) else "no power"
    if is_above and claim.bounds_robustness:
        return "not broken by these attacks"
    if claim.separated_by and not is_above:
        return "not separated by these probes" if claim.separated_by == "probes" else "not separated by these detectors"
    if claim.bounds_robustness and not claim.has_converged:
        return "attack not converged"
    return "holds" if is_above == claim.above else "does not hold"


def can_show(claim: Claim, bound: float) -> bool:
    """Return whether the data can show a value on the tested side of the bound.

    The tested side is above the bound, up to the largest possible value, if the claim holds there, or if it is about
    separability, which can only be shown. Below a bound there is no such limit: a defence can make the accuracy lower.
    """
    is_above = claim.above or bool(claim.separated_by)
    return not is_above or claim.detectable_difference is None or claim.detectable_difference <= claim.largest - bound
