from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tasks.defences.operating_points import (
    MIN_EFFECTIVE_GROUPS,
    balanced_biases,
    choose_biases,
    choose_operating_points,
    sensitivity_biases,
)
from tasks.defences.shifted import Shifted
from tasks.outcomes.attack_outputs import parse_operating_points
from tasks.records.operating_points import OperatingPoint, write_operating_points
from tasks.statistics import groups as groups_of_statistics


def balanced_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    predicted = logits.argmax(axis=1)
    return float(np.mean([(predicted[labels == label] == label).mean() for label in np.unique(labels)]))


def two_classes(scores: list[float]) -> np.ndarray:
    """Logits whose difference is the score of the second class."""
    return np.stack([np.zeros(len(scores)), np.array(scores)], axis=1)


def test_a_bias_undoes_a_shift_of_all_logits_to_one_class() -> None:
    labels = np.array([0] * 10 + [1] * 10)
    logits = two_classes([-1.0] * 10 + [1.0] * 10)
    shifted = logits + np.array([0, 5])
    assert balanced_accuracy(shifted, labels) == 0.5
    biases = balanced_biases(shifted, labels)
    assert balanced_accuracy(shifted + biases, labels) == 1
    # halfway between the two classes
    assert biases.tolist() == [0, -5]


def test_no_bias_is_chosen_if_none_improves_the_balanced_accuracy() -> None:
    labels = np.array([0, 0, 1, 1])
    assert balanced_biases(two_classes([-1, -2, 0.1, 3]), labels).tolist() == [0, 0]


def test_two_classes_get_the_best_threshold_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = rng.permutation([0] * 7 + [1] * 23)
        logits = rng.normal(size=(30, 2)) + 1.5 * np.eye(2)[labels]
        best = max(
            balanced_accuracy(logits + np.array([0, -threshold]), labels) for threshold in np.linspace(-6, 6, 2001)
        )
        assert balanced_accuracy(logits + balanced_biases(logits, labels), labels) >= best - 1e-12


def test_no_change_of_one_bias_of_several_classes_is_better() -> None:
    """That of the first class neither, which is the opposite change of all others."""
    changes = np.linspace(-6, 6, 121)
    for seed in range(12):
        rng, labels = np.random.default_rng(seed), np.arange(60) % 3
        logits = rng.normal(size=(60, 3)) + np.eye(3)[labels] + rng.normal(size=3) * 1.5
        biases = balanced_biases(logits, labels)
        assert biases[0] == 0
        found = balanced_accuracy(logits + biases, labels)
        for k in range(3):
            best = max(balanced_accuracy(logits + biases + change * np.eye(3)[k], labels) for change in changes)
            assert best <= found + 1e-12


def test_several_classes_get_biases_that_undo_shifts_of_their_logits() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 25)
    logits = rng.normal(size=(100, 4)) + 6 * np.eye(4)[labels]
    shifted = logits + np.array([0, 8, -5, 3])
    assert balanced_accuracy(shifted, labels) < 0.6
    assert balanced_accuracy(shifted + balanced_biases(shifted, labels), labels) >= balanced_accuracy(logits, labels)


@pytest.mark.parametrize("positive", [0, 1])
def test_a_fixed_sensitivity_is_reached_with_the_highest_specificity(positive: int) -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(2, size=200)
    logits = rng.normal(size=(200, 2)) + 0.8 * np.eye(2)[labels]
    predicted = (logits + sensitivity_biases(logits, labels, positive, 0.95)).argmax(axis=1)
    is_positive = labels == positive
    sensitivity = (predicted[is_positive] == positive).mean()
    assert 0.95 <= sensitivity < 0.95 + 1 / is_positive.sum()
    # a stricter threshold by one positive image would miss the sensitivity
    scores = logits[:, positive] - logits[:, 1 - positive]
    lowest = np.sort(scores[is_positive & (predicted == positive)])[0]
    assert (scores[is_positive] > lowest).mean() < 0.95


def test_the_interval_of_a_bias_is_wider_for_dependent_images() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40)
    patients = np.repeat(np.arange(16), 5)
    logits = two_classes((np.repeat(rng.normal(size=16), 5) + 2.0 * labels - 1).tolist())
    by_patient = choose_biases(balanced_biases, logits, labels, patients, 300, 0)
    by_image = choose_biases(balanced_biases, logits, labels, np.arange(80), 300, 0)
    assert by_patient.high[1] - by_patient.low[1] > by_image.high[1] - by_image.low[1]
    assert by_patient.low[1] <= by_patient.biases[1] <= by_patient.high[1]


def test_the_operating_points_of_two_classes_survive_their_file(tmp_path: Path) -> None:
    labels = np.array([0, 1] * 20)
    points = choose_operating_points(two_classes([0.5, 2.0] * 20), labels, np.arange(40), 1, 0.95, 0)
    assert [point.name for point in points] == ["as_trained", "recalibrated", "fixed_sensitivity"]
    write_operating_points(points, tmp_path / "points.json")
    assert parse_operating_points((tmp_path / "points.json").read_text()) == points
    assert points[0] == OperatingPoint("as_trained", (0.0, 0.0))
    assert -2 < points[1].biases[1] < -0.5


def test_a_bias_that_validation_images_do_not_determine_has_no_interval() -> None:
    labels = np.arange(40) % 2
    separated = two_classes((4.0 * labels - 2).tolist())
    recalibrated = choose_operating_points(separated, labels, np.arange(40), 1, 0.95, 0)[1]
    assert (recalibrated.biases[1], recalibrated.biases_low, recalibrated.biases_high) == (0, None, None)
    noisy = separated + np.random.default_rng(0).normal(0, 3, size=separated.shape)
    determined = choose_operating_points(noisy, labels, np.arange(40), 1, 0.95, 0)[1]
    assert determined.biases_low is not None
    assert determined.biases_high is not None
    assert determined.biases_low[1] < determined.biases_high[1]


@pytest.mark.parametrize("n_groups", [(5, 4), (4, 5)])
def test_biases_of_validation_images_of_too_few_groups_of_a_class_have_no_interval(n_groups: tuple[int, int]) -> None:
    labels = np.repeat([0, 1], 40)
    logits = two_classes((np.random.default_rng(1).normal(0, 3, 80) + 4 * labels - 2).tolist())

    def points(*n_groups: int) -> list[OperatingPoint]:
        groups = [100 * label + np.arange(40) % n for label, n in enumerate(n_groups)]
        return choose_operating_points(logits, labels, np.concatenate(groups), 1, 0.95, 0)[1:]

    assert MIN_EFFECTIVE_GROUPS == groups_of_statistics.MIN_EFFECTIVE_GROUPS
    for few, enough in zip(points(*n_groups), points(5, 5), strict=True):
        assert (few.name, few.biases, few.biases_low, few.biases_high) == (enough.name, enough.biases, None, None)
        assert enough.biases_low is not None


def test_more_than_two_classes_have_no_fixed_sensitivity() -> None:
    points = choose_operating_points(np.eye(3)[[0, 1, 2]], np.arange(3), np.arange(3), 1, 0.95, 0)
    assert [point.name for point in points] == ["as_trained", "recalibrated"]


def test_without_validation_images_of_every_class_only_the_trained_operating_point_exists() -> None:
    points = choose_operating_points(np.zeros((2, 2)), np.array([0, 0]), np.arange(2), 1, 0.95, 0)
    assert [point.name for point in points] == ["as_trained"]


def test_a_shifted_model_adds_the_biases_and_keeps_the_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    images = torch.rand(3, 1, 2, 2, requires_grad=True)
    shifted = Shifted(model, [0.0, -1.5])
    torch.testing.assert_close(shifted(images), model(images) + torch.tensor([0.0, -1.5]))
    gradients = [torch.autograd.grad(of(images)[:, 1].sum(), images)[0] for of in (model, shifted)]
    torch.testing.assert_close(*gradients)


def test_the_chosen_sensitivity_is_a_partial_of_the_parameter() -> None:
    labels = np.array([1] * 20 + [0] * 20)
    logits = two_classes(list(range(40, 0, -1)))
    half = choose_biases(partial(sensitivity_biases, positive=1, sensitivity=0.5), logits, labels, np.arange(40), 50, 0)
    most = choose_biases(partial(sensitivity_biases, positive=1, sensitivity=0.9), logits, labels, np.arange(40), 50, 0)
    assert half.biases[1] == -30.5
    assert most.biases[1] == -22.5
