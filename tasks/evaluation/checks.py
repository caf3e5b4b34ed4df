"""Checks of the evaluation: whether the robust accuracy of a target can be trusted.

After Carlini et al. 2019, "On Evaluating Adversarial Robustness" (arXiv 1902.06705), and AutoAttack's flags (Croce and
Hein 2020, arXiv 2003.01690). If all checks pass, robustness is not proven. ``docs/reference/checks.md`` explains when
each check is raised, what it means and what to do.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from tasks.evaluation.robustness import curves_of
from tasks.params import UNDEFENDED
from tasks.records.perturbation_norms import TOLERANCE, ball_excess
from tasks.records.vocabulary import CLEAN, SWEEP
from tasks.records.worst_case import worst_case_accuracy
from tasks.statistics.intervals import wilson

MAX_CONTROL_ACCURACY = 0.01
"""Maximum accuracy where an attack must break every image."""
MAX_BLACK_BOX_ONLY = 0.002
"""Maximum fraction of images that black-box attacks break and white-box attacks do not."""
MAX_ZERO_GRADIENT = 0.01
"""Maximum fraction of images whose gradient is zero."""
LOGIT_TOLERANCE = 1e-4
"""Differences of a logit up to this value are rounding errors."""
MAX_UNREPEATABLE = 0.01
"""Maximum fraction of images whose predicted class changes between passes."""
MIN_CONTROL_EPS = 8.0
"""In 1/255; at a smaller eps even a broken target may keep some accuracy."""

Status = Literal["PASS", "WARN", "FAIL"]


@dataclass(frozen=True)
class CheckOutcome:
    """Outcome of a check of one target."""

    status: Status
    value: float | None
    """The measured value, in the unit that the explanation names; None if it could not be measured."""
    explanation: str


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
    """See :class:`CheckOutcome`."""
    explanation: str


@dataclass(frozen=True)
class CheckInputs:
    """The data that the checks of one target read."""

    name: str
    """Name of the target."""
    is_positive_control: bool
    """True if the target is known to be broken, or has no defence at all."""
    n_eot_samples: int
    """Predictions that are averaged, also in attacks."""
    records: pd.DataFrame
    minimum_eps: pd.DataFrame
    """The smallest eps that breaks each image."""
    diagnostics: pd.DataFrame
    table: pd.DataFrame
    """Rows of the robustness table, with the searches."""
    outcomes: pd.DataFrame
    """Worst-case outcomes (:func:`tasks.records.worst_case.worst_case_outcomes`)."""
    undefended_outcomes: pd.DataFrame
    """Worst-case outcomes of the bare classifier."""

    def diagnostic(self, name: str) -> pd.DataFrame:
        """Rows of one diagnostic."""
        return self.diagnostics[self.diagnostics["diagnostic"] == name]


def run_checks(inputs: list[CheckInputs], leakage: dict[str, float]) -> list[CheckResult]:
    """Run all checks of all targets in a fixed order; checks that do not apply to a target are left out.

    Args:
        inputs: of each target.
        leakage: fractions of the test images with relatives in training, as measured by the step prepare.
    """
    results = []
    for of_target in inputs:
        for key, (name, check) in CHECKS.items():
            if outcome := check(of_target):
                results.append(CheckResult(of_target.name, key, name, **vars(outcome)))
    of_data = CheckResult(None, "leakage", "no test image has a relative in training", **vars(_leakage(leakage)))
    return [*results, of_data]


def _majority_class(of: CheckInputs) -> CheckOutcome:
    clean = of.records[of.records["attack"] == CLEAN]
    accuracy, majority = float(clean["correct"].mean()), float(clean["label"].value_counts(normalize=True).max())
    difference = accuracy - majority
    explanation = f"clean accuracy is {100 * accuracy:.1f} %, the fraction of the majority class {100 * majority:.1f} %"
    if clean["label"].nunique() > 1 == clean["prediction"].nunique():
        return CheckOutcome("FAIL", difference, f"{explanation}; all images get the same class")
    low, _ = wilson(clean["correct"].sum(), len(clean))
    if low > majority:
        return CheckOutcome("PASS", difference, explanation)
    return CheckOutcome("WARN", difference, f"{explanation}; the difference is within the interval")


def _monotone_in_eps(of: CheckInputs) -> CheckOutcome:
    rises = []
    for (_, threat_model, attack), points in curves_of(of.table).items():
        lowest = points["accuracy"].cummin().shift()
        # upper bound of the interval of the lowest accuracy at a smaller eps
        bound = points["accuracy_high"].cummin().shift()
        for i in range(1, len(points)):
            rise = points["accuracy"][i] - lowest[i]
            where = f"{threat_model}/{attack} at eps {points['eps'][i]:g}"
            rises.append((rise, points["accuracy"][i] > bound[i], where))
    return _judge_excess(rises, "accuracy rises above its lowest value at a smaller eps")


def _pgd_vs_fgsm(of: CheckInputs) -> CheckOutcome:
    adaptive = of.table[of.table["threat_model"] == "adaptive"]
    pgd, fgsm = (adaptive[adaptive["attack"] == attack].set_index("eps") for attack in ("pgd", "fgsm"))
    both = pgd.join(fgsm, how="inner", rsuffix="_fgsm")
    if both.empty:
        return CheckOutcome("WARN", None, "not checked: needs both fgsm and pgd in attack.attacks")
    differences = [
        (row["accuracy"] - row["accuracy_fgsm"], row["accuracy"] > row["accuracy_high_fgsm"], f"at eps {eps:g}")
        for eps, row in both.iterrows()
    ]
    return _judge_excess(differences, "accuracy under adaptive PGD is above that under adaptive FGSM")


def _unbounded_attack(of: CheckInputs) -> CheckOutcome:
    unbounded = of.diagnostic("unbounded_attack")
    accuracy = float(unbounded["value"].mean())
    explanation = f"accuracy under PGD at eps {unbounded['eps'].iloc[0]:g} is {100 * accuracy:.1f} %"
    if accuracy <= MAX_CONTROL_ACCURACY:
        return CheckOutcome("PASS", accuracy, explanation)
    return CheckOutcome(
        "FAIL", accuracy, f"{explanation}, although every image can become uniform grey: the attack fails to optimise"
    )


def _more_steps(of: CheckInputs) -> CheckOutcome:
    adaptive = of.records[(of.records["threat_model"] == "adaptive") & (of.records["attack"] == "pgd")]
    if adaptive.empty:
        return CheckOutcome("WARN", None, "not checked: needs pgd in attack.attacks")
    # balls nest: a perturbation that breaks an image at one eps breaks it at every larger eps
    broken = _smallest_recorded_eps(adaptive).rename("broken_eps")
    both = of.minimum_eps[of.minimum_eps["attack"] == SWEEP].join(broken, on="image").fillna({"broken_eps": math.inf})
    gains = [
        (float((both["broken_eps"] > eps).mean() - (both["minimum_eps"] > eps).mean()), float(eps))
        for eps in sorted(adaptive["eps"].unique())
    ]
    largest, eps = max(gains)
    explanation = f"the sweep breaks {100 * largest:.1f} points more than PGD at eps {eps:g}"
    smallest, weak_eps = min(gains)
    if smallest <= -0.01:
        weak = f"the sweep breaks {-100 * smallest:.1f} points less than PGD at eps {weak_eps:g}"
        return CheckOutcome("WARN", largest, f"{weak}, so it cannot confirm PGD. Raise attack.sweep.n_restarts")
    if largest < 0.01:
        return CheckOutcome("PASS", largest, explanation if largest > 0 else "the sweep breaks no more than PGD")
    if round(largest * len(both)) <= 1:
        return CheckOutcome("WARN", largest, f"{explanation}, one image of {len(both)}")
    return CheckOutcome("FAIL", largest, f"{explanation}. Report the sweep's accuracy, or raise attack.pgd.n_steps")


def _smallest_recorded_eps(records: pd.DataFrame) -> "pd.Series[float]":
    """The smallest eps at which each image is misclassified, by image; images that never are, are left out.

    0 for images that are misclassified unchanged, also if an attack makes their prediction correct, as in the searches.
    """
    wrong = records[~(records["correct"] & records["clean_correct"])]
    return wrong["eps"].where(wrong["clean_correct"], 0.0).groupby(wrong["image"]).min()


def _black_box(of: CheckInputs) -> CheckOutcome:
    lowest = of.minimum_eps.groupby(["threat_model", "image"])["minimum_eps"].min()
    if "black_box" not in lowest.index:
        return CheckOutcome(
            "WARN", None, "not checked: needs attack.square.n_queries or attack.hop_skip_jump.n_queries"
        )
    recorded = _smallest_recorded_eps(of.records[of.records["threat_model"] == "adaptive"])
    white_box = pd.concat([lowest["adaptive"], recorded]).groupby(level=0).min().rename("white_box")
    both = lowest["black_box"].rename("black_box").reset_index().join(white_box, on="image")
    missed = both.loc[both["black_box"] < both["white_box"], "image"]
    fraction = len(missed) / len(both)
    if missed.empty:
        return CheckOutcome("PASS", 0.0, f"none of {len(both)} images")
    numbers = ", ".join(map(str, missed))
    explanation = f"{100 * fraction:.1f} % of the images at some eps (images {numbers}): possible gradient masking"
    return CheckOutcome("FAIL" if fraction > MAX_BLACK_BOX_ONLY else "WARN", fraction, explanation)


def _random_noise(of: CheckInputs) -> CheckOutcome:
    adaptive = of.table[of.table["threat_model"] == "adaptive"]
    strongest = adaptive.groupby("eps")["accuracy"].min()
    differences = []
    for eps, correct in of.diagnostic("random_noise").groupby("eps")["value"]:
        _, high = wilson(correct.sum(), len(correct))
        differences.append((strongest[eps] - correct.mean(), strongest[eps] > float(high), f"at eps {eps:g}"))
    return _judge_excess(differences, "accuracy under the strongest adaptive attack is above that under random noise")


def _transfer_vs_adaptive(of: CheckInputs) -> CheckOutcome | None:
    if of.name == UNDEFENDED:
        return None
    adaptive, transfer = (of.table[of.table["threat_model"] == threat] for threat in ("adaptive", "transfer"))
    both = transfer.merge(adaptive, on=["attack", "eps"], suffixes=("", "_adaptive"))
    differences = [
        (
            row["accuracy_adaptive"] - row["accuracy"],
            row["accuracy_adaptive"] > row["accuracy_high"],
            f"{row['attack']} at eps {row['eps']:g}",
        )
        for _, row in both.iterrows()
    ]
    return _judge_excess(differences, "accuracy under adaptive attacks is above that under transfer attacks")


def _adaptive_advantage(of: CheckInputs) -> CheckOutcome | None:
    if of.name == UNDEFENDED:
        return None
    adaptive, transfer = (_accuracy_by_eps(of.outcomes, threat_model) for threat_model in ("adaptive", "transfer"))
    undefended, n = _accuracy_by_eps(of.undefended_outcomes, "adaptive"), of.outcomes["image"].nunique()
    eps = max(transfer, key=lambda each: transfer[each] - undefended[each])
    advantage = transfer[eps] - adaptive[eps]
    low, _ = wilson(round(transfer[eps] * n), n)
    _, undefended_high = wilson(round(undefended[eps] * n), n)
    if transfer[eps] <= undefended_high:
        return CheckOutcome("PASS", advantage, "the defence stops neither transfer nor adaptive attacks")
    explanation = (
        f"at eps {eps:g}, where the defence gains most under transfer attacks, it raises accuracy from "
        f"{100 * undefended[eps]:.1f} to {100 * transfer[eps]:.1f} %"
    )
    if advantage < 0:
        return CheckOutcome(
            "WARN", advantage, f"{explanation}; adaptive attacks are {-100 * advantage:.1f} points weaker"
        )
    explanation += f"; adaptive attacks take back {100 * advantage:.1f} points"
    if adaptive[eps] < low:
        return CheckOutcome("PASS", advantage, explanation)
    return CheckOutcome("WARN", advantage, f"{explanation}, which is within the interval: possible gradient masking")


def _accuracy_by_eps(outcomes: pd.DataFrame, threat_model: str) -> dict[float, float]:
    """Worst-case robust accuracy under a threat model, by eps."""
    found = worst_case_accuracy(outcomes[outcomes["threat_model"] == threat_model])
    return dict(zip(found["eps"], found["accuracy"], strict=True))


def _gradients(of: CheckInputs) -> CheckOutcome:
    zero, finite = of.diagnostic("zero_gradient")["value"], of.diagnostic("finite_gradient")["value"]
    all_zero, not_finite = float((zero == 1).mean()), float((finite == 0).mean())
    explanation = (
        f"the gradient is zero at every pixel of {100 * all_zero:.1f} % of the images, at {100 * zero.mean():.1f} % of "
        f"all pixels, and not finite in {100 * not_finite:.1f} % of the images"
    )
    status: Status = "FAIL" if not_finite or all_zero > MAX_ZERO_GRADIENT else "WARN" if all_zero else "PASS"
    return CheckOutcome(status, max(all_zero, not_finite), explanation)


def _outputs(of: CheckInputs) -> CheckOutcome:
    if of.diagnostic("outputs_are_probabilities")["value"].all():
        return CheckOutcome("FAIL", 1.0, "the outputs lie in [0, 1] and add up to 1: probabilities instead of logits")
    difference = float(of.diagnostic("max_logit_difference")["value"].max())
    if difference <= LOGIT_TOLERANCE:
        return CheckOutcome("PASS", difference, "logits, equal in five passes")
    unrepeatable = float((of.diagnostic("repeatable_prediction")["value"] == 0).mean())
    explanation = (
        f"in five passes a logit differs by up to {difference:.2g}, and {100 * unrepeatable:.1f} % of the predictions "
        "change"
    )
    if of.n_eot_samples == 1:
        return CheckOutcome("FAIL", difference, f"{explanation}, but attacks use one sample. Raise n_eot_samples")
    explanation += f"; attacks average over {of.n_eot_samples} samples (EOT)"
    if unrepeatable > MAX_UNREPEATABLE:
        return CheckOutcome(
            "WARN", difference, f"{explanation}, too few for repeatable predictions. Raise n_eot_samples"
        )
    return CheckOutcome("PASS", difference, explanation)


def _norm_bound(of: CheckInputs) -> CheckOutcome:
    attacked = of.records[of.records["attack"] != CLEAN]
    norms = attacked[str(attacked["norm"].iloc[0])]
    excess = ball_excess(norms.to_numpy(), attacked["eps"].to_numpy(), attacked["radius"].to_numpy())
    largest = float(excess.max())
    n_outside = int((excess > TOLERANCE).sum())
    explanation = (
        f"{n_outside} of {len(attacked)} adversarial examples are outside their ball by more than {TOLERANCE:g}; the "
        f"largest excess is {largest:.2g}"
    )
    successful = attacked[attacked["success"]]
    if len(successful):
        kept = 1 - successful["correct_8bit"].groupby(successful["eps"]).mean()
        fractions = ", ".join(f"{100 * fraction:.0f} % at eps {eps:g}" for eps, fraction in kept.items())
        explanation += f". Successful examples that stay successful after rounding to 8 bits: {fractions}"
    return CheckOutcome("FAIL" if n_outside else "PASS", largest, explanation)


def _positive_control(of: CheckInputs) -> CheckOutcome | None:
    if not of.is_positive_control:
        return None
    eps = of.outcomes["eps"].max()
    at_largest = of.outcomes[(of.outcomes["threat_model"] == "adaptive") & (of.outcomes["eps"] == eps)]
    accuracy = float(at_largest["robust_correct"].mean())
    explanation = f"accuracy under all adaptive attacks at eps {eps:g} is {100 * accuracy:.1f} %"
    planted = of.diagnostic("positive_control")
    if len(planted):
        planted_accuracy = float(planted["value"].mean())
        explanation += f"; with a broken defence (4 bits a pixel) in front it is {100 * planted_accuracy:.1f} %"
        accuracy = max(accuracy, planted_accuracy)
    if accuracy <= MAX_CONTROL_ACCURACY:
        return CheckOutcome("PASS", accuracy, explanation)
    if eps < MIN_CONTROL_EPS:
        return CheckOutcome("WARN", accuracy, f"{explanation}. Add {MIN_CONTROL_EPS:g} to attack.eps")
    return CheckOutcome("FAIL", accuracy, f"{explanation}: the attacks are too weak to evaluate a defence")


def _success_definition(of: CheckInputs) -> CheckOutcome:
    clean = of.records[of.records["attack"] == CLEAN].set_index("image")["correct"].rename("correct_before")
    before = of.records.join(clean, on="image")["correct_before"].astype(bool)
    wrong = (of.records["success"] != (before & ~of.records["correct"])) | (of.records["clean_correct"] != before)
    n_wrong = int(wrong.sum())
    return CheckOutcome("FAIL" if n_wrong else "PASS", n_wrong, f"{n_wrong} of {len(wrong)} records differ")


def _leakage(leakage: dict[str, float]) -> CheckOutcome:
    near_duplicates, group = leakage["near_duplicate_in_train"], leakage["group_in_train"]
    explanation = (
        f"{100 * near_duplicates:.1f} % of the test images have a near-duplicate in training, {100 * group:.1f} % "
        "an image of their group"
    )
    if not group:
        return CheckOutcome("PASS", group, explanation)
    return CheckOutcome("WARN", group, f"{explanation}. prepare.split.strategy grouped keeps groups in one split")


def _judge_excess(excesses: list[tuple[float, bool, str]], statement: str) -> CheckOutcome:
    """Judge differences of accuracy that should not be above 0: (difference, beyond the interval, where)."""
    beyond = [excess for excess in excesses if excess[1]]
    value, _, where = max(beyond or excesses, key=lambda excess: excess[0])
    if value <= 0:
        return CheckOutcome("PASS", float(value), f"nowhere: {statement}")
    extent = "beyond its interval" if beyond else "within its interval"
    return CheckOutcome(
        "FAIL" if beyond else "WARN", float(value), f"{statement} by {100 * value:.1f} points, {extent}: {where}"
    )


CHECKS: dict[str, tuple[str, Callable[[CheckInputs], CheckOutcome | None]]] = {
    "majority_class": ("clean accuracy is above the fraction of the majority class", _majority_class),
    "monotone_in_eps": ("robust accuracy does not rise with eps", _monotone_in_eps),
    "pgd_vs_fgsm": ("PGD is at least as strong as FGSM", _pgd_vs_fgsm),
    "unbounded_attack": ("an unbounded attack leaves an accuracy of at most 1 %", _unbounded_attack),
    "more_steps": ("more steps and restarts change accuracy by less than 1 point", _more_steps),
    "black_box": ("black-box attacks break no image that white-box attacks miss", _black_box),
    "random_noise": ("random noise lowers accuracy less than the attacks", _random_noise),
    "transfer_vs_adaptive": ("transfer attacks are not stronger than adaptive attacks", _transfer_vs_adaptive),
    "adaptive_advantage": ("adaptive attacks are clearly stronger than transfer attacks", _adaptive_advantage),
    "gradients": ("gradients are nonzero and finite", _gradients),
    "outputs": ("outputs are logits and repeatable", _outputs),
    "norm_bound": ("every adversarial example lies in its ball", _norm_bound),
    "positive_control": ("a target that is known to be broken is broken", _positive_control),
    "success_definition": ("successes count only images that were correct before", _success_definition),
}
"""Key -> the statement that is checked, and the check; in the order of ``docs/reference/checks.md``."""
