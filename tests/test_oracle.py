"""Oracles tell the truth, err at their rate, or ask the model itself."""

import numpy as np
import pytest

from tasks.labelling.oracle import answer, can_answer
from tasks.params import NoisyOracle, PseudoLabels, Truth

CLASSES = ("a", "b", "c")
ROWS = np.arange(3000)
LABELS: np.ndarray = ROWS % 3
WRONG = (LABELS + 1) % 3


def test_the_truth_is_told_whatever_the_model_says() -> None:
    assert (answer(Truth(kind="truth"), ROWS, LABELS, WRONG, CLASSES, 0) == LABELS).all()


def test_a_noisy_oracle_errs_at_the_rate_of_each_class_towards_all_others() -> None:
    oracle = NoisyOracle(kind="noisy", error_rate={"a": 0.0, "b": 0.3, "c": 1.0})
    told = answer(oracle, ROWS, LABELS, WRONG, CLASSES, 0)
    errors = [(told[label::3] != label).mean() for label in range(3)]
    assert errors[0] == 0
    # three standard errors of 1000 draws
    assert errors[1] == pytest.approx(0.3, abs=0.044)
    assert errors[2] == 1
    assert (told[2::3] == 0).mean() == pytest.approx(0.5, abs=0.048)


def test_a_noisy_oracle_says_the_same_of_an_image_whoever_asks_and_when() -> None:
    oracle = NoisyOracle(kind="noisy", error_rate=dict.fromkeys(CLASSES, 0.5))
    told = answer(oracle, ROWS, LABELS, WRONG, CLASSES, 7)
    some = np.array([5, 17, 4, 2000])
    assert (answer(oracle, some, LABELS[some], LABELS[some], CLASSES, 7) == told[some]).all()
    assert (answer(oracle, ROWS, LABELS, WRONG, CLASSES, 8) != told).any()


def test_pseudo_labels_are_the_models_own_where_it_is_sure() -> None:
    oracle = PseudoLabels(kind="pseudo", confidence=0.9)
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.05, 0.95]])
    assert can_answer(oracle, probabilities).tolist() == [True, False, True]
    assert (answer(oracle, ROWS, LABELS, WRONG, CLASSES, 0) == WRONG).all()
    assert can_answer(Truth(kind="truth"), probabilities).all()
