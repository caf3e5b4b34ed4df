"""Measured values of the claims of the study, with 95 % intervals by group."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from statistics import NormalDist
from typing import Literal

import numpy as np
import pandas as pd

from tasks.outcomes.names import BEST_DETECTOR, DETECTOR_EVASION, display_name
from tasks.params import UNDEFENDED
from tasks.records.vocabulary import CLEAN
from tasks.statistics.balanced import balanced_accuracies, balanced_ratio, compare_balanced
from tasks.statistics.formatting import TOO_FEW_GROUPS
from tasks.statistics.groups import MIN_EFFECTIVE_GROUPS, MIN_GROUPS_OF_TEST
from tasks.statistics.intervals import RATE, UNBOUNDED, Bounds, Estimate, best_of, p_value_of_interval
from tasks.statistics.rates import rate_estimate

POWER = 0.8
"""Power of the smallest difference that the data can show."""

Result = Literal[
    "holds",
    "does not hold",
    "not broken by these attacks",
    "not separated by these probes",
    "not separated by these detectors",
    "no power",
    "attack not converged",
    "not significant",
    "too few groups",
    "undefined",
    "not tested",
]
"""``undefined``: the data have no value, for example if all scores are equal or no accuracy was lost;
``attack not converged``: the defence seems not to help, but the attack on the target in the comparison is too weak for
this conclusion; ``no power``: probes or detectors separate nothing, but could not be expected to, or the detectable
difference is larger than the distance from the bound to the largest possible value; ``not tested``: the run has no such
defence."""

MIN_BROKEN_GROUPS = MIN_GROUPS_OF_TEST
"""Groups with a broken image below which a claim of non-separability has no power."""
CHANCE_AUROC = 0.5
"""AUROC of a probe that finds nothing."""


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
    has_converged: bool = True
    """True if twice the effort does not change the accuracy of the target that the defence is compared with; False also
    if this was not measured."""
    separated_by: Literal["", "probes", "detectors"] = ""
    """Methods whose AUROC is the value. It is a lower bound on separability, since a better method may exist."""
    reasons_without_power: list[str] = field(default_factory=list)
    """Reasons for which a low AUROC says nothing: the attack breaks too few groups, or the probe is not known to find
    the classes. Of a claim with the result "no power" also: the detectable difference is too large."""
    p_value: float | None = None
    """Two-sided p-value of the hypothesis that the true value equals the bound, from the interval."""
    p_value_holm: float | None = None
    """The p-value, corrected for all claims at the reported eps."""
    detectable_difference: float | None = None
    """Smallest distance from the bound that these data show with 80 % probability."""
    largest: float = 1.0
    """Largest value that was possible on these images."""
    result_by_eps: dict[str, Result] = field(default_factory=dict)
    """Result at the other eps, by eps; not corrected."""
    result_by_bound: dict[str, Result] = field(default_factory=dict)
    """Result with other bounds, by bound."""
    result_by_bound_and_eps: dict[str, dict[str, Result]] = field(default_factory=dict)
    """Result with each bound at each eps, by bound and eps; not corrected."""


def accuracy_is_reached(records: pd.DataFrame, bound: float) -> Claim:
    """Return the claim about clean accuracy.

    Args:
        records: of all targets.
        bound: of the accuracy.
    """
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


def features_overlap(features: pd.DataFrame, attack: str, bound: float) -> list[Claim]:
    """Return the claims that clean and adversarial features overlap, for each feature space, target and threat model.

    Args:
        features: overlap of the features at one eps.
        attack: whose images were compared.
        bound: of the AUROC.
    """
    claims = []
    for names, rows in features.groupby(["feature_space", "target", "threat_model"], sort=False):
        space, target, threat_model = map(str, names)
        by_metric, n_groups = rows.set_index("metric"), int(rows["n_groups"].iloc[0])
        probes = ["linear_probe_auroc", "knn_auroc"]
        both = by_metric.loc[probes].sort_values("value", na_position="first")
        method = "probe" if both.index[-1] == "linear_probe_auroc" else "neighbours"
        p_value = float(by_metric["value"]["mmd_p_value"])
        of_classes = Estimate(*by_metric.loc["class_auroc_clean", ["value", "low", "high"]].astype(float))
        broken = by_metric.loc[[f"{name}_successful" for name in probes]]
        n_broken, n_broken_groups = (int(broken[name].iloc[0]) for name in ("n", "n_groups"))
        on_broken = "" if broken["value"].isna().all() else f", AUROC on these {broken['value'].max():.3g}"
        by_class = "undefined"
        if not math.isnan(of_classes.value):
            is_too_few = math.isnan(of_classes.low)
            interval = TOO_FEW_GROUPS if is_too_few else f"[{of_classes.low:.3g}, {of_classes.high:.3g}]"
            by_class = f"{of_classes.value:.3g} {interval}"
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
                f"cross-validated by group, {attack.upper()}; p-value of equal distributions (MMD): {p_value:.3g}; "
                f"broken images: {n_broken} of {n_broken_groups} groups{on_broken}; AUROC of a linear probe for the "
                f"class: {by_class}",
                best_of(
                    [Estimate(*row) for row in both[["value", "low", "high"]].dropna(subset="value").to_numpy()],
                    n_groups,
                ),
                int(rows["n"].iloc[0]),
                n_groups,
                bound,
                above=False,
                separated_by="probes",
                reasons_without_power=reasons_without_power(by_metric),
            )
        )
    return claims


def reasons_without_power(by_metric: pd.DataFrame) -> list[str]:
    """Return the reasons for which a low AUROC of the probes says nothing.

    There is none if the probe finds the classes, and the attack breaks images of enough groups.

    Args:
        by_metric: rows of ``features.csv`` of one feature space, curve and eps, with the metric as the index.
    """
    reasons = _too_few_broken(int(by_metric["n_groups"]["linear_probe_auroc_successful"]))
    n_groups, value, low = (float(by_metric[name]["class_auroc_clean"]) for name in ("n_groups", "value", "low"))
    if math.isnan(value):
        reasons.append("the AUROC of the classes is undefined")
    elif math.isnan(low):
        reasons.append(
            f"too few groups ({n_groups:.0f} of all classes, at least {MIN_EFFECTIVE_GROUPS:g} effective groups of "
            "each class are needed) to test whether the probe finds the classes"
        )
    elif low <= CHANCE_AUROC:
        reasons.append("the probe does not find the classes")
    return reasons


def _too_few_broken(n_groups: int) -> list[str]:
    if n_groups >= MIN_BROKEN_GROUPS:
        return []
    return [f"the attack breaks images of too few groups ({n_groups}, at least {MIN_BROKEN_GROUPS} are needed)"]


def detection_is_limited(detection: pd.DataFrame, attack: str, bound: float) -> list[Claim]:
    """Return the claims that detection is limited, under attacks without and with access to the detector.

    Args:
        detection: AUROC of the detectors at one eps.
        attack: without access to the detector.
        bound: of the AUROC.
    """
    of_undefended = detection[(detection["surrogate"] == UNDEFENDED) & (detection["detector"] == BEST_DETECTOR)]
    claims = []
    for access, name, attacker, choice in (
        ("unaware", attack, "attack without access to the detector", "with the better sign of its score "),
        ("aware", DETECTOR_EVASION, "adaptive attack on the detector", ""),
    ):
        rows = of_undefended[(of_undefended["attack"] == name) & (of_undefended["n_detectors"] > 0)]
        if rows.empty:
            continue
        best = rows.iloc[0]
        claims.append(
            _claim(
                f"detection/{access}",
                f"No detector separates successful adversarial images from clean images ({attacker})",
                "limited discrimination between clean and adversarial images",
                f"AUROC of the best of {best['n_detectors']:.0f} detectors, chosen {choice}"
                f"on the images of other groups; {best['n_successful']:.0f} successful images of "
                f"{best['n_groups_successful']:.0f} groups, of which {best['n_groups_auroc']:.0f} share their fold "
                "with another group and count",
                Estimate(*best[["auroc_successful", "auroc_successful_low", "auroc_successful_high"]]),
                int(best["n_auroc"]),
                int(best["n_groups_auroc"]),
                bound,
                above=False,
                # a detector that detects these attacks may be evaded by stronger ones
                bounds_robustness=access == "aware",
                separated_by="detectors",
                reasons_without_power=_too_few_broken(int(best["n_groups_successful"])),
            )
        )
    return claims


def _outcomes(compared: pd.DataFrame, target: str, threat_model: str, eps: float) -> pd.DataFrame:
    """Label, group and robust_correct of each image in the worst case at an eps, by image."""
    is_wanted = (compared["target"] == target) & (compared["threat_model"] == threat_model) & (compared["eps"] == eps)
    return compared[is_wanted].set_index("image").sort_index()


def defences_do_not_restore(
    compared: pd.DataFrame, plain: list[str], eps: float, bound: float, unconverged: Mapping[str, Collection[float]]
) -> list[Claim]:
    """Return the claims that autoencoders do not restore the lost accuracy, for each and each threat model.

    Args:
        compared: worst case of all targets at one operating point.
        plain: names of the autoencoders.
        eps: of the attacks.
        bound: of the restored fraction.
        unconverged: eps at which the attack on a target has not converged, by target with a doubled stage.
    """
    clean, undefended = (_outcomes(compared, UNDEFENDED, "adaptive", each) for each in (0.0, eps))
    labels, groups = undefended["label"].to_numpy(), undefended["group"].to_numpy()
    # a constant prediction restores nothing: it replaces the undefended classifier where this is worse
    reference, lowest = undefended["robust_correct"].to_numpy(dtype=np.float64), 1 / len(set(labels))
    if balanced_accuracies(reference[None], labels, groups)[0].value < lowest:
        reference = np.full(len(labels), lowest)
    lost = clean["robust_correct"].to_numpy(dtype=np.float64) - reference
    claims = []
    for target, threat_model in product(plain, ("transfer", "adaptive")):
        defended = _outcomes(compared, target, threat_model, eps)["robust_correct"].loc[undefended.index]
        restored = defended.to_numpy(dtype=np.float64) - reference
        claims.append(
            _claim(
                f"restoration/{target}/{threat_model}",
                f"The {display_name(target)} does not restore the accuracy that {threat_model} attacks take",
                "compromised resilience: denoised images are still misclassified",
                f"fraction of the lost balanced accuracy that the {display_name(target)} restores above the better of "
                f"the undefended classifier and a constant prediction, worst case of {threat_model} attacks",
                balanced_ratio(restored, lost, labels, groups),
                len(undefended),
                len(set(groups)),
                bound,
                above=False,
                bounds=UNBOUNDED,
                bounds_robustness=True,
                has_converged=UNDEFENDED in unconverged and eps not in unconverged[UNDEFENDED],
            )
        )
    return claims


def retraining_helps(
    compared: pd.DataFrame,
    plain: list[str],
    controls: Mapping[str, list[str]],
    eps: float,
    bound: float,
    unconverged: Mapping[str, Collection[float]],
) -> list[Claim]:
    """Return the claims that retrained autoencoders help, compared with their controls, or with the plain ones.

    Args:
        compared: worst case of all targets at one operating point.
        plain: names of the autoencoders that were not trained further.
        controls: of each retrained autoencoder, trained further on noise alone.
        eps: of the attacks.
        bound: of the gain in balanced accuracy.
        unconverged: eps at which the attack on a target has not converged, by target with a doubled stage.
    """
    claims = []
    pairs = [(without, using) for using, noise_only in controls.items() for without in noise_only or plain]
    for (without, using), threat_model in product(pairs, ("transfer", "adaptive")):
        before, after = (_outcomes(compared, target, threat_model, eps) for target in (without, using))
        labels, groups = after["label"].to_numpy(), after["group"].to_numpy()
        first, second = after["robust_correct"].to_numpy(), before["robust_correct"].loc[after.index].to_numpy()
        lowest = 1 / len(set(labels))
        of_both = balanced_accuracies(np.stack([first, second]), labels, groups)
        difference = compare_balanced(first, second, labels, groups).difference
        if of_both[1].value < lowest:
            # a constant prediction is better than the other autoencoder
            difference = Estimate(*(bound - lowest for bound in of_both[0]))
        # no attack makes more images correct than there are without an attack
        clean = _outcomes(compared, using, "adaptive", 0.0)["robust_correct"].loc[after.index].to_numpy()
        unattacked = balanced_accuracies(clean[None], labels, groups)[0].value
        control = "" if controls[using] else "; without a control that is trained further on noise alone"
        claims.append(
            _claim(
                f"retraining/{without}/{using}/{threat_model}",
                f"An autoencoder that is retrained on adversarial images helps ({threat_model} attack)",
                "proposed as future work",
                f"balanced accuracy of the {display_name(using)} minus that of the {display_name(without)}, or of a "
                f"constant prediction if that is better, worst case of {threat_model} attacks{control}",
                difference,
                len(after),
                len(set(groups)),
                bound,
                above=True,
                bounds=UNBOUNDED,
                bounds_robustness=True,
                has_converged=without in unconverged and eps not in unconverged[without],
                largest=unattacked - max(of_both[1].value, lowest),
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
    bounds: Bounds = RATE,
    bounds_robustness: bool = False,
    has_converged: bool = True,
    separated_by: Literal["", "probes", "detectors"] = "",
    reasons_without_power: Sequence[str] = (),
    largest: float = 1.0,
) -> Claim:
    """A claim about a value in the given bounds, with its p-value and detectable difference; not judged yet."""
    value, low, high = (None if math.isnan(number) else float(number) for number in measured)
    claim = Claim(
        key, "not tested", statement, study_result, measure, value, low, high, n, n_groups, bound, above,
        bounds_robustness, has_converged, separated_by, list(reasons_without_power), largest=largest,
    )  # fmt: skip
    if value is None or low is None or high is None:
        return claim
    p_value = p_value_of_interval(measured, bound, bounds, n_groups)
    # with quantiles of Student's t, whose degrees of freedom are not known here, the ratio would be smaller
    normal = NormalDist()
    detectable = (normal.inv_cdf(0.975) + normal.inv_cdf(POWER)) / normal.inv_cdf(0.975) * (high - low) / 2
    return replace(claim, p_value=p_value, detectable_difference=detectable)
