"""Checks of the evaluation: tests whether the robust accuracy of a target is reliable.

After Carlini et al. 2019, "On Evaluating Adversarial Robustness" (arXiv 1902.06705), and AutoAttack's flags (Croce and
Hein 2020, arXiv 2003.01690). Passed checks do not prove robustness. ``docs/reference/checks.md`` explains when each
check is raised, its meaning and the next action.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tasks.evaluation import attack_checks, target_checks
from tasks.evaluation.check_inputs import CheckInputs, CheckOutcome, Status

CHECKS: dict[str, tuple[str, Callable[[CheckInputs], CheckOutcome | None]]] = {
    "majority_class": ("clean accuracy is above the fraction of the majority class", target_checks.majority_class),
    "shortcut_baseline": ("clean accuracy is above that of shortcuts", target_checks.shortcut_baseline),
    "constant": ("balanced robust accuracy is above that of a constant prediction", target_checks.constant),
    "monotone_in_eps": ("robust accuracy does not rise with eps", attack_checks.monotone_in_eps),
    "pgd_vs_fgsm": ("PGD is at least as strong as FGSM", attack_checks.pgd_vs_fgsm),
    "art_reference": ("FGSM and PGD are at least as strong as those of ART", attack_checks.art_reference),
    "unbounded_attack": ("an unbounded attack leaves an accuracy of at most 1 %", attack_checks.unbounded_attack),
    "more_steps": ("twice the steps and restarts change accuracy by less than 1 point", attack_checks.more_steps),
    "black_box": ("black-box attacks break no image that white-box attacks miss", attack_checks.black_box),
    "random_noise": ("random noise lowers accuracy less than the attacks", attack_checks.random_noise),
    "transfer_vs_adaptive": (
        "transfer attacks are not stronger than adaptive attacks",
        attack_checks.transfer_vs_adaptive,
    ),
    "adaptive_advantage": (
        "adaptive attacks are clearly stronger than transfer attacks",
        attack_checks.adaptive_advantage,
    ),
    "gradients": ("gradients are nonzero and finite", target_checks.gradients),
    "gradient_agreement": ("the change of the margin agrees with the gradient", target_checks.gradient_agreement),
    "outputs": ("outputs are logits, repeatable, and independent of other images", target_checks.outputs),
    "norm_bound": ("every adversarial example lies in its ball", target_checks.norm_bound),
    "positive_control": ("a target that is known to be broken is broken", attack_checks.positive_control),
    "success_definition": ("successes count only images that were correct before", target_checks.success_definition),
}
"""Key -> the statement that is checked, and the check; in the order of ``docs/reference/checks.md``."""

GRADIENT_CHECKS = frozenset({"gradients", "gradient_agreement"})
"""Checks of the gradients of the target itself."""


@dataclass(frozen=True)
class CheckResult:
    """Outcome of one check, with its target and name; an entry of ``checks.json``."""

    target: str | None
    """None for a check of the data."""
    key: str
    """Key of the check, in tags and in ``docs/reference/checks.md``."""
    name: str
    """The statement that is checked."""
    status: Status
    value: float | None
    """See :class:`tasks.evaluation.check_inputs.CheckOutcome`."""
    explanation: str


def run_checks(
    inputs: Sequence[CheckInputs], leakage: dict[str, Any], *, has_gradients: bool = True
) -> list[CheckResult]:
    """Run all checks of all targets in a fixed order; checks that do not apply to a target are left out.

    Args:
        inputs: of each target.
        leakage: of :func:`tasks.dataset.leakage.measure_leakage`, as measured by the step prepare.
        has_gradients: False for a classifier that is only queried: attacks use the gradients of surrogates, which say
            nothing about the target.
    """
    results = []
    for of_target in inputs:
        for key, (name, check) in CHECKS.items():
            if (has_gradients or key not in GRADIENT_CHECKS) and (outcome := check(of_target)):
                results.append(CheckResult(of_target.name, key, name, **vars(outcome)))
    of_data = CheckResult(None, "leakage", "no test image has a relative in training", **vars(_leakage(leakage)))
    return [*results, of_data]


def count_checks(checks: list[CheckResult]) -> pd.DataFrame:
    """Numbers of warnings and failures of each target: ``n_warn`` and ``n_fail``, by target."""
    statuses = pd.DataFrame([{"target": check.target, "status": check.status} for check in checks])
    counts = pd.crosstab(statuses["target"], statuses["status"]).reindex(columns=["WARN", "FAIL"], fill_value=0)
    return counts.rename(columns={"WARN": "n_warn", "FAIL": "n_fail"})


def _leakage(leakage: dict[str, Any]) -> CheckOutcome:
    fractions, estimate = leakage["fractions"], leakage["estimate"]
    explanation = (
        f"{100 * fractions['near_duplicate_in_train']:.1f} % of the test images have a near-duplicate in training, "
        f"{100 * fractions['group_in_train']:.1f} % an image of their group"
    )
    if leakage["outcome"] == "exact":
        exact = float(fractions["patient_in_train"])
        explanation += f", {100 * exact:.1f} % an image of their patient"
        if not exact:
            return CheckOutcome("PASS", exact, explanation)
        return CheckOutcome("WARN", exact, f"{explanation}. prepare.split.strategy grouped keeps patients in one split")
    explanation += ". The groups are inferred, so they cannot verify a split that was drawn by these groups"
    if estimate["value"] is None:
        return CheckOutcome("UNVERIFIED", None, f"{explanation}; an estimate was not possible")
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    explanation += (
        f"; from the similarity of grey-level histograms, an estimated {value:.0f} % [{low:.0f}, {high:.0f}] of "
        "the test images have an image of their patient in training (20 to 30 % is possible without any leakage). Add "
        "patient ids for an exact value"
    )
    return CheckOutcome("UNVERIFIED", float(estimate["value"]), explanation)
