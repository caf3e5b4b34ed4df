"""Positive controls of the checks: each catches a planted failure, and passes a planted success."""

from collections.abc import Callable

import pandas as pd
import pytest

from tasks.evaluation.checks import CHECKS
from tests.plausible_attack import minimum_eps_in
from tests.test_checks import (
    ATTACKS,
    BARE,
    DEFENDED,
    FRACTIONS,
    SOUND,
    Found,
    N,
    first_under_fgsm,
    outcome,
    probing,
    searched,
    with_doubled_effort,
)


def changed(**points: dict[float, float]) -> dict[tuple[str, str, str], dict[float, float]]:
    """The sound evaluation with other accuracies, by ``target__threat_model__attack``."""
    curves = dict(SOUND)
    for name, accuracies in points.items():
        target, threat_model, attack = name.split("__")
        curves[target, threat_model, attack] = accuracies
    return curves


def square_alone_breaks_an_image(records: pd.DataFrame) -> pd.DataFrame:
    found = searched(records)
    late = found[(found["target"] == DEFENDED) & (found["attack"] == "square") & (found["minimum_eps"] == 4)]
    return found.assign(minimum_eps=found["minimum_eps"].mask(found.index.isin(late.index[:1]), 1.0))


def square_breaks_nothing(records: pd.DataFrame) -> pd.DataFrame:
    found = searched(records)
    return found.assign(minimum_eps=found["minimum_eps"].mask(found["attack"] == "square", float("inf")))


def at_chance() -> Found:
    return outcome(SOUND | {(DEFENDED, "adaptive", attack): {1: 0.5, 4: 0.0} for attack in ATTACKS})


def with_largest_eps(**arguments: Callable[[pd.DataFrame], pd.DataFrame]) -> Found:
    """The sound evaluation with eps 8 in place of 4."""
    curves = {curve: {8 if eps == 4 else eps: value for eps, value in of.items()} for curve, of in SOUND.items()}
    return outcome(curves, **arguments)


CONTROLS: dict[str, tuple[str | None, str, Callable[[], Found]]] = {
    "majority_class": (
        DEFENDED,
        "FAIL",
        lambda: outcome(SOUND, prediction=0, correct=lambda records: records["label"] == 0),
    ),
    "shortcut_baseline": (BARE, "WARN", lambda: outcome(SOUND, correct=lambda records: records["image"] % 3 == 1)),
    "constant": (DEFENDED, "FAIL", at_chance),
    "monotone_in_eps": (BARE, "FAIL", lambda: outcome(changed(undefended__adaptive__pgd={1: 0.4, 4: 0.7}))),
    "pgd_vs_fgsm": (BARE, "FAIL", lambda: outcome(changed(undefended__adaptive__pgd={1: 0.65, 4: 0.0}))),
    "art_reference": (BARE, "FAIL", lambda: outcome(changed(undefended__adaptive__art_pgd={1: 0.39, 4: 0.0}))),
    "unbounded_attack": (DEFENDED, "FAIL", lambda: outcome(SOUND, probe=probing("unbounded_attack", 1, 0.02))),
    "more_steps": (DEFENDED, "FAIL", lambda: outcome(SOUND, search=with_doubled_effort(2))),
    "black_box": (DEFENDED, "FAIL", lambda: outcome(SOUND, search=square_alone_breaks_an_image)),
    "random_noise": (DEFENDED, "FAIL", lambda: outcome(SOUND, probe=probing("random_noise", 0, 0.6))),
    "transfer_vs_adaptive": (
        DEFENDED,
        "FAIL",
        lambda: outcome(
            changed(autoencoder__transfer__fgsm={1: 0.6, 4: 0.6}, autoencoder__adaptive__fgsm={1: 0.8, 4: 0.3})
        ),
    ),
    "adaptive_advantage": (
        DEFENDED,
        "WARN",
        lambda: outcome(SOUND | {(DEFENDED, "adaptive", attack): {1: 0.7, 4: 0.59} for attack in ATTACKS}),
    ),
    "gradients": (DEFENDED, "FAIL", lambda: outcome(SOUND, probe=probing("zero_gradient", 1, 0.02))),
    "gradient_agreement": (DEFENDED, "FAIL", lambda: outcome(SOUND, probe=probing("margin_drop", 0.1))),
    "outputs": (DEFENDED, "FAIL", lambda: outcome(SOUND, probe=probing("outputs_are_probabilities", 1))),
    "norm_bound": (DEFENDED, "FAIL", lambda: outcome(SOUND, linf=lambda records: records["eps"] / 255 + 2e-6)),
    "positive_control": (BARE, "FAIL", lambda: with_largest_eps(probe=probing("positive_control", 1, 0.25))),
    "success_definition": (
        DEFENDED,
        "FAIL",
        lambda: outcome(SOUND, success=lambda records: records["success"] | first_under_fgsm(records)),
    ),
    "leakage": (
        None,
        "WARN",
        lambda: outcome(
            SOUND, {"outcome": "exact", "fractions": FRACTIONS | {"patient_in_train": 0.3}, "estimate": {"value": None}}
        ),
    ),
}
"""Check -> target, status and evaluation of the planted failure. The planted success is the sound evaluation."""


def test_every_check_has_a_positive_control() -> None:
    assert set(CONTROLS) == {*CHECKS, "leakage"}


@pytest.fixture(scope="module")
def sound() -> Found:
    return with_largest_eps()


@pytest.mark.parametrize("key", CONTROLS)
def test_a_check_catches_its_planted_failure_and_passes_the_planted_success(key: str, sound: Found) -> None:
    target, status, planted = CONTROLS[key]
    assert planted()[target, key].status == status
    assert sound[target, key].status == "PASS"


RISING = {1: 0.4, 4: 0.7}


@pytest.mark.parametrize("attack", ["fgsm", "art_fgsm", "art_FastGradientMethod"])
@pytest.mark.parametrize(("target", "status"), [(BARE, "INFO"), (DEFENDED, "WARN")])
def test_one_step_that_is_weaker_in_a_larger_ball_is_no_failure(target: str, status: str, attack: str) -> None:
    check = outcome(SOUND | {(target, "adaptive", attack): RISING})[target, "monotone_in_eps"]
    assert (check.status, check.value) == (status, pytest.approx(0.3))
    assert f"significantly: adaptive/{attack} at eps 4 against eps 1. One step can overshoot" in check.explanation


@pytest.mark.parametrize("attack", ["pgd", "art_pgd", "plugin_own"])
@pytest.mark.parametrize("target", [BARE, DEFENDED])
def test_an_iterated_attack_that_is_weaker_in_a_larger_ball_fails(target: str, attack: str) -> None:
    curves = {(target, "adaptive", attack): RISING, (target, "adaptive", "fgsm"): {1: 0.2, 4: 0.9}}
    check = outcome(SOUND | curves)[target, "monotone_in_eps"]
    assert (check.status, check.value) == ("FAIL", pytest.approx(0.3))
    assert f"adaptive/{attack} at eps 4" in check.explanation


@pytest.mark.parametrize(("accuracy", "status"), [(1.0, "NO POWER"), (0.51, "NO POWER"), (0.5, "PASS")])
def test_transfer_that_hardly_breaks_the_undefended_classifier_has_no_power(accuracy: float, status: str) -> None:
    # white-box attacks leave 0 % at eps 4
    known = {(BARE, "transfer", "pgd from cnn-1"): {1: 1.0, 4: accuracy}}
    check = outcome(SOUND | known)[BARE, "transfer_vs_adaptive"]
    assert check.status == status
    assert f"by surrogate: cnn-1 {100 * accuracy:.1f} %" in check.explanation


def test_transfer_has_no_power_where_no_eps_breaks_the_undefended_classifier() -> None:
    weak = {(BARE, "adaptive", attack): {1: 0.5, 4: 0.2} for attack in ATTACKS}
    check = outcome(SOUND | weak)[DEFENDED, "transfer_vs_adaptive"]
    assert check.status == "NO POWER"
    assert "no such eps" in check.explanation


def test_a_pass_applies_to_surrogates_with_power_only() -> None:
    known = {(target, "transfer", "pgd from cnn-1"): {1: 1.0, 4: 1.0} for target in (BARE, DEFENDED)}
    check = outcome(SOUND | known)[DEFENDED, "transfer_vs_adaptive"]
    assert check.status == "PASS"
    assert check.explanation.endswith(
        "cnn-1 100.0 % at eps 4; undefended 0.0 % at eps 4. The pass applies to undefended at eps 4 only"
    )


def test_a_pass_applies_to_the_eps_at_which_a_surrogate_has_power_only() -> None:
    known = {(BARE, "adaptive", attack): {1: 0.0, 4: 0.0} for attack in ATTACKS}
    known |= {(target, "transfer", "pgd from cnn-1"): {1: 0.9, 4: 0.4} for target in (BARE, DEFENDED)}
    check = outcome(SOUND | known)[BARE, "transfer_vs_adaptive"]
    assert check.status == "PASS"
    assert check.explanation.endswith("cnn-1 90.0 % at eps 1, 40.0 % at eps 4. The pass applies to cnn-1 at eps 4 only")


def test_an_effect_of_the_defence_that_is_not_significant_gives_no_pass() -> None:
    # one of 200 images is not significant
    known = {
        (DEFENDED, threat_model, attack): {1: 0.4, 4: 0.005}
        for threat_model in ("transfer", "adaptive")
        for attack in ("fgsm", "pgd")
    }
    known |= {(DEFENDED, "adaptive", attack): {1: 0.4, 4: 0.0} for attack in ("art_fgsm", "art_pgd")}
    assert outcome(SOUND | known)[DEFENDED, "adaptive_advantage"].status == "INFO"


def test_checks_without_power_or_patients_do_not_pass() -> None:
    assert outcome(SOUND, search=square_breaks_nothing)[DEFENDED, "black_box"].status == "NO POWER"
    assert outcome(SOUND, search=minimum_eps_in)[DEFENDED, "black_box"].status == "WARN"
    two_groups = outcome(SOUND, n_images_per_group=N // 2)
    for key in ("majority_class", "shortcut_baseline", "constant"):
        assert two_groups[DEFENDED, key].status == "NO POWER"
    estimate = {"value": 0.3, "low": 0.2, "high": 0.4}
    unknown = {"outcome": "unverified", "fractions": FRACTIONS, "estimate": estimate}
    assert outcome(SOUND, unknown)[None, "leakage"].status == "UNVERIFIED"
