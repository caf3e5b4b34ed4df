from collections.abc import Callable

import pandas as pd
import pytest

from tasks.evaluation.checks import Check, run_checks
from tasks.evaluation.robustness import robustness_table
from tests.conftest import smallest_eps_in

N = 200


def searched(records: pd.DataFrame) -> pd.DataFrame:
    """What the sweep finds, and scores alone, which find nothing new."""
    found = smallest_eps_in(records)
    by_scores = found.assign(threat_model="black_box", attack="square", found_by="square")
    return pd.concat([found, by_scores], ignore_index=True)


NO_LEAKAGE = {"near_duplicate_in_train": 0.0, "group_in_train": 0.0}


def outcome(
    accuracies: dict[tuple[str, str, str], dict[float, float]],
    leakage: dict[str, float] = NO_LEAKAGE,
    search: Callable[[pd.DataFrame], pd.DataFrame] = searched,
    **changes: object,
) -> dict[str, Check]:
    """Checks of records in which a share of 200 images is classified correctly at each point; eps 0 is clean."""
    parts = []
    for (target, threat_model, attack), curve in accuracies.items():
        for eps, accuracy in curve.items():
            names = {"target": target, "threat_model": threat_model, "attack": attack, "eps": eps}
            correct = [i < accuracy * N for i in range(N)]
            frame = pd.DataFrame({"image": range(N), "label": 1, "correct": correct, "clean_correct": True})
            parts.append(frame.assign(prediction=frame["correct"].astype(int), success=~frame["correct"], **names))
    records = pd.concat(parts, ignore_index=True).assign(norm="linf", entropy=0, margin=0, l2=0, reconstruction_error=0)
    records["linf"] = records["radius"] = records["eps"] / 255
    records = records.assign(**changes)
    table = robustness_table(records, ["a", "b"], 1)
    return {check.name: check for check in run_checks(records, search(records), table, leakage)}


SOUND = {
    ("undefended", "none", "clean"): {0: 1.0},
    ("autoencoder", "none", "clean"): {0: 1.0},
    ("undefended", "adaptive", "fgsm"): {1: 0.5, 4: 0.2},
    ("undefended", "adaptive", "pgd"): {1: 0.4, 4: 0.0},
    ("autoencoder", "transfer", "fgsm"): {1: 0.8, 4: 0.6},
    ("autoencoder", "transfer", "pgd"): {1: 0.9, 4: 0.7},
    ("autoencoder", "adaptive", "fgsm"): {1: 0.6, 4: 0.3},
    ("autoencoder", "adaptive", "pgd"): {1: 0.5, 4: 0.01},
}
RISE = "robust accuracy does not rise with eps"
PGD = "PGD is at least as strong as FGSM"
LARGEST = "accuracy falls to at most 1 % at the largest eps, adaptive"
STEPS = "more steps and restarts change accuracy by less than 1 point"
MASKED = "attacks without gradients break nothing that white-box attacks missed"
TRANSFER = "transfer is no stronger than adaptive"
BALL = "every adversarial example lies in its ball"
SUCCESS = "success counts only images classified correctly before"
LEAKAGE = "no test image has a relative in training"


def test_a_sound_evaluation_passes_everything() -> None:
    checks = outcome(SOUND)
    assert list(checks) == [RISE, PGD, LARGEST, STEPS, MASKED, TRANSFER, BALL, SUCCESS, LEAKAGE]
    assert {check.status for check in checks.values()} == {"PASS"}


@pytest.mark.parametrize(("accuracy", "status"), [(0.45, "WARN"), (0.7, "FAIL")])
def test_accuracy_that_rises_with_eps_is_reported(accuracy: float, status: str) -> None:
    check = outcome(SOUND | {("undefended", "adaptive", "pgd"): {1: 0.4, 4: accuracy}})[RISE]
    assert check.status == status
    assert check.figure == pytest.approx(accuracy - 0.4)
    assert "undefended/adaptive/pgd at eps 4" in check.explanation


@pytest.mark.parametrize(("accuracy", "status"), [(0.53, "WARN"), (0.65, "FAIL")])
def test_pgd_weaker_than_fgsm_is_reported(accuracy: float, status: str) -> None:
    check = outcome(SOUND | {("undefended", "adaptive", "pgd"): {1: accuracy, 4: 0.0}})[PGD]
    assert check.status == status
    assert check.figure == pytest.approx(accuracy - 0.5)
    assert "undefended at eps 1" in check.explanation


def test_without_both_attacks_the_comparison_is_said_to_be_missing() -> None:
    check = outcome({curve: points for curve, points in SOUND.items() if curve[2] != "fgsm"})[PGD]
    assert (check.status, check.figure) == ("WARN", None)
    assert "not checked" in check.explanation


@pytest.mark.parametrize(("largest", "status"), [(4, "WARN"), (127.5, "FAIL")])
def test_an_attack_that_leaves_accuracy_at_the_largest_eps_is_reported(largest: float, status: str) -> None:
    curves = {curve: dict.fromkeys([0], 1.0) if curve[2] == "clean" else {largest: 0.3} for curve in SOUND}
    check = outcome(curves)[LARGEST]
    assert (check.status, check.figure) == (status, pytest.approx(0.3))


@pytest.mark.parametrize(("accuracy", "status"), [(0.63, "WARN"), (0.8, "FAIL")])
def test_transfer_stronger_than_adaptive_is_reported(accuracy: float, status: str) -> None:
    check = outcome(
        SOUND
        | {
            ("autoencoder", "transfer", "fgsm"): {1: 0.6, 4: 0.6},
            ("autoencoder", "adaptive", "fgsm"): {1: accuracy, 4: 0.3},
        }
    )[TRANSFER]
    assert check.status == status
    assert "autoencoder/fgsm at eps 1" in check.explanation


def test_a_perturbation_outside_its_ball_fails() -> None:
    check = outcome(SOUND, linf=4 / 255 + 1e-5)[BALL]
    assert check.status == "FAIL"
    assert check.figure is not None
    assert check.figure > 1e-6


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("success", lambda records: records["success"] | first_under_fgsm(records)),
        ("clean_correct", lambda records: records["clean_correct"] & ~first_under_fgsm(records)),
    ],
)
def test_success_that_is_counted_otherwise_fails(column: str, value: Callable[[pd.DataFrame], object]) -> None:
    check = outcome(SOUND, **{column: value})[SUCCESS]
    assert (check.status, check.figure) == ("FAIL", 6)


def first_under_fgsm(records: pd.DataFrame) -> object:
    """The first image at the six points of FGSM, where it withstands."""
    return (records["image"] == 0) & (records["attack"] == "fgsm")


def test_test_images_with_relatives_in_training_are_reported() -> None:
    check = outcome(SOUND, leakage={"near_duplicate_in_train": 0.1, "group_in_train": 0.99})[LEAKAGE]
    assert (check.status, check.figure) == ("WARN", 0.99)
    assert (
        "10.0 % of the test images have a near-duplicate in training, 99.0 % an image of their group"
        in check.explanation
    )


@pytest.mark.parametrize(("n_more", "status"), [(1, "PASS"), (2, "FAIL"), (30, "FAIL")])
def test_a_sweep_that_breaks_what_the_attacks_did_not_is_reported(n_more: int, status: str) -> None:
    def more_broken(records: pd.DataFrame) -> pd.DataFrame:
        found = smallest_eps_in(records)
        # under the attacks these hold at eps 1 and break at 4
        held = found[(found["target"] == "autoencoder") & (found["smallest_eps"] == 4)].index[:n_more]
        return found.assign(smallest_eps=found["smallest_eps"].mask(found.index.isin(held), 1.0))

    check = outcome(SOUND, search=more_broken)[STEPS]
    assert check.status == status
    assert check.figure == pytest.approx(n_more / N)
    assert "autoencoder at eps 1" in check.explanation


def test_a_sweep_that_breaks_less_than_pgd_can_not_vouch_for_it() -> None:
    def less_broken(records: pd.DataFrame) -> pd.DataFrame:
        found = smallest_eps_in(records)
        held = found[found["smallest_eps"] == 1].index[:5]
        return found.assign(smallest_eps=found["smallest_eps"].mask(found.index.isin(held), 4.0))

    check = outcome(SOUND, search=less_broken)[STEPS]
    assert check.status == "WARN"
    assert "2.5 points less than PGD" in check.explanation


def test_without_pgd_there_is_nothing_to_hold_the_sweep_against() -> None:
    check = outcome({curve: points for curve, points in SOUND.items() if curve[2] != "pgd"})[STEPS]
    assert (check.status, check.figure) == ("WARN", None)


def test_one_image_of_few_is_a_warning() -> None:
    def one_more_of_fifty(records: pd.DataFrame) -> pd.DataFrame:
        found = smallest_eps_in(records)
        few = found[found["image"] % 4 == 0]
        first = few[few["smallest_eps"] == 4].index[:1]
        return few.assign(smallest_eps=few["smallest_eps"].mask(few.index.isin(first), 1.0))

    assert outcome(SOUND, search=one_more_of_fifty)[STEPS].status == "WARN"


@pytest.mark.parametrize(("n_more", "status"), [(1, "FAIL"), (7, "FAIL")])
def test_what_scores_alone_break_and_gradients_missed_is_listed(n_more: int, status: str) -> None:
    def masked(records: pd.DataFrame) -> pd.DataFrame:
        found = searched(records)
        of_defence = (found["target"] == "autoencoder") & (found["attack"] == "square")
        held = found[of_defence & (found["smallest_eps"] == 4)].index[:n_more]
        return found.assign(smallest_eps=found["smallest_eps"].mask(found.index.isin(held), 1.0))

    check = outcome(SOUND, search=masked)[MASKED]
    assert (check.status, check.figure) == (status, pytest.approx(n_more / N))
    assert "of autoencoder at some eps (images 2" in check.explanation
    assert check.explanation.count(",") == n_more - 1


def test_without_attacks_that_see_no_gradients_nothing_is_said_of_masking() -> None:
    check = outcome(SOUND, search=smallest_eps_in)[MASKED]
    assert (check.status, check.figure) == ("WARN", None)
