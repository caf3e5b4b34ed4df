import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.evaluation.check_inputs import CheckInputs
from tasks.evaluation.checks import CHECKS, CheckResult, run_checks
from tasks.outcomes.worst_case import worst_case_outcomes
from tasks.records.expected import EXPECTED
from tasks.records.operating_points import OperatingPoint
from tests.conftest import ROOT
from tests.plausible_attack import diagnostics_in, minimum_eps_in

N = 200


def searched(records: pd.DataFrame) -> pd.DataFrame:
    """The sweep's results, and a Square attack that finds the same."""
    found = minimum_eps_in(records)
    by_scores = found.assign(threat_model="black_box", attack="square", found_by="square")
    return pd.concat([found, by_scores], ignore_index=True)


def convergence_in(records: pd.DataFrame, searches: pd.DataFrame) -> pd.DataFrame:
    """Worst case of each image with and without the doubled suite, which finds nothing more if it did not run."""
    by_records = records.loc[~records["correct"], ["target", "image", "eps", "attack"]]
    attempts = pd.concat([by_records, searches.rename(columns={"minimum_eps": "eps"})])
    parts = []
    for eps in sorted(set(records["eps"]) - {0.0}):
        images = records.drop_duplicates(["target", "image"])[["target", "image", "group"]].assign(eps=eps)
        index = pd.MultiIndex.from_frame(images[["target", "image"]])
        for name, left_out in (("before", "suite_doubled"), ("after", "")):
            counted = attempts[(attempts["attack"] != left_out) & (attempts["eps"] <= eps)]
            images[name] = (~index.isin(pd.MultiIndex.from_frame(counted[["target", "image"]]))).astype(float)
        parts.append(images)
    return pd.concat(parts, ignore_index=True).assign(operating_point="fixed_sensitivity")


FRACTIONS = {"near_duplicate_in_train": 0.1, "group_in_train": 0.99}
NO_LEAKAGE = {"outcome": "exact", "fractions": FRACTIONS | {"patient_in_train": 0.0}, "estimate": {"value": None}}
Found = dict[tuple[str | None, str], CheckResult]
RANDOM: dict[str, object] = {name: lambda of: [np.array([float(each)]) for each in of["correct"]] for name in EXPECTED}
"""Further columns of the records of a random target whose predictions are all the same."""


def outcome(
    accuracies: dict[tuple[str, str, str], dict[float, float]], leakage: dict[str, Any] = NO_LEAKAGE, **arguments: Any
) -> Found:
    """Checks, by target and key, of the inputs of :func:`inputs_of`."""
    checks = run_checks(inputs_of(accuracies, **arguments), leakage)
    return {(check.target, check.key): check for check in checks}


def inputs_of(
    accuracies: dict[tuple[str, str, str], dict[float, float]],
    search: Callable[[pd.DataFrame], pd.DataFrame] = searched,
    probe: Callable[[pd.DataFrame], pd.DataFrame] = diagnostics_in,
    n_images_per_group: int = 1,
    **changes: object,
) -> list[CheckInputs]:
    """Inputs of the checks from records in which a share of 200 images is classified correctly at each point.

    eps 0 is clean. The attack ``pgd from cnn-1`` is transferred from this surrogate, not the undefended classifier.
    """
    parts = []
    for (target, threat_model, name), curve in accuracies.items():
        attack, _, surrogate = name.partition(" from ")
        surrogate = surrogate or ("undefended" if threat_model == "transfer" else "")
        for eps, accuracy in curve.items():
            names = {"target": target, "threat_model": threat_model, "attack": attack, "eps": eps}
            names["surrogate"] = surrogate
            correct = [i < accuracy * N for i in range(N)]
            labels = [i % 2 for i in range(N)]
            frame = pd.DataFrame({"image": range(N), "label": labels, "correct": correct, "clean_correct": True})
            frame["group"] = frame["image"] // n_images_per_group
            prediction = frame["label"].where(frame["correct"], 1 - frame["label"])
            parts.append(frame.assign(prediction=prediction, success=~frame["correct"], **names))
    records = pd.concat(parts, ignore_index=True).assign(norm="linf", entropy=0, margin=0, l2=0, reconstruction_error=0)
    records["linf"] = records["radius"] = records["eps"] / 255
    # rounding undoes what is smaller than half a level
    records["correct_8bit"] = records["correct"] | (records["eps"] < 0.5)
    records = records.assign(**changes)
    smallest = search(records)
    tables = {"records": records, "minimum_eps": smallest, "diagnostics": probe(records)}
    tables["convergence"] = convergence_in(records, smallest)
    logits = [np.eye(2)[each] for each in records["prediction"]]
    points = {name: [OperatingPoint("as_trained", (0.0, 0.0))] for name in (BARE, DEFENDED)}
    tables["worst_case"] = worst_case_outcomes(records.assign(logits=logits), smallest, points)
    evidence: list[CheckInputs] = []
    for name in ("undefended", "autoencoder"):
        evidence.append(
            CheckInputs(
                name=name,
                is_positive_control=name == "undefended",
                shortcut_correct=pd.Series([i % 3 == 0 for i in range(N)]),
                eps=min(eps for curve in accuracies.values() for eps in curve if eps > 0),
                undefended=evidence[0] if evidence else None,
                **{key: of_all[of_all["target"] == name] for key, of_all in tables.items()},
            )
        )
    return evidence


SOUND = {
    ("undefended", "none", "clean"): {0: 1.0},
    ("autoencoder", "none", "clean"): {0: 1.0},
    ("undefended", "adaptive", "fgsm"): {1: 0.5, 4: 0.2},
    ("undefended", "adaptive", "pgd"): {1: 0.4, 4: 0.0},
    ("autoencoder", "transfer", "fgsm"): {1: 0.8, 4: 0.6},
    ("autoencoder", "transfer", "pgd"): {1: 0.9, 4: 0.7},
    ("autoencoder", "adaptive", "fgsm"): {1: 0.6, 4: 0.3},
    ("autoencoder", "adaptive", "pgd"): {1: 0.6, 4: 0.01},
}
for _target in ("undefended", "autoencoder"):
    for _attack in ("fgsm", "pgd"):
        SOUND[_target, "adaptive", f"art_{_attack}"] = SOUND[_target, "adaptive", _attack]
BARE, DEFENDED = "undefended", "autoencoder"
ATTACKS = ("fgsm", "pgd", "art_fgsm", "art_pgd")


def probing(probe: str, value: float, share: float = 1.0) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Sound probes, but that one finds this value on a share of the images."""

    def probed(records: pd.DataFrame) -> pd.DataFrame:
        found = diagnostics_in(records)
        return found.assign(
            value=found["value"].mask((found["diagnostic"] == probe) & (found["image"] < share * N), value)
        )

    return probed


def test_a_sound_evaluation_passes_all_checks() -> None:
    checks = outcome(SOUND)
    assert list(checks) == [
        *((BARE, key) for key in CHECKS if key not in {"transfer_vs_adaptive", "adaptive_advantage"}),
        *((DEFENDED, key) for key in CHECKS if key != "positive_control"),
        (None, "leakage"),
    ]
    statuses = {key: check.status for key, check in checks.items()}
    assert statuses.pop((BARE, "constant")) == "INFO"
    assert set(statuses.values()) == {"PASS"}
    assert all(check.value is not None for check in checks.values())


def test_a_constant_predictor_fails_although_it_is_robust() -> None:
    constant = {curve: dict.fromkeys(points, 1.0) for curve, points in SOUND.items() if curve[0] == DEFENDED}
    check = outcome(SOUND | constant, prediction=0, correct=lambda records: records["label"] == 0)[
        DEFENDED, "majority_class"
    ]
    assert (check.status, check.value) == ("FAIL", 0)
    assert "clean accuracy on 200 test images is 50.0 %" in check.explanation
    assert "all images get the same class" in check.explanation


@pytest.mark.parametrize(("share", "status"), [(0.5, "WARN"), (0.55, "WARN"), (0.6, "PASS")])
def test_clean_accuracy_not_above_the_majority_class_is_reported(share: float, status: str) -> None:
    right = {"clean_correct": lambda records: records["image"] < share * N}
    check = outcome(SOUND | {(DEFENDED, "none", "clean"): {0: share}}, **right)[DEFENDED, "majority_class"]
    assert (check.status, check.value) == (status, pytest.approx(share - 0.5, abs=0.01))


@pytest.mark.parametrize(("accuracy", "status"), [(0.41, "WARN"), (0.7, "FAIL")])
def test_accuracy_that_rises_with_eps_is_reported(accuracy: float, status: str) -> None:
    check = outcome(SOUND | {("undefended", "adaptive", "pgd"): {1: 0.4, 4: accuracy}})[BARE, "monotone_in_eps"]
    assert check.status == status
    assert check.value == pytest.approx(accuracy - 0.4)
    assert "adaptive/pgd at eps 4" in check.explanation


@pytest.mark.parametrize(("accuracy", "status"), [(0.51, "WARN"), (0.65, "FAIL")])
def test_pgd_weaker_than_fgsm_is_reported(accuracy: float, status: str) -> None:
    check = outcome(SOUND | {("undefended", "adaptive", "pgd"): {1: accuracy, 4: 0.0}})[BARE, "pgd_vs_fgsm"]
    assert check.status == status
    assert check.value == pytest.approx(accuracy - 0.5)
    assert "at eps 1" in check.explanation


def test_without_both_attacks_the_comparison_is_said_to_be_missing() -> None:
    check = outcome({curve: points for curve, points in SOUND.items() if curve[2] != "fgsm"})[BARE, "pgd_vs_fgsm"]
    assert (check.status, check.value) == ("WARN", None)
    assert "not checked" in check.explanation


@pytest.mark.parametrize(("largest", "status"), [(4, "WARN"), (8, "FAIL")])
def test_an_undefended_classifier_that_does_not_fall_is_reported(largest: float, status: str) -> None:
    curves = {curve: dict.fromkeys([0], 1.0) if curve[2] == "clean" else {largest: 0.3} for curve in SOUND}
    check = outcome(curves)[BARE, "positive_control"]
    assert (check.status, check.value) == (status, pytest.approx(0.3))


def test_a_positive_control_that_is_not_broken_fails() -> None:
    curves = {curve: {8 if eps == 4 else eps: accuracy for eps, accuracy in of.items()} for curve, of in SOUND.items()}
    assert outcome(curves)[BARE, "positive_control"].status == "PASS"
    check = outcome(curves, probe=probing("positive_control", 1, share=0.25))[BARE, "positive_control"]
    assert (check.status, check.value) == ("FAIL", 0.25)
    assert "with a broken defence (4 bits a pixel) in front it is 25.0 %" in check.explanation


@pytest.mark.parametrize(("share", "status"), [(0.01, "PASS"), (0.02, "FAIL")])
def test_what_withstands_a_huge_perturbation_is_reported(share: float, status: str) -> None:
    check = outcome(SOUND, probe=probing("unbounded_attack", 1, share))[DEFENDED, "unbounded_attack"]
    assert (check.status, check.value) == (status, pytest.approx(share))


@pytest.mark.parametrize(("hurt", "status"), [(0.4, "PASS"), (0.41, "WARN"), (0.6, "FAIL")])
def test_noise_that_hurts_more_than_attacks_is_reported(hurt: float, status: str) -> None:
    # of the images 60 % are correct under PGD at eps 1
    check = outcome(SOUND, probe=probing("random_noise", 0, hurt))[DEFENDED, "random_noise"]
    assert check.status == status
    assert check.value == pytest.approx(hurt - 0.4)


@pytest.mark.parametrize(("share", "status"), [(0, "PASS"), (0.01, "WARN"), (0.02, "FAIL")])
def test_images_without_a_gradient_are_reported(share: float, status: str) -> None:
    check = outcome(SOUND, probe=probing("zero_gradient", 1, share))[DEFENDED, "gradients"]
    assert (check.status, check.value) == (status, pytest.approx(share))


@pytest.mark.parametrize(("drop", "status", "value"), [(0.45, "FAIL", 0.45), (0.5, "PASS", 0.5), (3.0, "PASS", 3.0)])
def test_a_step_along_the_gradient_must_change_the_margin_as_predicted_at_one_size(
    drop: float, status: str, value: float
) -> None:
    # the smaller steps change nothing, as behind a rounding to few grey levels
    def at_eps_4_only(records: pd.DataFrame) -> pd.DataFrame:
        found = diagnostics_in(records)
        changes = found["diagnostic"] == "margin_drop"
        return found.assign(value=found["value"].mask(changes, np.where(found["eps"] == 4, 4 * drop, 0.0)))

    check = outcome(SOUND, probe=at_eps_4_only)[DEFENDED, "gradient_agreement"]
    assert (check.status, check.value) == (status, pytest.approx(value))
    assert f"0 % at eps 0.25, 0 % at eps 1, {100 * value:.0f} % at eps 4" in check.explanation


def test_without_a_usable_gradient_its_agreement_has_no_power() -> None:
    check = outcome(SOUND, probe=probing("margin_drop_by_gradient", 0.0))[DEFENDED, "gradient_agreement"]
    assert (check.status, check.value) == ("NO POWER", None)


def test_gradients_that_are_not_finite_fail() -> None:
    check = outcome(SOUND, probe=probing("finite_gradient", 0, 0.005))[DEFENDED, "gradients"]
    assert (check.status, check.value) == ("FAIL", pytest.approx(0.005))


def test_probabilities_instead_of_logits_fail() -> None:
    check = outcome(SOUND, probe=probing("outputs_are_probabilities", 1))[DEFENDED, "outputs"]
    assert check.status == "FAIL"
    assert "probabilities instead of logits" in check.explanation
    # some images may have logits that look like probabilities
    assert outcome(SOUND, probe=probing("outputs_are_probabilities", 1, 0.5))[DEFENDED, "outputs"].status == "PASS"


@pytest.mark.parametrize(
    ("spread", "is_random", "status"), [(1e-5, False, "PASS"), (0.5, False, "FAIL"), (0.5, True, "PASS")]
)
def test_random_outputs_fail_if_the_target_counts_as_deterministic(spread: float, is_random: bool, status: str) -> None:
    probe = probing("max_logit_difference", spread, 0.1)
    check = outcome(SOUND, probe=probe, **(RANDOM if is_random else {}))[DEFENDED, "outputs"]
    assert (check.status, check.value) == (status, spread)


@pytest.mark.parametrize("spread", [1e-5, 0.5])
def test_a_random_target_needs_no_comparison_of_single_images(spread: float) -> None:
    def probed(records: pd.DataFrame) -> pd.DataFrame:
        found = probing("max_logit_difference", spread)(records)
        return found[found["diagnostic"] != "batch_difference"]

    check = outcome(SOUND, probe=probed, **RANDOM)[DEFENDED, "outputs"]
    assert (check.status, check.value) == ("PASS", spread)
    assert "other images" not in check.explanation


@pytest.mark.parametrize(("spread", "status"), [(1e-5, "PASS"), (0.2, "FAIL"), (float("nan"), "FAIL")])
def test_outputs_that_depend_on_the_other_images_of_a_batch_fail(spread: float, status: str) -> None:
    check = outcome(SOUND, probe=probing("batch_difference", spread, 0.1))[DEFENDED, "outputs"]
    assert check.status == status
    assert ("depend on the other images" in check.explanation) == (status == "FAIL")


@pytest.mark.parametrize(("share", "status"), [(0.01, "PASS"), (0.02, "WARN")])
def test_predictions_that_change_from_look_to_look_are_reported(share: float, status: str) -> None:
    def probed(records: pd.DataFrame) -> pd.DataFrame:
        found = probing("max_logit_difference", 0.5)(records)
        return found.assign(
            value=found["value"].mask(
                (found["diagnostic"] == "repeatable_prediction") & (found["image"] < share * N), 0
            )
        )

    check = outcome(SOUND, probe=probed, **RANDOM)[DEFENDED, "outputs"]
    assert check.status == status
    assert f"{100 * share:.1f} % of the predictions change" in check.explanation


def test_what_pgd_alone_broke_is_nothing_new_to_scores() -> None:
    def late(records: pd.DataFrame) -> pd.DataFrame:
        found = searched(records)
        # the suite missed at eps 1 what PGD and Square break there
        first = found[(found["target"] == DEFENDED) & (found["attack"] == "suite") & (found["minimum_eps"] == 1)].index[
            :1
        ]
        return found.assign(minimum_eps=found["minimum_eps"].mask(found.index.isin(first), 4.0))

    assert outcome(SOUND, search=late)[DEFENDED, "black_box"].status == "PASS"


def test_the_fraction_of_successes_after_rounding_to_8_bits_is_reported() -> None:
    curves = {
        curve: {0.25 if eps == 1 else eps: accuracy for eps, accuracy in of.items()} for curve, of in SOUND.items()
    }
    explanation = outcome(curves)[BARE, "norm_bound"].explanation
    assert "stay successful after rounding to 8 bits: 0 % at eps 0.25, 100 % at eps 4" in explanation


@pytest.mark.parametrize(("accuracy", "status"), [(0.61, "WARN"), (0.8, "FAIL")])
def test_transfer_stronger_than_adaptive_is_reported(accuracy: float, status: str) -> None:
    check = outcome(
        SOUND
        | {
            ("autoencoder", "transfer", "fgsm"): {1: 0.6, 4: 0.6},
            ("autoencoder", "adaptive", "fgsm"): {1: accuracy, 4: 0.3},
        }
    )[DEFENDED, "transfer_vs_adaptive"]
    assert check.status == status
    assert "fgsm at eps 1" in check.explanation


@pytest.mark.parametrize("target", [BARE, DEFENDED])
def test_transfer_from_an_independent_surrogate_that_is_stronger_than_adaptive_is_reported(target: str) -> None:
    known = {(target, "transfer", "pgd from cnn-1"): {1: 0.35, 4: 0.0}, (target, "adaptive", "pgd"): {1: 0.6, 4: 0.01}}
    check = outcome(SOUND | known)[target, "transfer_vs_adaptive"]
    assert check.status == "FAIL"
    assert "pgd_from_cnn-1 at eps 1" in check.explanation


def test_transfer_from_an_independent_surrogate_is_no_transfer_from_the_undefended_classifier() -> None:
    broken = {(DEFENDED, "transfer", "pgd from cnn-1"): {1: 0.0, 4: 0.0}}
    assert outcome(SOUND | broken)[DEFENDED, "adaptive_advantage"] == outcome(SOUND)[DEFENDED, "adaptive_advantage"]


def test_a_curve_of_an_independent_surrogate_must_fall_with_eps_too() -> None:
    rising = {
        (BARE, "transfer", "pgd from cnn-1"): {1: 0.5, 4: 0.9},
        (BARE, "transfer", "pgd from cnn-2"): {1: 0.9, 4: 0.8},
    }
    check = outcome(SOUND | rising)[BARE, "monotone_in_eps"]
    assert check.status == "FAIL"
    assert "transfer/pgd_from_cnn-1 at eps 4 against eps 1" in check.explanation


@pytest.mark.parametrize(("accuracy", "status", "taken"), [(0.59, "WARN", 1.0), (0.5, "PASS", 10.0)])
def test_a_defence_with_almost_equal_accuracy_under_transfer_and_adaptive_attacks_is_reported(
    accuracy: float, status: str, taken: float
) -> None:
    known = {("autoencoder", "adaptive", attack): {1: 0.7, 4: accuracy} for attack in ATTACKS}
    check = outcome(SOUND | known)[DEFENDED, "adaptive_advantage"]
    assert (check.status, check.value) == (status, pytest.approx(taken / 100))
    assert check.explanation.startswith("at eps 4, where the defence gains most under transfer attacks")
    assert f"from 0.0 to 60.0 %; under adaptive attacks it is {taken} points lower" in check.explanation


def test_an_adaptive_attack_weaker_than_transfer_is_reported() -> None:
    known = {("autoencoder", "adaptive", attack): {1: 0.9, 4: 0.8} for attack in ATTACKS}
    check = outcome(SOUND | known)[DEFENDED, "adaptive_advantage"]
    assert (check.status, check.value) == ("WARN", pytest.approx(-0.2))
    assert check.explanation.endswith("from 0.0 to 60.0 %; adaptive attacks are 20.0 points weaker")


def test_adaptive_advantage_does_not_apply_to_a_defence_without_gain_under_transfer() -> None:
    useless = {("autoencoder", "transfer", "pgd"): {1: 0.4, 4: 0.0}}
    useless |= {("autoencoder", "adaptive", attack): {1: 0.4, 4: 0.0} for attack in ("pgd", "art_pgd")}
    check = outcome(SOUND | useless)[DEFENDED, "adaptive_advantage"]
    assert (check.status, check.value) == ("INFO", 0)
    assert "does not apply: the defence does not raise accuracy" in check.explanation


def test_the_largest_gain_under_transfer_must_be_significant_after_holms_correction() -> None:
    # 6 of 200 images at one of two eps: the sign-flip test has p = 0.031, and 0.0625 after the correction
    few = {("autoencoder", "transfer", "pgd"): {1: 0.4, 4: 0.03}}
    few |= {("autoencoder", "adaptive", attack): {1: 0.4, 4: 0.0} for attack in ("pgd", "art_pgd")}
    assert outcome(SOUND | few)[DEFENDED, "adaptive_advantage"].status == "INFO"
    more = {("autoencoder", "transfer", "pgd"): {1: 0.4, 4: 0.04}}
    assert outcome(SOUND | few | more)[DEFENDED, "adaptive_advantage"].status == "PASS"


def test_a_perturbation_outside_its_ball_fails() -> None:
    check = outcome(SOUND, linf=lambda records: records["eps"] / 255 + 2e-6)[DEFENDED, "norm_bound"]
    assert check.status == "FAIL"
    assert check.value == pytest.approx(2e-6, rel=1e-3)
    assert outcome(SOUND, linf=lambda records: records["eps"] / 255 + 5e-7)[DEFENDED, "norm_bound"].status == "PASS"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("success", lambda records: records["success"] | first_under_fgsm(records)),
        ("clean_correct", lambda records: records["clean_correct"] & ~first_under_fgsm(records)),
    ],
)
def test_successes_by_another_definition_fail(column: str, value: Callable[[pd.DataFrame], object]) -> None:
    check = outcome(SOUND, **{column: value})[DEFENDED, "success_definition"]
    assert (check.status, check.value) == ("FAIL", 4)


def first_under_fgsm(records: pd.DataFrame) -> object:
    """The first image under FGSM, where it is correct: four records of the defended classifier."""
    return (records["image"] == 0) & (records["attack"] == "fgsm")


def test_the_leakage_is_exact_with_patient_ids() -> None:
    fractions = FRACTIONS | {"patient_in_train": 0.25}
    check = outcome(SOUND, leakage=NO_LEAKAGE | {"fractions": fractions})[None, "leakage"]
    assert (check.status, check.value) == ("WARN", 0.25)
    assert "10.0 % of the test images have a near-duplicate" in check.explanation
    assert "25.0 % an image of their patient" in check.explanation


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_the_leakage_is_unverified_without_patient_ids_even_if_no_group_is_in_two_splits(value: float) -> None:
    leakage = {
        "outcome": "unverified",
        "fractions": {"near_duplicate_in_train": 0.0, "group_in_train": 0.0},
        "estimate": {"value": value, "low": value / 2, "high": 2 * value},
    }
    check = outcome(SOUND, leakage=leakage)[None, "leakage"]
    assert (check.status, check.value) == ("UNVERIFIED", value)
    assert f"an estimated {100 * value:.0f} % [{50 * value:.0f}, {200 * value:.0f}]" in check.explanation


def test_a_classifier_that_is_not_above_the_shortcut_baseline_is_reported() -> None:
    at_shortcut = {"clean_correct": True, "correct": lambda records: records["image"] % 3 != 1}
    check = outcome(SOUND, **at_shortcut)[BARE, "shortcut_baseline"]
    assert check.status == "PASS"
    no_better = {"clean_correct": True, "correct": lambda records: records["image"] % 3 == 1}
    check = outcome(SOUND, **no_better)[BARE, "shortcut_baseline"]
    assert check.status == "WARN"
    assert "that of a logistic regression on size, mean, standard deviation and saturation 33.5 %" in check.explanation
    # a test with p < 0.05 can have an interval that contains 0, so the explanation has both
    assert re.search(r"difference is [+-]\d.* \[-\d.*\] points, an interval that is not above 0$", check.explanation)


def with_doubled_effort(n_more: int, target: str = DEFENDED) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Searches of which twice the effort breaks some more images at eps 1, which otherwise break at 4."""

    def search(records: pd.DataFrame) -> pd.DataFrame:
        found = searched(records)
        suite = found[found["attack"] == "suite"]
        later = suite[(suite["target"] == target) & (suite["minimum_eps"] == 4)].index[:n_more]
        doubled = suite.assign(
            attack="suite_doubled", minimum_eps=suite["minimum_eps"].mask(suite.index.isin(later), 1.0)
        )
        return pd.concat([found, doubled], ignore_index=True)

    return search


@pytest.mark.parametrize(("n_more", "status"), [(0, "PASS"), (1, "PASS"), (2, "FAIL"), (30, "FAIL")])
def test_twice_the_effort_that_changes_the_reported_accuracy_by_a_point_fails(n_more: int, status: str) -> None:
    check = outcome(SOUND, search=with_doubled_effort(n_more))[DEFENDED, "more_steps"]
    assert (check.status, check.value) == (status, pytest.approx(n_more / N))
    assert ("at eps 1" in check.explanation) == (n_more > 0)
    assert check.explanation.startswith("at the operating point fixed sensitivity, twice the steps and restarts break ")


@pytest.mark.parametrize(("n_images", "status"), [(100, "FAIL"), (200, "PASS")])
def test_of_100_images_or_fewer_twice_the_effort_must_break_none(
    n_images: int, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "N", n_images)
    assert outcome(SOUND, search=with_doubled_effort(1))[DEFENDED, "more_steps"].status == status


@pytest.mark.parametrize(("n_more", "status"), [(1, "FAIL"), (7, "FAIL")])
def test_what_scores_alone_break_and_gradients_missed_is_listed(n_more: int, status: str) -> None:
    def masked(records: pd.DataFrame) -> pd.DataFrame:
        found = searched(records)
        of_defence = (found["target"] == "autoencoder") & (found["attack"] == "square")
        held = found[of_defence & (found["minimum_eps"] == 4)].index[:n_more]
        return found.assign(minimum_eps=found["minimum_eps"].mask(found.index.isin(held), 1.0))

    check = outcome(SOUND, search=masked)[DEFENDED, "black_box"]
    assert (check.status, check.value) == (status, pytest.approx(n_more / N))
    assert "at some eps (images 2" in check.explanation
    assert check.explanation.count(",") == n_more - 1


def test_nan_passes_neither_the_comparison_of_logits_nor_that_of_norms() -> None:
    probe = probing("max_logit_difference", float("nan"), 0.1)
    assert outcome(SOUND, probe=probe)[DEFENDED, "outputs"].status == "FAIL"
    assert outcome(SOUND, linf=float("nan"))[DEFENDED, "norm_bound"].status == "FAIL"


def test_without_attacks_that_see_no_gradients_nothing_is_said_of_masking() -> None:
    check = outcome(SOUND, search=minimum_eps_in)[DEFENDED, "black_box"]
    assert (check.status, check.value) == ("WARN", None)


def test_gradients_of_surrogates_are_not_checked_as_those_of_the_target() -> None:
    left_out = {"gradients", "gradient_agreement"}
    before, after = (
        {check.key for check in run_checks(inputs_of(SOUND), NO_LEAKAGE, has_gradients=known)}
        for known in (True, False)
    )
    assert left_out < before
    assert after == before - left_out


def test_each_check_is_documented_with_when_what_and_what_to_do() -> None:
    text = (ROOT / "docs" / "reference" / "checks.md").read_text(encoding="utf-8")
    sections = dict(part.partition("\n")[::2] for part in text.split("\n## ")[1:])
    introduction = ["Effort of the attacks", "Diagnostics", "List of checks"]
    further = ["import_parity", "white_box_access", "subgroups", "leakage"]
    assert list(sections) == [*introduction, *CHECKS, *further]
    for key in (*CHECKS, *further):
        section = sections[key]
        for words in ("- **Raised if**", "- **Meaning:**", "- **Action:**"):
            assert words in section


def test_dependent_images_of_a_group_make_a_difference_not_significant() -> None:
    # PGD leaves 20 images more than FGSM: significant if they are independent, not if they are of one group
    weaker = {("undefended", "adaptive", "pgd"): {1: 0.6, 4: 0.0}}
    assert outcome(SOUND | weaker)[BARE, "pgd_vs_fgsm"].status == "FAIL"
    assert outcome(SOUND | weaker, n_images_per_group=20)[BARE, "pgd_vs_fgsm"].status == "WARN"


def test_a_defence_that_is_not_above_a_constant_predictor_fails() -> None:
    at_chance = {(DEFENDED, "adaptive", attack): {1: 0.5, 4: 0.0} for attack in ATTACKS}
    check = outcome(SOUND | at_chance)[DEFENDED, "constant"]
    assert (check.status, check.value) == ("FAIL", pytest.approx(0))
    assert "that of a constant prediction 50.0 %; the 95 % interval is above it at eps none" in check.explanation


@pytest.mark.parametrize(("n_more", "status"), [(1, "PASS"), (2, "FAIL")])
def test_an_attack_of_art_that_breaks_more_than_one_image_more_fails(n_more: int, status: str) -> None:
    by_art = {(BARE, "adaptive", "art_pgd"): {1: 0.4 - n_more / N, 4: 0.0}}
    check = outcome(SOUND | by_art)[BARE, "art_reference"]
    assert (check.status, check.value) == (status, n_more)
    assert "pgd at eps 1" in check.explanation


def test_black_box_attacks_that_leave_most_of_the_undefended_classifier_have_no_power() -> None:
    def weak(records: pd.DataFrame) -> pd.DataFrame:
        found = searched(records)
        # Square breaks nothing at all
        return found.assign(minimum_eps=found["minimum_eps"].mask(found["attack"] == "square", float("inf")))

    for target in (BARE, DEFENDED):
        check = outcome(SOUND, search=weak)[target, "black_box"]
        assert check.status == "NO POWER"
        assert "where white-box attacks break it: 100.0 % at eps 4. Raise attack.effort" in check.explanation


def test_a_pass_of_black_box_attacks_names_the_eps_at_which_they_have_power() -> None:
    explanation = outcome(SOUND)[DEFENDED, "black_box"].explanation
    # at eps 1, white-box attacks leave 40 % of the undefended classifier's images
    assert explanation.endswith("break it: 0.0 % at eps 4. The pass applies to eps 4 only")


@pytest.mark.parametrize("key", ["pgd_vs_fgsm", "monotone_in_eps", "adaptive_advantage", "constant", "majority_class"])
def test_checks_that_compare_by_group_give_no_verdict_from_four_groups(key: str) -> None:
    found = outcome(SOUND, n_images_per_group=50)
    assert {check.status for (_, name), check in found.items() if name == key} == {"NO POWER"}
