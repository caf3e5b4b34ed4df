"""Oracles: true labels, labels with errors at a known rate, and pseudo-labels."""

import numpy as np
import pytest

from tasks.labelling.oracle import assign_labels, can_label
from tasks.params import GroundTruth, NoisyOracle, PseudoLabelOracle

CLASSES = ("a", "b", "c")
ROWS = np.arange(3000)
LABELS: np.ndarray = ROWS % 3
WRONG = (LABELS + 1) % 3


def test_the_ground_truth_oracle_assigns_the_true_labels() -> None:
    assert (assign_labels(GroundTruth(kind="ground_truth"), ROWS, LABELS, WRONG, CLASSES, 0) == LABELS).all()


def test_a_noisy_oracle_has_the_error_rate_of_each_class_and_errs_equally_towards_the_others() -> None:
    oracle = NoisyOracle(kind="noisy", error_rate={"a": 0.0, "b": 0.3, "c": 1.0})
    assigned = assign_labels(oracle, ROWS, LABELS, WRONG, CLASSES, 0)
    error_rates = [(assigned[label::3] != label).mean() for label in range(3)]
    assert error_rates[0] == 0
    # three standard errors of 1000 draws
    assert error_rates[1] == pytest.approx(0.3, abs=0.044)
    assert error_rates[2] == 1
    assert (assigned[2::3] == 0).mean() == pytest.approx(0.5, abs=0.048)


def test_the_label_of_a_noisy_oracle_depends_on_the_image_and_the_seed_alone() -> None:
    oracle = NoisyOracle(kind="noisy", error_rate=dict.fromkeys(CLASSES, 0.5))
    assigned = assign_labels(oracle, ROWS, LABELS, WRONG, CLASSES, 7)
    some = np.array([5, 17, 4, 2000])
    assert (assign_labels(oracle, some, LABELS[some], LABELS[some], CLASSES, 7) == assigned[some]).all()
    assert (assign_labels(oracle, ROWS, LABELS, WRONG, CLASSES, 8) != assigned).any()


def test_pseudo_labels_are_the_predictions_that_reach_the_confidence() -> None:
    oracle = PseudoLabelOracle(kind="pseudo_label", confidence_threshold=0.9)
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.05, 0.95]])
    assert can_label(oracle, probabilities).tolist() == [True, False, True]
    assert (assign_labels(oracle, ROWS, LABELS, WRONG, CLASSES, 0) == WRONG).all()


def test_the_ground_truth_oracle_can_label_every_image() -> None:
    assert can_label(GroundTruth(kind="ground_truth"), np.array([[0.5, 0.5]])).all()
