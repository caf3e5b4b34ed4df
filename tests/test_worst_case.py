import numpy as np
import pandas as pd
import pytest

from tasks.outcomes.worst_case import worst_case_outcomes
from tasks.records.operating_points import OperatingPoint
from tests.plausible_attack import minimum_eps_in
from tests.test_robustness import LABELS, records_of

AS_TRAINED = OperatingPoint("as_trained", (0.0, 0.0))
ALL_CORRECT = LABELS
FIRST_WRONG = [0, 1, 1, 1, 0, 0, 0, 0]
EPS = [1.0, 2.0, 4.0]


def records(*points: tuple[str, str, float, list[int]], target: str = "strong") -> pd.DataFrame:
    """Records of eight images that are all correct unchanged, with these predictions at these points."""
    clean = records_of((target, "none", "clean", 0.0), LABELS, LABELS, LABELS)
    attacked = [records_of((target, *point), LABELS, LABELS, predictions) for *point, predictions in points]
    return pd.concat([clean, *attacked], ignore_index=True)


def nothing_found(of: pd.DataFrame) -> pd.DataFrame:
    """A sweep that breaks no image."""
    return minimum_eps_in(of).assign(minimum_eps=np.inf, minimum_eps_8bit=np.inf)


def accuracy(of: pd.DataFrame, searches: pd.DataFrame, point: OperatingPoint = AS_TRAINED) -> dict[str, list[float]]:
    """Worst-case accuracy at eps 1, 2 and 4 by threat model."""
    worst = worst_case_outcomes(of, searches, {"strong": [AS_TRAINED, point]})
    outcomes = worst[(worst["operating_point"] == point.name) & worst["eps"].isin(EPS)]
    by_eps = outcomes.groupby(["threat_model", "eps"])["robust_correct"].mean().unstack()
    return {str(threat_model): row.tolist() for threat_model, row in by_eps.iterrows()}


def breaking_eps(worst: pd.DataFrame, threat_model: str) -> dict[int, float]:
    """The smallest eps that breaks each image under a threat model; infinite where none does."""
    rows = worst[worst["threat_model"] == threat_model]
    return rows.assign(at=rows["eps"].where(rows["robust_correct"] == 0, np.inf)).groupby("image")["at"].min().to_dict()


def test_an_image_that_pgd_breaks_at_a_small_eps_alone_stays_broken_at_larger_eps() -> None:
    of = records(
        ("adaptive", "pgd", 1.0, FIRST_WRONG),
        ("adaptive", "pgd", 2.0, ALL_CORRECT),
        ("adaptive", "pgd", 4.0, ALL_CORRECT),
    )
    assert accuracy(of, nothing_found(of)) == {"adaptive": [7 / 8] * 3}


def test_an_image_that_transfer_alone_breaks_is_broken_for_an_adaptive_attacker() -> None:
    of = records(
        *(("adaptive", "pgd", eps, ALL_CORRECT) for eps in EPS),
        *(("transfer", "pgd", eps, FIRST_WRONG if eps == 2 else ALL_CORRECT) for eps in EPS),
    )
    expected = [1, 7 / 8, 7 / 8]
    assert accuracy(of, nothing_found(of)) == {"adaptive": expected, "transfer": expected}


def from_independent_surrogate(target: str = "strong") -> pd.DataFrame:
    """Records of a target that adaptive PGD never breaks; transfer from an independent surrogate does at eps 2."""
    of = records(*(("adaptive", "pgd", eps, ALL_CORRECT) for eps in EPS), target=target)
    points = [(eps, FIRST_WRONG if eps == 2 else ALL_CORRECT) for eps in EPS]
    parts = [
        records_of((target, "transfer", "pgd", eps), LABELS, LABELS, predictions, surrogate="cnn-2")
        for eps, predictions in points
    ]
    return pd.concat([of, *parts], ignore_index=True)


@pytest.mark.parametrize("target", ["strong", "undefended"])
def test_an_image_that_transfer_from_an_independent_surrogate_alone_breaks_is_broken_for_an_adaptive_attacker(
    target: str,
) -> None:
    of = from_independent_surrogate(target)
    worst = worst_case_outcomes(of, nothing_found(of), {target: [AS_TRAINED]})
    for threat_model in ("adaptive", "transfer"):
        assert breaking_eps(worst, threat_model) == {0: 2.0} | dict.fromkeys(range(1, 8), np.inf)


def test_the_study_transfers_from_the_undefended_classifier_alone() -> None:
    of = from_independent_surrogate()
    from_undefended = records(("transfer", "pgd", 4.0, FIRST_WRONG)).iloc[len(LABELS) :]
    both = pd.concat([of, from_undefended], ignore_index=True)
    worst = worst_case_outcomes(both, nothing_found(of), {"strong": [AS_TRAINED]}, transfer_from_independent=False)
    # the adaptive attacker uses the independent surrogate, too
    assert [breaking_eps(worst, threat_model)[0] for threat_model in ("adaptive", "transfer")] == [2.0, 4.0]
    # without attacks from the undefended classifier, nothing was transferred
    alone = worst_case_outcomes(of, nothing_found(of), {"strong": [AS_TRAINED]}, transfer_from_independent=False)
    assert set(alone["threat_model"]) == {"adaptive"}


def test_an_image_that_square_alone_breaks_is_broken_for_an_adaptive_attacker_and_not_for_transfer() -> None:
    of = records(
        *(("adaptive", "pgd", eps, ALL_CORRECT) for eps in EPS), *(("transfer", "pgd", eps, ALL_CORRECT) for eps in EPS)
    )
    sweep = nothing_found(of)
    square = sweep.assign(threat_model="black_box", attack="square", minimum_eps=[4.0] + [np.inf] * 7)
    expected = [1, 1, 7 / 8]
    assert accuracy(of, pd.concat([sweep, square])) == {
        "adaptive": expected,
        "black_box": expected,
        "transfer": [1] * 3,
    }


def test_black_box_attacks_on_a_part_of_the_images_are_a_threat_model_on_that_part() -> None:
    of = records(*(("adaptive", "pgd", eps, ALL_CORRECT) for eps in EPS))
    sweep = nothing_found(of)
    square = sweep.assign(threat_model="black_box", attack="square", minimum_eps=[1.0] + [np.inf] * 7)[:4]
    assert accuracy(of, pd.concat([sweep, square])) == {"adaptive": [7 / 8] * 3, "black_box": [3 / 4] * 3}


def test_an_image_that_is_misclassified_unchanged_is_never_robust() -> None:
    clean = records_of(("strong", "none", "clean", 0.0), LABELS, FIRST_WRONG, FIRST_WRONG)
    # the attack corrects the wrong prediction
    attacked = [records_of(("strong", "adaptive", "pgd", eps), LABELS, FIRST_WRONG, ALL_CORRECT) for eps in EPS]
    of = pd.concat([clean, *attacked], ignore_index=True)
    assert accuracy(of, nothing_found(of)) == {"adaptive": [7 / 8] * 3}


def test_accuracy_never_rises_with_eps() -> None:
    rng = np.random.default_rng(0)
    of = records(
        *(
            (threat_model, attack, eps, rng.integers(2, size=8).tolist())
            for threat_model, attack in (("adaptive", "pgd"), ("adaptive", "fgsm"), ("transfer", "pgd"))
            for eps in EPS
        )
    )
    for curve in accuracy(of, minimum_eps_in(of)).values():
        assert curve == sorted(curve, reverse=True)


def test_records_count_at_another_operating_point_by_their_shifted_logits() -> None:
    # the logits are one-hot, so a bias of 2 moves all images to class 0
    moved = OperatingPoint("recalibrated", (2.0, 0.0))
    of = records(*(("adaptive", "pgd", eps, ALL_CORRECT) for eps in EPS))
    searches = pd.concat([nothing_found(of), nothing_found(of).assign(operating_point="recalibrated")])
    assert accuracy(of, searches) == {"adaptive": [1] * 3}
    assert accuracy(of, searches, moved) == {"adaptive": [1 / 2] * 3}


def test_a_search_counts_at_its_own_operating_point_alone() -> None:
    of = records(*(("adaptive", "pgd", eps, ALL_CORRECT) for eps in EPS))
    broken = nothing_found(of).assign(operating_point="recalibrated", minimum_eps=2.0)
    searches = pd.concat([nothing_found(of), broken])
    same = OperatingPoint("recalibrated", (0.0, 0.0))
    assert accuracy(of, searches) == {"adaptive": [1] * 3}
    assert accuracy(of, searches, same) == {"adaptive": pytest.approx([1, 0, 0])}


def test_a_rounded_image_counts_from_the_eps_whose_ball_contains_it_at_every_point_of_the_same_classifier() -> None:
    # PGD at eps 0.5 fails, but its images rounded to 8 bits differ by one level and succeed on image 0
    of = records(*(("adaptive", "pgd", eps, ALL_CORRECT) for eps in (0.5, 1.0)))
    of = of.assign(norm="linf", correct_8bit=of["correct"] & ~((of["eps"] == 0.5) & (of["image"] == 0)))
    same = OperatingPoint("recalibrated", (0.0, 0.0))
    worst = worst_case_outcomes(of, nothing_found(of), {"strong": [AS_TRAINED, same]})
    by_point = worst.groupby(["operating_point", "eps"])["robust_correct_8bit"].mean().unstack()
    assert by_point.columns.tolist() == [0.0, 0.5, 1.0]
    assert by_point.to_numpy().tolist() == [[1, 1, 7 / 8]] * 2
    searched = nothing_found(of).assign(minimum_eps_8bit=[0.5, *[np.inf] * 7])
    worst = worst_case_outcomes(of.assign(correct_8bit=of["correct"]), searched, {"strong": [AS_TRAINED]})
    assert worst.groupby("eps")["robust_correct_8bit"].mean().tolist() == [1, 1, 7 / 8]
