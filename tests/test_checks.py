from collections.abc import Callable

import pandas as pd
import pytest

from tasks.evaluation.checks import CHECKS, Check, Evidence, run_checks
from tasks.evaluation.comparison import withstood
from tasks.evaluation.robustness import robustness_table
from tests.conftest import ROOT
from tests.plausible_attack import probes_in, smallest_eps_in

N = 200


def searched(records: pd.DataFrame) -> pd.DataFrame:
    """What the sweep finds, and scores alone, which find nothing new."""
    found = smallest_eps_in(records)
    by_scores = found.assign(threat_model="black_box", attack="square", found_by="square")
    return pd.concat([found, by_scores], ignore_index=True)


NO_LEAKAGE = {"near_duplicate_in_train": 0.0, "group_in_train": 0.0}
Found = dict[tuple[str | None, str], Check]


def outcome(
    accuracies: dict[tuple[str, str, str], dict[float, float]],
    leakage: dict[str, float] = NO_LEAKAGE,
    search: Callable[[pd.DataFrame], pd.DataFrame] = searched,
    probe: Callable[[pd.DataFrame], pd.DataFrame] = probes_in,
    n_looks: int = 1,
    **changes: object,
) -> Found:
    """Checks, by target and key, of records in which a share of 200 images is classified correctly at each point.

    eps 0 is clean.
    """
    parts = []
    for (target, threat_model, attack), curve in accuracies.items():
        for eps, accuracy in curve.items():
            names = {"target": target, "threat_model": threat_model, "attack": attack, "eps": eps}
            correct = [i < accuracy * N for i in range(N)]
            labels = [i % 2 for i in range(N)]
            frame = pd.DataFrame({"image": range(N), "label": labels, "correct": correct, "clean_correct": True})
            prediction = frame["label"].where(frame["correct"], 1 - frame["label"])
            parts.append(frame.assign(prediction=prediction, success=~frame["correct"], **names))
    records = pd.concat(parts, ignore_index=True).assign(norm="linf", entropy=0, margin=0, l2=0, reconstruction_error=0)
    records["linf"] = records["radius"] = records["eps"] / 255
    # rounding undoes what is smaller than half a level
    records["correct_8bit"] = records["correct"] | (records["eps"] < 0.5)
    records = records.assign(**changes)
    smallest = search(records)
    tables = {"records": records, "smallest": smallest, "probes": probe(records)}
    tables |= {"table": robustness_table(records, ["a", "b"], 1), "withstood": withstood(records, smallest)}
    evidence = [
        Evidence(
            name=name,
            is_control=name == "undefended",
            n_looks=n_looks,
            bare_withstood=tables["withstood"][tables["withstood"]["target"] == "undefended"],
            **{key: of_all[of_all["target"] == name] for key, of_all in tables.items()},
        )
        for name in ("undefended", "autoencoder")
    ]
    return {(check.target, check.key): check for check in run_checks(evidence, leakage)}


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
BARE, DEFENDED = "undefended", "autoencoder"


def probing(probe: str, value: float, share: float = 1.0) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Sound probes, but that one finds this value on a share of the images."""

    def probed(records: pd.DataFrame) -> pd.DataFrame:
        found = probes_in(records)
        return found.assign(value=found["value"].mask((found["probe"] == probe) & (found["image"] < share * N), value))

    return probed


def test_a_sound_evaluation_passes_everything() -> None:
    checks = outcome(SOUND)
    assert list(checks) == [
        *((BARE, key) for key in CHECKS if key not in {"transfer", "knowledge"}),
        *((DEFENDED, key) for key in CHECKS if key != "control"),
        (None, "leakage"),
    ]
    assert {check.status for check in checks.values()} == {"PASS"}
    assert all(check.figure is not None for check in checks.values())


def test_a_predictor_that_names_one_class_is_reported_however_robust_it_is() -> None:
    constant = {curve: dict.fromkeys(points, 1.0) for curve, points in SOUND.items() if curve[0] == DEFENDED}
    check = outcome(SOUND | constant, prediction=0, correct=lambda records: records["label"] == 0)[DEFENDED, "constant"]
    assert (check.status, check.figure) == ("FAIL", 0)
    assert "50.0 % of the clean test images are right" in check.explanation
    assert "all of them get one class" in check.explanation


@pytest.mark.parametrize(("share", "status"), [(0.5, "WARN"), (0.55, "WARN"), (0.6, "PASS")])
def test_a_predictor_that_may_as_well_guess_is_reported(share: float, status: str) -> None:
    right = {"clean_correct": lambda records: records["image"] < share * N}
    check = outcome(SOUND | {(DEFENDED, "none", "clean"): {0: share}}, **right)[DEFENDED, "constant"]
    assert (check.status, check.figure) == (status, pytest.approx(share - 0.5, abs=0.01))


@pytest.mark.parametrize(("accuracy", "status"), [(0.45, "WARN"), (0.7, "FAIL")])
def test_accuracy_that_rises_with_eps_is_reported(accuracy: float, status: str) -> None:
    check = outcome(SOUND | {("undefended", "adaptive", "pgd"): {1: 0.4, 4: accuracy}})[BARE, "monotone"]
    assert check.status == status
    assert check.figure == pytest.approx(accuracy - 0.4)
    assert "adaptive/pgd at eps 4" in check.explanation


@pytest.mark.parametrize(("accuracy", "status"), [(0.53, "WARN"), (0.65, "FAIL")])
def test_pgd_weaker_than_fgsm_is_reported(accuracy: float, status: str) -> None:
    check = outcome(SOUND | {("undefended", "adaptive", "pgd"): {1: accuracy, 4: 0.0}})[BARE, "pgd"]
    assert check.status == status
    assert check.figure == pytest.approx(accuracy - 0.5)
    assert "at eps 1" in check.explanation


def test_without_both_attacks_the_comparison_is_said_to_be_missing() -> None:
    check = outcome({curve: points for curve, points in SOUND.items() if curve[2] != "fgsm"})[BARE, "pgd"]
    assert (check.status, check.figure) == ("WARN", None)
    assert "not checked" in check.explanation


@pytest.mark.parametrize(("largest", "status"), [(4, "WARN"), (8, "FAIL")])
def test_a_bare_classifier_that_does_not_fall_is_reported(largest: float, status: str) -> None:
    curves = {curve: dict.fromkeys([0], 1.0) if curve[2] == "clean" else {largest: 0.3} for curve in SOUND}
    check = outcome(curves)[BARE, "control"]
    assert (check.status, check.figure) == (status, pytest.approx(0.3))


def test_a_broken_defence_that_does_not_fall_is_reported() -> None:
    curves = {curve: {8 if eps == 4 else eps: accuracy for eps, accuracy in of.items()} for curve, of in SOUND.items()}
    assert outcome(curves)[BARE, "control"].status == "PASS"
    check = outcome(curves, probe=probing("broken_defence", 1, share=0.25))[BARE, "control"]
    assert (check.status, check.figure) == ("FAIL", 0.25)
    assert "a defence known to be broken, 25.0 %" in check.explanation


@pytest.mark.parametrize(("share", "status"), [(0.01, "PASS"), (0.02, "FAIL")])
def test_what_withstands_a_huge_perturbation_is_reported(share: float, status: str) -> None:
    check = outcome(SOUND, probe=probing("huge", 1, share))[DEFENDED, "huge_eps"]
    assert (check.status, check.figure) == (status, pytest.approx(share))


@pytest.mark.parametrize(("hurt", "status"), [(0.5, "PASS"), (0.51, "WARN"), (0.6, "FAIL")])
def test_noise_that_hurts_more_than_attacks_is_reported(hurt: float, status: str) -> None:
    # of the images 50 % are right under PGD at eps 1
    check = outcome(SOUND, probe=probing("noise", 0, hurt))[DEFENDED, "noise"]
    assert check.status == status
    assert check.figure == pytest.approx(hurt - 0.5)


@pytest.mark.parametrize(("share", "status"), [(0, "PASS"), (0.01, "WARN"), (0.02, "FAIL")])
def test_images_without_a_gradient_are_reported(share: float, status: str) -> None:
    check = outcome(SOUND, probe=probing("zero_gradient", 1, share))[DEFENDED, "gradients"]
    assert (check.status, check.figure) == (status, pytest.approx(share))


def test_gradients_that_are_not_finite_fail() -> None:
    check = outcome(SOUND, probe=probing("finite_gradient", 0, 0.005))[DEFENDED, "gradients"]
    assert (check.status, check.figure) == ("FAIL", pytest.approx(0.005))


def test_probabilities_in_place_of_logits_fail() -> None:
    check = outcome(SOUND, probe=probing("probabilities", 1))[DEFENDED, "outputs"]
    assert check.status == "FAIL"
    assert "not logits" in check.explanation
    # some images may have logits that look like probabilities
    assert outcome(SOUND, probe=probing("probabilities", 1, 0.5))[DEFENDED, "outputs"].status == "PASS"


@pytest.mark.parametrize(("spread", "n_looks", "status"), [(1e-5, 1, "PASS"), (0.5, 1, "FAIL"), (0.5, 8, "PASS")])
def test_random_outputs_fail_where_attacks_look_once(spread: float, n_looks: int, status: str) -> None:
    check = outcome(SOUND, probe=probing("spread", spread, 0.1), n_looks=n_looks)[DEFENDED, "outputs"]
    assert (check.status, check.figure) == (status, spread)


@pytest.mark.parametrize(("share", "status"), [(0.01, "PASS"), (0.02, "WARN")])
def test_predictions_that_change_from_look_to_look_are_reported(share: float, status: str) -> None:
    def probed(records: pd.DataFrame) -> pd.DataFrame:
        found = probing("spread", 0.5)(records)
        return found.assign(value=found["value"].mask((found["probe"] == "steady") & (found["image"] < share * N), 0))

    check = outcome(SOUND, probe=probed, n_looks=8)[DEFENDED, "outputs"]
    assert check.status == status
    assert f"{100 * share:.1f} % of the predictions change" in check.explanation


def test_what_pgd_alone_broke_is_nothing_new_to_scores() -> None:
    def late(records: pd.DataFrame) -> pd.DataFrame:
        found = searched(records)
        # the sweep missed at eps 1 what PGD and Square break there
        first = found[
            (found["target"] == DEFENDED) & (found["attack"] == "sweep") & (found["smallest_eps"] == 1)
        ].index[:1]
        return found.assign(smallest_eps=found["smallest_eps"].mask(found.index.isin(first), 4.0))

    assert outcome(SOUND, search=late)[DEFENDED, "black_box"].status == "PASS"


def test_the_share_that_a_png_keeps_is_told() -> None:
    curves = {
        curve: {0.25 if eps == 1 else eps: accuracy for eps, accuracy in of.items()} for curve, of in SOUND.items()
    }
    explanation = outcome(curves)[BARE, "ball"].explanation
    assert "which is what a PNG keeps: 0 % at eps 0.25, 100 % at eps 4" in explanation


@pytest.mark.parametrize(("accuracy", "status"), [(0.63, "WARN"), (0.8, "FAIL")])
def test_transfer_stronger_than_adaptive_is_reported(accuracy: float, status: str) -> None:
    check = outcome(
        SOUND
        | {
            ("autoencoder", "transfer", "fgsm"): {1: 0.6, 4: 0.6},
            ("autoencoder", "adaptive", "fgsm"): {1: accuracy, 4: 0.3},
        }
    )[DEFENDED, "transfer"]
    assert check.status == status
    assert "fgsm at eps 1" in check.explanation


@pytest.mark.parametrize(("accuracy", "status", "taken"), [(0.575, "WARN", 2.5), (0.5, "PASS", 10.0)])
def test_a_defence_that_seems_to_help_even_against_who_knows_it_is_reported(
    accuracy: float, status: str, taken: float
) -> None:
    known = {("autoencoder", "adaptive", attack): {1: 0.7, 4: accuracy} for attack in ("fgsm", "pgd")}
    check = outcome(SOUND | known)[DEFENDED, "knowledge"]
    assert (check.status, check.figure) == (status, pytest.approx(taken / 100))
    assert check.explanation.startswith("at eps 4, where it helps most against who does not know it")
    assert f"from 0.0 to 60.0 %; who knows it takes {taken} points" in check.explanation


def test_who_knows_a_defence_and_does_worse_is_told_so() -> None:
    known = {("autoencoder", "adaptive", attack): {1: 0.9, 4: 0.8} for attack in ("fgsm", "pgd")}
    check = outcome(SOUND | known)[DEFENDED, "knowledge"]
    assert (check.status, check.figure) == ("WARN", pytest.approx(-0.2))
    assert check.explanation.endswith("from 0.0 to 60.0 %; who knows it does worse by 20.0 points")


def test_a_defence_that_helps_nobody_need_not_fear_who_knows_it() -> None:
    useless = {("autoencoder", threat, "pgd"): {1: 0.4, 4: 0.0} for threat in ("adaptive", "transfer")}
    check = outcome(SOUND | useless)[DEFENDED, "knowledge"]
    assert (check.status, check.figure) == ("PASS", 0)
    assert "nobody is kept off" in check.explanation


def test_a_perturbation_outside_its_ball_fails() -> None:
    check = outcome(SOUND, linf=lambda records: records["eps"] / 255 + 2e-6)[DEFENDED, "ball"]
    assert check.status == "FAIL"
    assert check.figure == pytest.approx(2e-6, rel=1e-3)
    assert outcome(SOUND, linf=lambda records: records["eps"] / 255 + 5e-7)[DEFENDED, "ball"].status == "PASS"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("success", lambda records: records["success"] | first_under_fgsm(records)),
        ("clean_correct", lambda records: records["clean_correct"] & ~first_under_fgsm(records)),
    ],
)
def test_success_that_is_counted_otherwise_fails(column: str, value: Callable[[pd.DataFrame], object]) -> None:
    check = outcome(SOUND, **{column: value})[DEFENDED, "success"]
    assert (check.status, check.figure) == ("FAIL", 4)


def first_under_fgsm(records: pd.DataFrame) -> object:
    """The first image at the points of FGSM, where it withstands: four of them on the defended classifier."""
    return (records["image"] == 0) & (records["attack"] == "fgsm")


def test_test_images_with_relatives_in_training_are_reported() -> None:
    check = outcome(SOUND, leakage={"near_duplicate_in_train": 0.1, "group_in_train": 0.99})[None, "leakage"]
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

    check = outcome(SOUND, search=more_broken)[DEFENDED, "more_steps"]
    assert check.status == status
    assert check.figure == pytest.approx(n_more / N)
    assert "at eps 1" in check.explanation


def test_a_sweep_that_breaks_less_than_pgd_can_not_vouch_for_it() -> None:
    def less_broken(records: pd.DataFrame) -> pd.DataFrame:
        found = smallest_eps_in(records)
        held = found[found["smallest_eps"] == 1].index[:5]
        return found.assign(smallest_eps=found["smallest_eps"].mask(found.index.isin(held), 4.0))

    check = outcome(SOUND, search=less_broken)[BARE, "more_steps"]
    assert check.status == "WARN"
    assert "2.5 points less than PGD" in check.explanation


def test_without_pgd_there_is_nothing_to_hold_the_sweep_against() -> None:
    check = outcome({curve: points for curve, points in SOUND.items() if curve[2] != "pgd"})[DEFENDED, "more_steps"]
    assert (check.status, check.figure) == ("WARN", None)


def test_one_image_of_few_is_a_warning() -> None:
    def one_more_of_fifty(records: pd.DataFrame) -> pd.DataFrame:
        found = smallest_eps_in(records)
        few = found[found["image"] % 4 == 0]
        first = few[few["smallest_eps"] == 4].index[:1]
        return few.assign(smallest_eps=few["smallest_eps"].mask(few.index.isin(first), 1.0))

    assert outcome(SOUND, search=one_more_of_fifty)[BARE, "more_steps"].status == "WARN"


@pytest.mark.parametrize(("n_more", "status"), [(1, "FAIL"), (7, "FAIL")])
def test_what_scores_alone_break_and_gradients_missed_is_listed(n_more: int, status: str) -> None:
    def masked(records: pd.DataFrame) -> pd.DataFrame:
        found = searched(records)
        of_defence = (found["target"] == "autoencoder") & (found["attack"] == "square")
        held = found[of_defence & (found["smallest_eps"] == 4)].index[:n_more]
        return found.assign(smallest_eps=found["smallest_eps"].mask(found.index.isin(held), 1.0))

    check = outcome(SOUND, search=masked)[DEFENDED, "black_box"]
    assert (check.status, check.figure) == (status, pytest.approx(n_more / N))
    assert "at some eps (images 2" in check.explanation
    assert check.explanation.count(",") == n_more - 1


def test_without_attacks_that_see_no_gradients_nothing_is_said_of_masking() -> None:
    check = outcome(SOUND, search=smallest_eps_in)[DEFENDED, "black_box"]
    assert (check.status, check.figure) == ("WARN", None)


def test_each_check_is_documented_with_when_what_and_what_to_do() -> None:
    text = (ROOT / "docs" / "checks.md").read_text(encoding="utf-8")
    sections = dict(part.partition("\n")[::2] for part in text.split("\n## ")[1:])
    assert list(sections) == [*CHECKS, "leakage"]
    for section in sections.values():
        for words in ("- **Raised if**", "- **It means**", "- **What to do:**"):
            assert words in section
