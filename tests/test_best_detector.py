"""The best detector: chosen on some groups and evaluated on others."""

import numpy as np
import pandas as pd
import pytest

from tasks.analysis.best_detector import best_auroc, best_detector_table, choose_on_other_folds, rate_of_chosen
from tasks.statistics.groups import GroupJackknife
from tests.simulations.coverage import best_detector_cell, detector_auroc_cell


def scores_of(scores: dict[str, np.ndarray], attack: str = "pgd", n_per_group: int = 2) -> pd.DataFrame:
    """Scores of attacked images by detector; clean images have the score 0, the threshold is 1, all attacks succeed."""
    parts = []
    for name, values in scores.items():
        images = np.arange(len(values))
        columns = {"image": images, "label": images % 2, "group": images // n_per_group, "clean_score": 0.0}
        outcomes = {"clean_correct": True, "success": True, "score": values, "flagged": values > 1}
        key = {"detector": name, "surrogate": "undefended", "attack": attack, "eps": 1.0}
        parts.append(pd.DataFrame(key | columns | outcomes | {"clean_flagged": False}, index=images))
    return pd.concat(parts, ignore_index=True)


def test_a_detector_that_is_best_on_every_fold_has_its_own_rates() -> None:
    good, bad = np.tile([2.0, 2.0, 2.0, 0.5], 20), np.tile([0.5, 0.5, 0.5, 2.0], 20)
    (row,) = best_detector_table(scores_of({"bad": bad, "good": good}), "pgd", 0).to_dict("records")
    assert (row["detector"], row["chosen_detector"], row["n_detectors"]) == ("best detector", "good", 2)
    assert (row["detection_rate"], row["detection_rate_successful"]) == (0.75, 0.75)
    assert row["undetected_success_rate"] == 0.25
    assert row["detection_rate_low"] < 0.75 < row["detection_rate_high"]
    assert (row["n"], row["n_groups"], row["n_successful"], row["false_positive_rate"]) == (80, 40, 80, 0)


def test_the_images_of_a_fold_do_not_choose_their_detector() -> None:
    """Each detector flags one fold alone; it is best overall, but no other image chooses it for this fold."""
    n_flagged, n_images = 4 * np.eye(5)[None], np.full((1, 5, 5), 4.0)
    chosen = choose_on_other_folds(n_flagged, n_images)
    assert (chosen != np.arange(5)).all()
    assert rate_of_chosen(n_flagged, n_images, chosen).tolist() == [0]


def test_each_attack_has_its_row_and_the_joint_attack_is_the_adaptive_attack_on_the_combination() -> None:
    none, all_images = np.full(40, 0.5), np.full(40, 2.0)
    scores = pd.concat(
        [
            scores_of({"entropy": all_images, "all detectors": all_images}),
            scores_of({"entropy": none}, "detector_evasion"),
            scores_of({"entropy": all_images, "all detectors": none}, "joint_detector_evasion"),
        ]
    )
    table = best_detector_table(scores, "pgd", 0).set_index("attack")
    assert table["detection_rate"].to_dict() == {"pgd": 1, "detector_evasion": 0, "joint_detector_evasion": 1}
    assert table.loc["detector_evasion", "n_detectors"] == 2


def test_the_auroc_uses_the_better_sign_of_a_score_and_is_near_chance_for_noise() -> None:
    rng = np.random.default_rng(0)
    in_fold, jackknife = np.arange(60) % 5 == np.arange(5)[:, None], GroupJackknife(np.arange(60))
    low = rng.normal(size=(1, 60)), rng.normal(-1.5, size=(1, 60))
    found = best_auroc(*low, np.ones((1, 60), dtype=bool), in_fold, jackknife, with_low_scores=True)
    assert found[0] == pytest.approx(0.86, abs=0.06)
    high_only = best_auroc(*low, np.ones((1, 60), dtype=bool), in_fold, jackknife, with_low_scores=False)
    assert high_only[0] == pytest.approx(1 - found[0])
    # the best of eight noise scores on the same images is clearly above 0.5
    success = np.ones((8, 60), dtype=bool)
    values = [
        best_auroc(rng.normal(size=(8, 60)), rng.normal(size=(8, 60)), success, in_fold, jackknife, True)[0]
        for _ in range(40)
    ]
    assert np.mean(values) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("n_groups", [12, 40])
def test_the_rate_of_the_best_of_tied_detectors_is_covered(n_groups: int) -> None:
    found = best_detector_cell(np.random.default_rng(0), 300, n_groups, 0.3, 0.5)
    # a standard error below 93 %
    assert found["coverage"] >= 91.5
    # chosen and evaluated on the same images, the rate is too high
    assert found["bias_same_images"] > 5 > 2 > abs(found["bias"])


def test_a_low_score_means_adversarial_only_for_attacks_that_ignore_detectors() -> None:
    """An adaptive attack that lowers a score below that of clean images did not attack a detector of low scores."""
    low = {"entropy": np.full(40, -1.0)}
    table = best_detector_table(pd.concat([scores_of(low), scores_of(low, "detector_evasion")]), "pgd", 0)
    assert table.set_index("attack")["auroc_successful"].to_dict() == {"pgd": 1, "detector_evasion": 0}


def test_detectors_without_a_score_are_not_chosen() -> None:
    scores = scores_of({"undefined": np.full(40, np.nan), "good": np.full(40, 2.0)})
    (row,) = best_detector_table(scores, "pgd", 0).to_dict("records")
    assert (row["n_detectors"], row["chosen_detector"]) == (1, "good")
    (row,) = best_detector_table(scores[scores["detector"] == "undefined"], "pgd", 0).to_dict("records")
    assert row["n_detectors"] == 0


def test_there_is_no_auroc_from_too_few_groups_that_share_a_fold() -> None:
    """As in a run on scans: seven images in seven groups, in folds of 1, 2, 1, 2 and 1."""
    scores = scores_of({"good": np.full(7, 2.0), "other": np.arange(7.0)}, n_per_group=1)
    (row,) = best_detector_table(scores, "pgd", 0).to_dict("records")
    assert (row["n_successful"], row["n_groups_successful"]) == (7, 7)
    assert (row["n_auroc"], row["n_groups_auroc"]) == (4, 4)
    assert np.isnan(row["auroc_successful"])
    scores = scores_of({"good": np.full(10, 2.0), "other": np.arange(10.0)}, n_per_group=1)
    (row,) = best_detector_table(scores, "pgd", 0).to_dict("records")
    assert (row["n_auroc"], row["n_groups_auroc"]) == (10, 10)
    assert row["auroc_successful"] == 1


def test_images_of_one_group_in_a_fold_give_no_pairs() -> None:
    """Five groups of ten images: the AUROC would order slices of one patient among themselves."""
    (row,) = best_detector_table(scores_of({"good": np.full(50, 2.0)}, n_per_group=10), "pgd", 0).to_dict("records")
    assert (row["n_auroc"], row["n_groups_auroc"]) == (0, 0)
    assert np.isnan(row["auroc_successful"])


def test_both_attacks_are_compared_on_the_images_of_the_adaptive_attack() -> None:
    all_images = scores_of({"entropy": np.where(np.arange(80) < 40, 2.0, 0.5)})
    part = scores_of({"entropy": np.full(40, 0.5)}, "detector_evasion")
    part["success"] = part["image"] >= 10
    table = best_detector_table(pd.concat([all_images, part]), "pgd", 0).set_index("attack")
    row = table.loc["detector_evasion"]
    assert table.loc["pgd", "detection_rate_successful"] == 0.5
    assert (row["n"], row["n_successful"], row["detection_rate_successful"]) == (40, 30, 0)
    # without the 40 images on which it is not detected
    assert (row["ignoring_n_successful"], row["ignoring_detection_rate_successful"]) == (40, 1)
    assert row["ignoring_detection_rate_successful_low"] > 0.8
    assert np.isnan(table.loc["pgd", "ignoring_n_successful"])


@pytest.mark.parametrize("n_wrong", [0, 1])
def test_a_perfect_or_almost_perfect_detector_beside_a_useless_one_has_a_narrow_interval(n_wrong: int) -> None:
    rng = np.random.default_rng(0)
    perfect = np.where(np.arange(88) < n_wrong, -1.0, 2.0)
    scores = scores_of({"useless": rng.normal(size=88), "perfect": perfect, "almost": np.tile([2.0, 2, 2, -1], 22)})
    (row,) = best_detector_table(scores, "pgd", 0).to_dict("records")
    assert row["chosen_detector"] == "perfect"
    for name in ("auroc_successful", "detection_rate"):
        assert row[name] > 0.98
        assert row[f"{name}_low"] > 0.8, name


@pytest.mark.parametrize(("auroc", "others"), [(0.9, 0.7), (0.995, 0.98), (1.0, 0.5)])
def test_the_auroc_of_the_best_of_unequal_detectors_is_covered(auroc: float, others: float) -> None:
    found = detector_auroc_cell(np.random.default_rng(0), 100, 50, 0.3, auroc, others)
    assert found["coverage"] >= 90
    assert found["width"] < 40
