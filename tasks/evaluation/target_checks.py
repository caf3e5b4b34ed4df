"""Checks of a target: its outputs and gradients, the definitions of the records, and its clean accuracy."""

import numpy as np

from tasks.evaluation.check_inputs import CheckInputs, CheckOutcome, Status
from tasks.outcomes.attack_outputs import expected_correct
from tasks.params import UNDEFENDED
from tasks.records.expected import N_FRESH_SAMPLES
from tasks.records.perturbation_norms import TOLERANCE, ball_excess
from tasks.records.vocabulary import CLEAN
from tasks.statistics.balanced import balanced_accuracies
from tasks.statistics.paired import compare_paired
from tasks.statistics.rates import rate_estimate

MAX_ZERO_GRADIENT = 0.01
"""Maximum fraction of images whose gradient is zero."""
MIN_GRADIENT_AGREEMENT = 0.5
"""Minimum of the margin's decrease by a step against the gradient, relative to the decrease that it predicts. Measured:
0.9 and more for networks and good backward passes, 0.75 for a median filter, 0.4 and less for wrong backward passes."""
LOGIT_TOLERANCE = 1e-4
"""Differences of a logit up to this value are rounding errors."""
BATCH_TOLERANCE = 1e-2
"""Differences of a logit between an image alone and in a batch, relative to the largest logit, up to this value are
rounding errors: kernels for other batch sizes add in another order."""
MAX_UNREPEATABLE = 0.01
"""Maximum fraction of images whose predicted class changes between passes."""


def majority_class(of: CheckInputs) -> CheckOutcome:
    """Clean accuracy is above the fraction of the majority class."""
    clean = of.records[of.records["attack"] == CLEAN]
    accuracy = rate_estimate(expected_correct(clean).to_numpy(), clean["group"].to_numpy())
    majority = float(clean["label"].value_counts(normalize=True).max())
    difference = accuracy.value - majority
    explanation = (
        f"clean accuracy on {len(clean)} test images is {100 * accuracy.value:.1f} %, the fraction of the majority "
        f"class {100 * majority:.1f} %"
    )
    if clean["label"].nunique() > 1 == clean["prediction"].nunique():
        return CheckOutcome("FAIL", difference, f"{explanation}; all images get the same class")
    if np.isnan(accuracy.low):
        return CheckOutcome("NO POWER", difference, f"{explanation}; too few groups for a test")
    if accuracy.low > majority:
        return CheckOutcome("PASS", difference, explanation)
    return CheckOutcome("WARN", difference, f"{explanation}; the difference is not significant")


def shortcut_baseline(of: CheckInputs) -> CheckOutcome:
    """Clean accuracy is above that of a logistic regression on size, mean, standard deviation and saturation."""
    clean = of.records[of.records["attack"] == CLEAN].set_index("image")
    images = clean.index.intersection(of.shortcut_correct.index)
    if images.empty:
        return CheckOutcome("NO POWER", None, "the baseline has no prediction for the test images of this model")
    correct, by_shortcut = clean["correct"].loc[images], of.shortcut_correct.loc[images]
    found = compare_paired(
        correct.to_numpy(dtype=bool), by_shortcut.to_numpy(dtype=bool), clean["group"].loc[images].to_numpy()
    )
    explanation = (
        f"clean accuracy on {len(images)} test images is {100 * correct.mean():.1f} %, that of a logistic regression "
        f"on size, mean, standard deviation and saturation {100 * by_shortcut.mean():.1f} % "
        f"(p = {found.p_value:.2g} by group)"
    )
    low, high = (100 * bound for bound in found.difference[1:])
    if np.isnan(found.difference.low):
        return CheckOutcome("NO POWER", found.difference.value, f"{explanation}; too few groups for a test")
    explanation += f"; the difference is {100 * found.difference.value:+.1f} [{low:+.1f}, {high:+.1f}] points"
    if found.difference.low > 0:
        return CheckOutcome("PASS", found.difference.value, explanation)
    return CheckOutcome("WARN", found.difference.value, f"{explanation}, an interval that is not above 0")


def constant(of: CheckInputs) -> CheckOutcome:
    """The 95 % interval of balanced robust accuracy is above that of a constant prediction, at the reported eps."""
    correct = of.robust_by_eps
    images = of.images.loc[correct[of.eps].index]
    chance = 1 / images["label"].nunique()
    estimates = balanced_accuracies(
        np.stack([correct[eps].to_numpy(dtype=np.float64) for eps in of.grid]),
        images["label"].to_numpy(),
        images["group"].to_numpy(),
    )
    above = [eps for eps, estimate in zip(of.grid, estimates, strict=True) if estimate.low > chance]
    found = estimates[of.grid.index(of.eps)]
    explanation = (
        f"balanced robust accuracy at eps {of.eps:g} is {100 * found.value:.1f} %, that of a constant prediction "
        f"{100 * chance:.1f} %; the 95 % interval is above it at eps {', '.join(f'{eps:g}' for eps in above) or 'none'}"
    )
    if np.isnan(found.low):
        return CheckOutcome("NO POWER", found.value - chance, f"{explanation}; too few groups for a test")
    if of.name == UNDEFENDED:
        return CheckOutcome("INFO", found.value - chance, explanation)
    return CheckOutcome("PASS" if of.eps in above else "FAIL", found.value - chance, explanation)


def gradients(of: CheckInputs) -> CheckOutcome:
    """Gradients are nonzero and finite."""
    zero, finite = of.diagnostic("zero_gradient")["value"], of.diagnostic("finite_gradient")["value"]
    all_zero, not_finite = float((zero == 1).mean()), float((finite == 0).mean())
    explanation = (
        f"the gradient is zero at every pixel of {100 * all_zero:.1f} % of the images, at {100 * zero.mean():.1f} % of "
        f"all pixels, and not finite in {100 * not_finite:.1f} % of the images"
    )
    status: Status = "FAIL" if not_finite or all_zero > MAX_ZERO_GRADIENT else "WARN" if all_zero else "PASS"
    return CheckOutcome(status, max(all_zero, not_finite), explanation)


def gradient_agreement(of: CheckInputs) -> CheckOutcome:
    """The change of the margin agrees with the gradient, at some size of a step."""
    found, predicted = (
        of.diagnostic(name).groupby("eps")["value"].sum() for name in ("margin_drop", "margin_drop_by_gradient")
    )
    agreement = (found / predicted)[predicted > 0]
    if agreement.empty:
        return CheckOutcome("NO POWER", None, "the gradient of the margin is zero or not finite; see gradients")
    steps = ", ".join(f"{100 * value:.0f} % at eps {eps:g}" for eps, value in agreement.items())
    value = float(agreement.max())
    explanation = f"one step against the gradient lowers the margin by {steps} of what the gradient predicts"
    if value >= MIN_GRADIENT_AGREEMENT:
        return CheckOutcome("PASS", value, explanation)
    return CheckOutcome(
        "FAIL",
        value,
        f"{explanation}. The backward pass of the target does not match its outputs, so attacks by gradients are weak "
        "and robust accuracy can be much too high",
    )


def outputs(of: CheckInputs) -> CheckOutcome:
    """Outputs are logits, repeatable, and independent of the other images of a batch."""
    if of.diagnostic("outputs_are_probabilities")["value"].all():
        return CheckOutcome("FAIL", 1.0, "the outputs lie in [0, 1] and add up to 1: probabilities instead of logits")
    difference = float(of.diagnostic("max_logit_difference")["value"].max(skipna=False))
    of_batch = float(of.diagnostic("batch_difference")["value"].max(skipna=False))
    if difference <= LOGIT_TOLERANCE and (of.is_random or of_batch <= BATCH_TOLERANCE):
        independent = "" if of.is_random else ", and independent of other images"
        return CheckOutcome("PASS", difference, f"logits, equal in five passes{independent}")
    if difference <= LOGIT_TOLERANCE:
        return CheckOutcome(
            "FAIL",
            of_batch,
            f"a logit of an image alone and in a batch differs by up to {100 * of_batch:.0f} % of the largest logit: "
            "the outputs depend on the other images, so accuracies depend on attack.batch_size",
        )
    unrepeatable = float((of.diagnostic("repeatable_prediction")["value"] == 0).mean())
    explanation = (
        f"in five passes a logit differs by up to {difference:.2g}, and {100 * unrepeatable:.1f} % of the predictions "
        "change"
    )
    if not of.is_random:
        return CheckOutcome(
            "FAIL", difference, f"{explanation}, but the target has no random module: attacks use one prediction"
        )
    explanation += (
        f"; each pass is an average of several predictions, as attacks use it (EOT); the target is scored by its "
        f"expected accuracy over {N_FRESH_SAMPLES} fresh predictions"
    )
    if unrepeatable > MAX_UNREPEATABLE:
        return CheckOutcome("WARN", difference, f"{explanation}. The gradients of attacks are noisy")
    return CheckOutcome("PASS", difference, explanation)


def norm_bound(of: CheckInputs) -> CheckOutcome:
    """Every adversarial example lies in its ball."""
    attacked = of.records[of.records["attack"] != CLEAN]
    norms = attacked[str(attacked["norm"].iloc[0])]
    excess = ball_excess(norms.to_numpy(), attacked["eps"].to_numpy(), attacked["radius"].to_numpy())
    largest = float(excess.max())
    # a NaN is outside, too
    n_outside = int((~(excess <= TOLERANCE)).sum())
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


def success_definition(of: CheckInputs) -> CheckOutcome:
    """Successes count only images that were correct before."""
    clean = of.records[of.records["attack"] == CLEAN].set_index("image")["correct"].rename("correct_before")
    before = of.records.join(clean, on="image")["correct_before"].astype(bool)
    wrong = (of.records["success"] != (before & ~of.records["correct"])) | (of.records["clean_correct"] != before)
    n_wrong = int(wrong.sum())
    return CheckOutcome("FAIL" if n_wrong else "PASS", n_wrong, f"{n_wrong} of {len(wrong)} records differ")
