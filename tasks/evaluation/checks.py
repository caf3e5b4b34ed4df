"""Checks that tell whether a target's numbers can be believed; each says where to look when it does not pass.

After Carlini et al. 2019, "On Evaluating Adversarial Robustness" (arXiv 1902.06705), and AutoAttack's flags (Croce and
Hein 2020, arXiv 2003.01690). Passing all of them proves nothing. docs/reference/checks.md says of each when it is raised, what it
means and what to do.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from tasks.evaluation.comparison import worst_case
from tasks.evaluation.robustness import curves_of
from tasks.params import UNDEFENDED
from tasks.records.perturbation_norms import TOLERANCE, ball_excess
from tasks.records.vocabulary import CLEAN, SWEEP
from tasks.statistics.intervals import wilson

FALLEN = 0.01
"""Accuracy at most, where an attack must break everything."""
MISSED_SHARE = 0.002
"""Of the images that attacks without gradients may break where white-box attacks failed."""
WITHOUT_GRADIENT = 0.01
"""Share of images, at most, that may have no gradient at all."""
SAME = 1e-4
"""Largest difference of a logit that is taken for rounding."""
UNSTEADY = 0.01
"""Share of images whose predicted class may change from one pass to the next."""
CONTROL_EPS = 8.0
"""In 1/255; below it a target that is known to be broken may stand."""

Status = Literal["PASS", "WARN", "FAIL"]


@dataclass(frozen=True)
class Outcome:
    """How a check of a target ended."""

    status: Status
    figure: float | None
    """What was measured, in the unit that the explanation names; None where nothing could be."""
    explanation: str


@dataclass(frozen=True)
class Check:
    """Outcome of one check of one target."""

    target: str | None
    """None where the check is about the data."""
    key: str
    """Short name: of tags, and of the section in docs/reference/checks.md."""
    name: str
    """What should be."""
    status: Status
    figure: float | None
    """See :class:`Outcome`."""
    explanation: str


@dataclass(frozen=True)
class Evidence:
    """All that is known of one target."""

    name: str
    is_control: bool
    """Whether it is known to be broken, or no defence at all."""
    n_looks: int
    """That predictions, and attacks on them, are averaged over."""
    records: pd.DataFrame
    smallest: pd.DataFrame
    """The smallest eps that breaks each image."""
    probes: pd.DataFrame
    table: pd.DataFrame
    """Rows of the robustness table and of the table of the smallest eps."""
    withstood: pd.DataFrame
    """Which images withstand all attacks (:func:`tasks.evaluation.comparison.withstood`)."""
    bare_withstood: pd.DataFrame
    """The same of the bare classifier."""

    def probed(self, probe: str) -> pd.DataFrame:
        """Rows of a probe."""
        return self.probes[self.probes["probe"] == probe]


def run_checks(evidence: list[Evidence], leakage: dict[str, float]) -> list[Check]:
    """All checks of all targets, in a fixed order; what makes no sense for a target is left out.

    Args:
        evidence: of each target.
        leakage: shares of the test images with relatives in training, as the step prepare measures them.
    """
    checks = []
    for of_target in evidence:
        for key, (name, run) in CHECKS.items():
            if outcome := run(of_target):
                checks.append(Check(of_target.name, key, name, **vars(outcome)))
    of_data = Check(None, "leakage", "no test image has a relative in training", **vars(_no_leakage(leakage)))
    return [*checks, of_data]


def _tells_classes_apart(of: Evidence) -> Outcome:
    clean = of.records[of.records["attack"] == CLEAN]
    right, guessed = float(clean["correct"].mean()), float(clean["label"].value_counts(normalize=True).max())
    explanation = (
        f"{100 * right:.1f} % of the clean test images are right, where naming the commonest class each time is right "
        f"on {100 * guessed:.1f} %"
    )
    if clean["label"].nunique() > 1 == clean["prediction"].nunique():
        return Outcome("FAIL", right - guessed, f"{explanation}: all of them get one class")
    low, _ = wilson(clean["correct"].sum(), len(clean))
    if low > guessed:
        return Outcome("PASS", right - guessed, explanation)
    return Outcome("WARN", right - guessed, f"{explanation}: within the interval, it may as well guess")


def _does_not_rise(of: Evidence) -> Outcome:
    rises = []
    for (_, threat_model, attack), points in curves_of(of.table).items():
        lowest = points["accuracy"].cummin().shift()
        # the interval that belongs to the lowest accuracy so far
        bound = points["accuracy_high"].cummin().shift()
        for i in range(1, len(points)):
            rise = points["accuracy"][i] - lowest[i]
            where = f"{threat_model}/{attack} at eps {points['eps'][i]:g}"
            rises.append((rise, points["accuracy"][i] > bound[i], where))
    return _judge_excess(rises, "accuracy rises above its lowest value at a smaller eps")


def _pgd_at_least_fgsm(of: Evidence) -> Outcome:
    adaptive = of.table[of.table["threat_model"] == "adaptive"]
    pgd, fgsm = (adaptive[adaptive["attack"] == attack].set_index("eps") for attack in ("pgd", "fgsm"))
    both = pgd.join(fgsm, how="inner", rsuffix="_fgsm")
    if both.empty:
        return Outcome("WARN", None, "not checked: needs both fgsm and pgd in attack.attacks")
    differences = [
        (row["accuracy"] - row["accuracy_fgsm"], row["accuracy"] > row["accuracy_high_fgsm"], f"at eps {eps:g}")
        for eps, row in both.iterrows()
    ]
    return _judge_excess(differences, "accuracy under adaptive PGD is above that under adaptive FGSM")


def _falls_to_a_huge_eps(of: Evidence) -> Outcome:
    huge = of.probed("huge")
    figure = float(huge["value"].mean())
    explanation = f"{100 * figure:.1f} % of the images withstand PGD at eps {huge['eps'].iloc[0]:g}"
    if figure <= FALLEN:
        return Outcome("PASS", figure, explanation)
    return Outcome("FAIL", figure, f"{explanation}, where each can become uniform grey: it does not find what is there")


def _more_steps_change_little(of: Evidence) -> Outcome:
    adaptive = of.records[(of.records["threat_model"] == "adaptive") & (of.records["attack"] == "pgd")]
    if adaptive.empty:
        return Outcome("WARN", None, "not checked: needs pgd in attack.attacks")
    # nested balls: what breaks an image at one eps breaks it at every larger one
    broken = _broken_by(adaptive).rename("broken_eps")
    both = of.smallest[of.smallest["attack"] == SWEEP].join(broken, on="image").fillna({"broken_eps": math.inf})
    gains = [
        (float((both["broken_eps"] > eps).mean() - (both["smallest_eps"] > eps).mean()), float(eps))
        for eps in sorted(adaptive["eps"].unique())
    ]
    figure, eps = max(gains)
    where = f"the sweep breaks {100 * figure:.1f} points more than PGD at eps {eps:g}"
    weakest, weak_eps = min(gains)
    if weakest <= -0.01:
        weak = f"the sweep breaks {-100 * weakest:.1f} points less than PGD at eps {weak_eps:g}"
        return Outcome("WARN", figure, f"{weak}, so it can't vouch for PGD; raise attack.sweep.n_restarts")
    if figure < 0.01:
        return Outcome("PASS", figure, where if figure > 0 else "the sweep breaks no more than PGD")
    if round(figure * len(both)) <= 1:
        return Outcome("WARN", figure, f"{where}, one image of {len(both)}")
    return Outcome("FAIL", figure, f"{where}; take the sweep's accuracy, or raise attack.pgd.n_steps")


def _broken_by(records: pd.DataFrame) -> "pd.Series[float]":
    """The smallest eps at which each image is wrong, 0 where it was before, by image; those that never are, left out.

    What an attack turns right counts as wrong, as in searches for the smallest eps.
    """
    wrong = records[~(records["correct"] & records["clean_correct"])]
    return wrong["eps"].where(wrong["clean_correct"], 0.0).groupby(wrong["image"]).min()


def _black_box_finds_nothing_new(of: Evidence) -> Outcome:
    lowest = of.smallest.groupby(["threat_model", "image"])["smallest_eps"].min()
    if "black_box" not in lowest.index:
        return Outcome("WARN", None, "not checked: needs attack.suite.n_queries or n_label_queries")
    by_records = _broken_by(of.records[of.records["threat_model"] == "adaptive"])
    seen = pd.concat([lowest["adaptive"], by_records]).groupby(level=0).min().rename("seen")
    both = lowest["black_box"].rename("asked").reset_index().join(seen, on="image")
    # wherever between the two eps, the white-box attacks say that it is withstood
    missed = both.loc[both["asked"] < both["seen"], "image"]
    figure = len(missed) / len(both)
    if missed.empty:
        return Outcome("PASS", 0.0, f"none of {len(both)} images")
    numbers = ", ".join(map(str, missed))
    explanation = f"{100 * figure:.1f} % of the images at some eps (images {numbers}): gradients may be masked"
    return Outcome("FAIL" if figure > MISSED_SHARE else "WARN", figure, explanation)


def _noise_hurts_less(of: Evidence) -> Outcome:
    adaptive = of.table[of.table["threat_model"] == "adaptive"]
    strongest = adaptive.groupby("eps")["accuracy"].min()
    differences = []
    for eps, right in of.probed("noise").groupby("eps")["value"]:
        _, high = wilson(right.sum(), len(right))
        differences.append((strongest[eps] - right.mean(), strongest[eps] > float(high), f"at eps {eps:g}"))
    return _judge_excess(differences, "accuracy under the strongest adaptive attack is above that under random noise")


def _transfer_no_stronger(of: Evidence) -> Outcome | None:
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
    return _judge_excess(differences, "accuracy under adaptive is above that under transfer")


def _knowing_it_pays(of: Evidence) -> Outcome | None:
    if of.name == UNDEFENDED:
        return None
    known, ignored = (_withstanding(of.withstood, threat_model) for threat_model in ("adaptive", "transfer"))
    bare, n = _withstanding(of.bare_withstood, "adaptive"), of.withstood["image"].nunique()
    eps = max(ignored, key=lambda each: ignored[each] - bare[each])
    figure = ignored[eps] - known[eps]
    low, _ = wilson(round(ignored[eps] * n), n)
    _, bare_high = wilson(round(bare[eps] * n), n)
    if ignored[eps] <= bare_high:
        return Outcome("PASS", figure, "nobody is kept off, whether he knows the defence or not")
    explanation = (
        f"at eps {eps:g}, where it helps most against who does not know it, it lifts accuracy from "
        f"{100 * bare[eps]:.1f} to {100 * ignored[eps]:.1f} %"
    )
    if figure < 0:
        return Outcome("WARN", figure, f"{explanation}; who knows it does worse by {-100 * figure:.1f} points")
    explanation += f"; who knows it takes {100 * figure:.1f} points of that"
    if known[eps] < low:
        return Outcome("PASS", figure, explanation)
    return Outcome("WARN", figure, f"{explanation}, which is within the interval: he may lack a good gradient")


def _withstanding(outcomes: pd.DataFrame, threat_model: str) -> dict[float, float]:
    """Share of images that withstand all attacks of a threat model, by eps."""
    found = worst_case(outcomes[outcomes["threat_model"] == threat_model])
    return dict(zip(found["eps"], found["accuracy"], strict=True))


def _gradients_are_there(of: Evidence) -> Outcome:
    zero, finite = of.probed("zero_gradient")["value"], of.probed("finite_gradient")["value"]
    none, broken = float((zero == 1).mean()), float((finite == 0).mean())
    explanation = (
        f"the loss has no gradient at all on {100 * none:.1f} % of the images, at {100 * zero.mean():.1f} % of all "
        f"pixels; NaN or infinite on {100 * broken:.1f} %"
    )
    status: Status = "FAIL" if broken or none > WITHOUT_GRADIENT else "WARN" if none else "PASS"
    return Outcome(status, max(none, broken), explanation)


def _outputs_are_logits_and_steady(of: Evidence) -> Outcome:
    if of.probed("probabilities")["value"].all():
        return Outcome("FAIL", 1.0, "outputs lie in [0, 1] and add up to 1: probabilities, which saturate, not logits")
    figure = float(of.probed("spread")["value"].max())
    if figure <= SAME:
        return Outcome("PASS", figure, "logits, the same in five passes")
    unsteady = float((of.probed("steady")["value"] == 0).mean())
    explanation = (
        f"in five passes a logit differs by up to {figure:.2g}, and {100 * unsteady:.1f} % of the predictions change"
    )
    if of.n_looks == 1:
        return Outcome("FAIL", figure, f"{explanation}, but attacks look once: raise the defence's n_draws")
    explanation += f"; attacks average over {of.n_looks} looks (EOT)"
    if unsteady > UNSTEADY:
        return Outcome("WARN", figure, f"{explanation}: too few for a steady prediction, raise n_draws")
    return Outcome("PASS", figure, explanation)


def _inside_ball(of: Evidence) -> Outcome:
    attacked = of.records[of.records["attack"] != CLEAN]
    norms = attacked[str(attacked["norm"].iloc[0])]
    excess = ball_excess(norms.to_numpy(), attacked["eps"].to_numpy(), attacked["radius"].to_numpy())
    figure = float(excess.max())
    n_outside = int((excess > TOLERANCE).sum())
    explanation = f"{n_outside} of {len(attacked)} leave it by more than {TOLERANCE:g}; the farthest: {figure:.2g}"
    successful = attacked[attacked["success"]]
    if len(successful):
        kept = 1 - successful["correct_8bit"].groupby(successful["eps"]).mean()
        shares = ", ".join(f"{100 * share:.0f} % at eps {eps:g}" for eps, share in kept.items())
        explanation += f". Of those that succeed, these still do in 8 bits, which is what a PNG keeps: {shares}"
    return Outcome("FAIL" if n_outside else "PASS", figure, explanation)


def _controls_fall(of: Evidence) -> Outcome | None:
    if not of.is_control:
        return None
    largest = of.withstood["eps"].max()
    at_largest = of.withstood[(of.withstood["threat_model"] == "adaptive") & (of.withstood["eps"] == largest)]
    figure = float(at_largest["withstood"].mean())
    explanation = f"{100 * figure:.1f} % of the images withstand all adaptive attacks at eps {largest:g}"
    planted = of.probed("broken_defence")
    if len(planted):
        share = float(planted["value"].mean())
        explanation += f"; with 4 bits a pixel before it, a defence known to be broken, {100 * share:.1f} %"
        figure = max(figure, share)
    if figure <= FALLEN:
        return Outcome("PASS", figure, explanation)
    if largest < CONTROL_EPS:
        return Outcome("WARN", figure, f"{explanation}; add {CONTROL_EPS:g} to attack.eps to see it fall")
    return Outcome("FAIL", figure, f"{explanation}: the attacks are too weak to tell a defence from none")


def _success_counts_correct_only(of: Evidence) -> Outcome:
    clean = of.records[of.records["attack"] == CLEAN].set_index("image")["correct"].rename("correct_before")
    before = of.records.join(clean, on="image")["correct_before"].astype(bool)
    wrong = (of.records["success"] != (before & ~of.records["correct"])) | (of.records["clean_correct"] != before)
    n_wrong = int(wrong.sum())
    return Outcome("FAIL" if n_wrong else "PASS", n_wrong, f"{n_wrong} of {len(wrong)} records count otherwise")


def _no_leakage(leakage: dict[str, float]) -> Outcome:
    near_duplicates, group = leakage["near_duplicate_in_train"], leakage["group_in_train"]
    explanation = (
        f"{100 * near_duplicates:.1f} % of the test images have a near-duplicate in training, {100 * group:.1f} % "
        "an image of their group"
    )
    if not group:
        return Outcome("PASS", group, explanation)
    return Outcome("WARN", group, f"{explanation}; prepare.split.strategy grouped keeps them apart")


def _judge_excess(excesses: list[tuple[float, bool, str]], what: str) -> Outcome:
    """Judge differences of accuracy that should not be above 0: (difference, beyond the interval, where)."""
    beyond = [excess for excess in excesses if excess[1]]
    figure, _, where = max(beyond or excesses, key=lambda excess: excess[0])
    if figure <= 0:
        return Outcome("PASS", float(figure), f"nowhere {what}")
    extent = "beyond its interval" if beyond else "within its interval"
    return Outcome(
        "FAIL" if beyond else "WARN", float(figure), f"{what} by {100 * figure:.1f} points, {extent}: {where}"
    )


CHECKS: dict[str, tuple[str, Callable[[Evidence], Outcome | None]]] = {
    "constant": ("clean images are told apart", _tells_classes_apart),
    "monotone": ("robust accuracy does not rise with eps", _does_not_rise),
    "pgd": ("PGD is at least as strong as FGSM", _pgd_at_least_fgsm),
    "huge_eps": ("a huge perturbation leaves at most 1 % right", _falls_to_a_huge_eps),
    "more_steps": ("more steps and restarts change accuracy by less than 1 point", _more_steps_change_little),
    "black_box": (
        "attacks without gradients break nothing that white-box attacks missed",
        _black_box_finds_nothing_new,
    ),
    "noise": ("random noise hurts less than attacks", _noise_hurts_less),
    "transfer": ("transfer is no stronger than adaptive", _transfer_no_stronger),
    "knowledge": ("who knows the defence finds more than who does not", _knowing_it_pays),
    "gradients": ("gradients are there, and finite", _gradients_are_there),
    "outputs": ("outputs are logits, and steady", _outputs_are_logits_and_steady),
    "ball": ("every adversarial example lies in its ball", _inside_ball),
    "control": ("what is known to be broken falls", _controls_fall),
    "success": ("success counts only images classified correctly before", _success_counts_correct_only),
}
"""Key -> what should be, and the check; in the order of the list in docs/reference/checks.md."""
