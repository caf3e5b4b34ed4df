"""Checks of the attacks on a target: comparisons of attacks on the same images, by group."""

import numpy as np

from tasks.evaluation.check_inputs import CheckInputs, CheckOutcome, Curve, judge_excess
from tasks.outcomes.convergence import has_converged
from tasks.outcomes.names import ONE_STEP_ATTACKS, attack_label, display_name, is_independent
from tasks.params import SAVED_ATTACKS, UNDEFENDED
from tasks.records.vocabulary import SQUARE_ON_SURVIVORS
from tasks.statistics.multiplicity import SIGNIFICANCE_LEVEL, holm
from tasks.statistics.paired import PairedComparison, compare_paired

MAX_CONTROL_ACCURACY = 0.01
"""Maximum accuracy where an attack must break every image."""
MAX_BLACK_BOX_ONLY = 0.002
"""Maximum fraction of images that black-box attacks break and white-box attacks do not."""
MIN_CONTROL_EPS = 8.0
"""In 1/255; at a smaller eps even a broken target may keep some accuracy."""
MAX_WHITE_BOX_ACCURACY = 0.05
"""Accuracy of the undefended classifier up to which white-box attacks count as having broken it."""
MAX_BLACK_BOX_ACCURACY = 0.5
"""Accuracy of the undefended classifier that black-box attacks must reach there to have power."""
MAX_TRANSFER_ACCURACY = 0.5
"""Accuracy of the undefended classifier that transfer from a surrogate must reach there to have power."""
MAX_MORE_BY_ART = 1
"""Images that ART's attack may break more than ours."""

WHITE_BOX = ("adaptive",)


def monotone_in_eps(of: CheckInputs) -> CheckOutcome:
    """Robust accuracy does not rise with eps.

    One step can overshoot, so an attack of one step may be weaker in a larger ball without an error. No reported robust
    accuracy uses its curve alone: the worst case counts each success at every larger eps.
    """
    iterated: list[tuple[PairedComparison, str]] = []
    one_step: list[tuple[PairedComparison, str]] = []
    for curve in dict.fromkeys(curve._replace(eps=0.0) for curve in of.correct):
        points = [(eps, of.correct[at]) for eps in of.grid if (at := curve._replace(eps=eps)) in of.correct]
        for i, (eps, correct) in enumerate(points[1:], start=1):
            # the smaller eps with the lowest accuracy
            lowest_eps, lowest = min(points[:i], key=lambda point: point[1].mean())
            name = f"{curve.threat_model}/{attack_label(curve.attack, curve.surrogate)}"
            where = f"{name} at eps {eps:g} against eps {lowest_eps:g}"
            rises = one_step if curve.attack in ONE_STEP_ATTACKS else iterated
            rises.append((of.compare(correct, lowest), where))
    if not iterated and not one_step:
        return CheckOutcome("WARN", None, "not checked: needs two values in attack.eps")
    statement = "accuracy rises above its lowest value at a smaller eps"
    if iterated and (outcome := judge_excess(iterated, statement)).status != "PASS":
        return outcome
    outcome = judge_excess([*iterated, *one_step], statement)
    if outcome.status not in ("WARN", "FAIL"):
        return outcome
    explanation = (
        f"{outcome.explanation}. One step can overshoot, so this curve may rise without an error of the attack"
    )
    if of.name == UNDEFENDED:
        return CheckOutcome("INFO", outcome.value, f"{explanation}; the worst case never rises")
    return CheckOutcome("WARN", outcome.value, f"{explanation}; behind a defence, masked gradients are possible, too")


def pgd_vs_fgsm(of: CheckInputs) -> CheckOutcome:
    """PGD is at least as strong as FGSM."""
    excesses = []
    for eps in of.grid:
        pgd, fgsm = (of.correct.get(Curve("adaptive", attack, eps)) for attack in ("pgd", "fgsm"))
        if pgd is not None and fgsm is not None:
            excesses.append((of.compare(pgd, fgsm), f"at eps {eps:g}"))
    if not excesses:
        return CheckOutcome("WARN", None, "not checked: needs both fgsm and pgd in attack.attacks")
    return judge_excess(excesses, "accuracy under adaptive PGD is above that under adaptive FGSM")


def art_reference(of: CheckInputs) -> CheckOutcome:
    """FGSM and PGD are at least as strong as those of ART, with the same steps, random starts and balls."""
    counts = []
    for ours in ("fgsm", "pgd"):
        for eps in of.grid:
            own, art = (of.correct.get(Curve("adaptive", attack, eps)) for attack in (ours, f"art_{ours}"))
            if own is not None and art is not None:
                found = of.compare(own, art)
                counts.append((found.n_only_first - found.n_only_second, f"{ours} at eps {eps:g}", len(art)))
    if not counts:
        return CheckOutcome("WARN", None, "not checked: needs fgsm or pgd in attack.attacks")
    most, where, n = max(counts)
    explanation = f"of {n} images, ours leaves {max(most, 0)} more correct than ART's where the difference is largest"
    explanation = explanation if most <= 0 else f"{explanation}: {where}"
    return CheckOutcome("PASS" if most <= MAX_MORE_BY_ART else "FAIL", float(most), explanation)


def unbounded_attack(of: CheckInputs) -> CheckOutcome:
    """An unbounded attack leaves an accuracy of at most 1 %."""
    unbounded = of.diagnostic("unbounded_attack")
    accuracy = float(unbounded["value"].mean())
    explanation = f"accuracy under PGD at eps {unbounded['eps'].iloc[0]:g} is {100 * accuracy:.1f} %"
    if accuracy <= MAX_CONTROL_ACCURACY:
        return CheckOutcome("PASS", accuracy, explanation)
    return CheckOutcome(
        "FAIL", accuracy, f"{explanation}, although every image can become uniform grey: the attack fails to optimise"
    )


def more_steps(of: CheckInputs) -> CheckOutcome:
    """Twice the steps and restarts change the reported robust accuracy by less than 1 point."""
    if of.convergence.empty:
        return CheckOutcome("WARN", None, "not checked: the suite with twice the effort did not run")
    gains = []
    for eps, rows in of.convergence.groupby("eps"):
        found = compare_paired(*rows[["before", "after", "group"]].to_numpy().T)
        gains.append((found.difference.value, float(str(eps)), found, has_converged(rows)))
    largest, eps, found, _ = max(gains, key=lambda gain: gain[0])
    n = len(of.convergence) // len(gains)
    where = f"at the operating point {display_name(of.convergence['operating_point'].iloc[0])}"
    if largest <= 0:
        return CheckOutcome(
            "PASS", largest, f"{where}, twice the steps and restarts break no more of {n} images at any eps"
        )
    low, high = (100 * bound for bound in found.difference[1:])
    bounds = "" if np.isnan(low) else f" [{low:.1f}, {high:.1f}]"
    explanation = (
        f"{where}, twice the steps and restarts break {found.n_only_first} more of {n} images "
        f"({100 * largest:.1f}{bounds} points) at eps {eps:g}"
    )
    if all(is_converged for *_, is_converged in gains):
        return CheckOutcome("PASS", largest, explanation)
    return CheckOutcome("FAIL", largest, f"{explanation}: the attack has not converged. Raise attack.effort")


def black_box(of: CheckInputs) -> CheckOutcome:
    """Black-box attacks break no image that white-box attacks miss."""
    if not any(curve.threat_model == "black_box" for curve in of.correct):
        return CheckOutcome("WARN", None, "not checked: attack.effort quick has no black-box attack for norm l2")
    missed: set[int] = set()
    n = 0
    for eps in of.grid:
        by_gradients = of.robust(eps, WHITE_BOX, leave_out=(SQUARE_ON_SURVIVORS,))
        by_queries = of.robust(eps, ("black_box",)).reindex(by_gradients.index, fill_value=True)
        on_survivors = of.correct.get(Curve("adaptive", SQUARE_ON_SURVIVORS, eps), by_queries)
        missed |= set(by_gradients.index[by_gradients & ~(by_queries & on_survivors)])
        n = len(by_gradients)
    fraction = len(missed) / n
    if missed:
        numbers = ", ".join(map(str, sorted(missed)))
        explanation = f"{100 * fraction:.1f} % of the images at some eps (images {numbers}): possible gradient masking"
        return CheckOutcome("FAIL" if fraction > MAX_BLACK_BOX_ONLY else "WARN", fraction, explanation)
    undefended = of.undefended or of
    accuracies = {
        eps: (float(undefended.robust(eps, WHITE_BOX).mean()), float(undefended.robust(eps, ("black_box",)).mean()))
        for eps in undefended.grid
    }
    broken = {eps: found for eps, found in accuracies.items() if found[0] <= MAX_WHITE_BOX_ACCURACY}
    if not broken:
        return CheckOutcome(
            "NO POWER",
            fraction,
            f"none of {n} images, but no eps of the grid breaks the undefended classifier. Add a larger attack.eps",
        )
    left = {eps: by_queries for eps, (_, by_queries) in broken.items()}
    with_power = [eps for eps, accuracy in left.items() if accuracy <= MAX_BLACK_BOX_ACCURACY]
    lists = ", ".join(f"{100 * accuracy:.1f} % at eps {eps:g}" for eps, accuracy in left.items())
    power = f"accuracy of the undefended classifier under black-box attacks, where white-box attacks break it: {lists}"
    if not with_power:
        explanation = f"none of {n} images, but the attacks have no power: {power}. Raise attack.effort"
        return CheckOutcome("NO POWER", fraction, explanation)
    where = ", ".join(f"{eps:g}" for eps in with_power)
    return CheckOutcome("PASS", fraction, f"none of {n} images; {power}. The pass applies to eps {where} only")


def random_noise(of: CheckInputs) -> CheckOutcome:
    """Random noise lowers accuracy less than the attacks."""
    excesses = []
    for eps, rows in of.diagnostic("random_noise").groupby("eps"):
        by_noise = rows.set_index("image")["value"].astype(bool)
        value = float(str(eps))
        excesses.append((of.compare(of.robust(value, WHITE_BOX), by_noise), f"at eps {value:g}"))
    return judge_excess(excesses, "accuracy under all adaptive attacks is above that under random noise")


def transfer_vs_adaptive(of: CheckInputs) -> CheckOutcome | None:
    """Transfer attacks are not stronger than adaptive attacks."""
    differences = {
        curve: of.compare(adaptive, correct)
        for curve, correct in of.correct.items()
        if curve.threat_model == "transfer"
        and (adaptive := of.correct.get(Curve("adaptive", curve.attack, curve.eps))) is not None
    }
    if not differences:
        # without independent surrogates, nothing is transferred to the undefended classifier
        return None
    outcome = judge_excess(
        [
            (found, f"{attack_label(curve.attack, curve.surrogate)} at eps {curve.eps:g}")
            for curve, found in differences.items()
        ],
        "accuracy under adaptive attacks is above that under transfer attacks",
    )
    if outcome.status != "PASS":
        return outcome
    surrogates = sorted({curve.surrogate for curve in differences})
    measured = {name: transfer_accuracies(of.undefended or of, name) for name in surrogates}
    lists = "; ".join(
        f"{name} {', '.join(f'{100 * accuracy:.1f} % at eps {eps:g}' for eps, accuracy in by_eps.items())}"
        for name, by_eps in measured.items()
        if by_eps
    )
    power = (
        "accuracy of the undefended classifier under transfer, where white-box attacks break it, by surrogate: "
        f"{lists or 'no such eps'}"
    )
    with_power = {name: eps_with_power(by_eps) for name, by_eps in measured.items()}
    if not any(with_power.values()):
        explanation = f"{outcome.explanation}, but transfer attacks have no power: {power}. Train better surrogates"
        return CheckOutcome("NO POWER", outcome.value, explanation)
    where = "; ".join(
        f"{name} at eps {', '.join(f'{eps:g}' for eps in found)}" for name, found in with_power.items() if found
    )
    explanation = f"{outcome.explanation}; {power}. The pass applies to {where} only"
    return CheckOutcome("PASS", outcome.value, explanation)


def transfer_accuracies(undefended: CheckInputs, surrogate: str) -> dict[float, float]:
    """Lowest accuracy of the undefended classifier under transfer, at each eps where white-box attacks break it.

    Images that were crafted on the undefended classifier are adaptive attacks on it.
    """
    threat_model, source = ("adaptive", "") if surrogate == UNDEFENDED else ("transfer", surrogate)
    found: dict[float, float] = {}
    for eps in undefended.grid:
        accuracies = [
            float(correct.mean())
            for curve, correct in undefended.correct.items()
            if (curve.threat_model, curve.surrogate, curve.eps) == (threat_model, source, eps)
            and curve.attack in SAVED_ATTACKS
        ]
        if accuracies and undefended.robust(eps, WHITE_BOX).mean() <= MAX_WHITE_BOX_ACCURACY:
            found[eps] = min(accuracies)
    return found


def eps_with_power(accuracies: dict[float, float]) -> list[float]:
    """Each eps at which transfer attacks have power."""
    return [eps for eps, accuracy in accuracies.items() if accuracy <= MAX_TRANSFER_ACCURACY]


def independent_surrogates(undefended: CheckInputs) -> dict[str, bool]:
    """Independent surrogates that were transferred from -> whether each has power on the undefended classifier."""
    names = sorted({curve.surrogate for curve in undefended.correct if is_independent(curve.surrogate)})
    return {name: bool(eps_with_power(transfer_accuracies(undefended, name))) for name in names}


def adaptive_advantage(of: CheckInputs) -> CheckOutcome | None:
    """Adaptive attacks are clearly stronger than transfer attacks."""
    if of.undefended is None:
        return None
    # one threat model alone each, otherwise adaptive attacks could never be weaker; transfer from the undefended
    # classifier alone, since an attack on it is compared with the attack on the defence
    adaptive, transfer, undefended = (
        {eps: source.robust(eps, (threat_model,), with_independent=False) for eps in of.grid}
        for source, threat_model in ((of, "adaptive"), (of, "transfer"), (of.undefended, "adaptive"))
    )
    eps = max(of.grid, key=lambda each: transfer[each].mean() - undefended[each].mean())
    gains = {each: of.compare(transfer[each], undefended[each]) for each in of.grid}
    stopped, taken_back = gains[eps], of.compare(transfer[eps], adaptive[eps])
    # the largest of several gains is above 0 by chance more often than one of them
    p_values = dict(zip(gains, holm(np.array([found.p_value for found in gains.values()])), strict=True))
    advantage = taken_back.difference.value
    if np.isnan(stopped.difference.low):
        return CheckOutcome("NO POWER", advantage, "too few groups to test the effect of the defence")
    if not (stopped.difference.low > 0 and p_values[eps] <= SIGNIFICANCE_LEVEL):
        return CheckOutcome(
            "INFO",
            advantage,
            "does not apply: the defence does not raise accuracy under transfer attacks significantly",
        )
    explanation = (
        f"at eps {eps:g}, where the defence gains most under transfer attacks, it raises accuracy from "
        f"{100 * undefended[eps].mean():.1f} to {100 * transfer[eps].mean():.1f} %"
    )
    if advantage < 0:
        return CheckOutcome(
            "WARN", advantage, f"{explanation}; adaptive attacks are {-100 * advantage:.1f} points weaker"
        )
    explanation += f"; under adaptive attacks it is {100 * advantage:.1f} points lower"
    if taken_back.difference.low > 0:
        return CheckOutcome("PASS", advantage, explanation)
    return CheckOutcome("WARN", advantage, f"{explanation}, which is not significant: possible gradient masking")


def positive_control(of: CheckInputs) -> CheckOutcome | None:
    """A target that is known to be broken is broken."""
    if not of.is_positive_control:
        return None
    eps = of.grid[-1]
    accuracy = float(of.robust(eps, WHITE_BOX).mean())
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
