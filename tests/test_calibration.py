from functools import partial

import numpy as np
import pytest

from tasks.statistics.calibration import brier_scores, expected_calibration_error, reliability_curve
from tasks.statistics.groups import GroupJackknife
from tasks.statistics.intervals import RATE, wilson

ONE_RESAMPLE = np.ones((1, 20_000), dtype=np.float32)
"""Counts of one resample that contains each image once."""


def predictions(n: int, overconfidence: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return random confidences in [0.5, 1] and correctness with this probability, minus the overconfidence."""
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, n)
    return confidence, rng.random(n) < confidence - overconfidence


def test_a_calibrated_classifier_has_a_calibration_error_near_0() -> None:
    assert expected_calibration_error(*predictions(20_000), ONE_RESAMPLE)[0] < 0.01


def test_the_calibration_error_equals_the_overconfidence() -> None:
    confidence, correct = predictions(20_000, overconfidence=0.2)
    assert expected_calibration_error(confidence, correct, ONE_RESAMPLE)[0] == pytest.approx(0.2, abs=0.01)
    error = partial(expected_calibration_error, confidence[:500], correct[:500])
    estimate = GroupJackknife(np.arange(500)).estimate(error, RATE)
    assert 0.1 < estimate.low < 0.2 < estimate.high < 0.3


def test_the_calibration_error_weights_each_bin_by_its_number_of_images() -> None:
    # two bins: (0.4, 0.467] with 3 images and gap |1/3 - 0.45|, (0.733, 0.8] with 1 image and gap |1 - 0.8|
    confidence = np.array([0.45, 0.45, 0.45, 0.8])
    correct = np.array([True, False, False, True])
    counts = np.array([[1, 1, 1, 1], [0, 0, 0, 4]], dtype=np.float32)
    expected = [3 / 4 * (0.45 - 1 / 3) + 1 / 4 * 0.2, 0.2]
    assert expected_calibration_error(confidence, correct, counts) == pytest.approx(expected)


def test_the_reliability_curve_equals_hand_computed_values() -> None:
    confidence = np.array([0.95, 0.97, 1.0, 0.62] * 2)
    correct = np.array([True, False, True, True] * 2)
    curve = reliability_curve(confidence, correct, np.arange(8)).set_index("bin")
    assert curve["n"].to_dict() == {bin_: {9: 2, 14: 6}.get(bin_, 0) for bin_ in range(15)}
    assert curve.loc[14, ["confidence", "accuracy"]].tolist() == pytest.approx([(0.95 + 0.97 + 1) / 3, 2 / 3])
    # every image is a group of its own
    assert (curve.loc[14, "low"], curve.loc[14, "high"]) == pytest.approx(tuple(map(float, wilson(4, 6))))
    # two groups are too few
    assert curve.loc[9, ["low", "high"]].isna().all()
    assert curve.loc[0, ["confidence", "accuracy", "low", "high"]].isna().all()


def test_bins_are_closed_on_the_right() -> None:
    curve = reliability_curve(np.array([0.0, 1 / 15, 0.2, 1.0]), np.ones(4, dtype=bool), np.arange(4))
    assert curve.loc[curve["n"] > 0, "bin"].tolist() == [0, 2, 14]


def test_the_reliability_curve_of_a_calibrated_classifier_follows_the_diagonal() -> None:
    curve = reliability_curve(*predictions(20_000), np.arange(20_000)).dropna()
    assert (curve["accuracy"] - curve["confidence"]).abs().max() < 0.04
    assert len(curve) == 8


@pytest.mark.parametrize("wrong", [-0.1, 1.1, np.nan])
def test_confidences_outside_0_to_1_raise_an_error(wrong: float) -> None:
    with pytest.raises(ValueError, match="confidences must lie in"):
        reliability_curve(np.array([0.5, wrong]), np.array([True, True]), np.arange(2))


def test_brier_scores_range_from_0_to_2_and_leave_their_input_unchanged() -> None:
    probabilities = np.array([[1, 0, 0], [0, 1, 0], [0.5, 0.25, 0.25]], dtype=np.float32)
    assert brier_scores(probabilities, np.array([0, 0, 0])).tolist() == [0, 2, 0.375]
    assert probabilities[0, 0] == 1
