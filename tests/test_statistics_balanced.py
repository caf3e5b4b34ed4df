import numpy as np
import pytest

from tasks.statistics.balanced import balanced_accuracies, balanced_ratio, compare_balanced
from tasks.statistics.paired import compare_paired
from tasks.statistics.rates import rate_estimate

GROUPS = np.repeat(np.arange(60), 6)
LABELS = GROUPS % 2


def drawn(share: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(360) < share


def test_a_balanced_accuracy_is_the_mean_of_the_recalls_with_the_interval_of_independent_recalls() -> None:
    correct = drawn(0.8, 0) & ((LABELS == 0) | drawn(0.6, 1))
    (found,) = balanced_accuracies(correct[None], LABELS, GROUPS)
    recalls = [rate_estimate(correct & side, GROUPS, side) for side in (LABELS == 0, LABELS == 1)]
    assert found.value == pytest.approx(np.mean([recall.value for recall in recalls]))
    below = np.hypot(*(recall.value - recall.low for recall in recalls)) / 2
    above = np.hypot(*(recall.high - recall.value for recall in recalls)) / 2
    assert found == pytest.approx((found.value, found.value - below, found.value + above))


def test_a_class_with_more_images_does_not_count_more() -> None:
    labels = (np.arange(360) >= 300).astype(int)
    correct = labels == 0
    (found,) = balanced_accuracies(correct[None], labels, GROUPS)
    assert found.value == 0.5
    assert found.low < 0.5 < found.high
    same = compare_balanced(correct, labels == 1, labels, GROUPS)
    assert same.difference.value == pytest.approx(0)
    assert same.difference.low < 0 < same.difference.high


def test_groups_with_images_of_both_classes_give_a_wider_interval_if_their_outcomes_are_similar() -> None:
    both, correct = np.arange(360) % 2, (drawn(0.5, 2)[:60])[GROUPS]
    (mixed,), (separate,) = (
        balanced_accuracies(correct[None], both, groups) for groups in (GROUPS, GROUPS + 60 * both)
    )
    assert mixed.value == separate.value
    assert (mixed.high - mixed.low) / (separate.high - separate.low) == pytest.approx(2**0.5, rel=0.05)


def test_with_equal_classes_a_comparison_agrees_with_that_of_the_accuracies() -> None:
    first, second = drawn(0.9, 3), drawn(0.8, 4)
    balanced, plain = compare_balanced(first, second, LABELS, GROUPS), compare_paired(first, second, GROUPS)
    assert balanced.difference.value == pytest.approx(plain.difference.value)
    assert (balanced.n_only_first, balanced.n_only_second) == (plain.n_only_first, plain.n_only_second)
    assert balanced.p_value == pytest.approx(plain.p_value)
    assert balanced.difference == pytest.approx(plain.difference, abs=0.02)
    swapped = compare_balanced(second, first, LABELS, GROUPS)
    assert swapped.difference == pytest.approx(
        (-balanced.difference.value, -balanced.difference.high, -balanced.difference.low)
    )


def test_a_few_groups_with_a_loss_have_the_bound_of_their_share() -> None:
    # both classes lose one of 30 groups
    first = ~np.isin(GROUPS, (0, 1))
    found = compare_balanced(first, np.full(360, True), LABELS, GROUPS)
    # Clopper and Pearson's bound for 1 of 30 is 17.2 %
    assert -0.18 < found.difference.low < -0.17
    assert found.p_value == 0.5


def test_too_few_groups_of_a_class_have_no_interval() -> None:
    labels = (GROUPS >= 56).astype(int)
    correct = drawn(0.8, 5)
    (accuracy,) = balanced_accuracies(correct[None], labels, GROUPS)
    difference = compare_balanced(correct, drawn(0.7, 6), labels, GROUPS).difference
    for estimate in (accuracy, difference):
        assert np.isfinite(estimate.value)
        assert np.isnan(estimate[1:]).all()


def test_the_ratio_of_two_balanced_sums_is_that_of_the_means_over_the_classes() -> None:
    labels = (GROUPS >= 40).astype(int)
    lost = np.ones(360)
    # half of the first class is restored, and all of the second, which has half as many images
    restored = np.where(labels == 1, 1, GROUPS % 2)
    found = balanced_ratio(restored, lost, labels, GROUPS)
    assert found.value == pytest.approx(0.75)
    # the jackknife of the mean of 40 groups of the first class, halved
    error = 0.5 * np.sqrt(40 * (0.5 / 39) ** 2)
    assert found.high - found.value == pytest.approx(2.0 * error, rel=0.05)
    assert found.low < found.value - 1.9 * error


def test_a_ratio_has_a_width_if_no_group_shows_that_it_differs_from_1_and_is_undefined_if_nothing_was_lost() -> None:
    found = balanced_ratio(np.ones(360), np.ones(360), LABELS, GROUPS)
    assert np.isnan(found[1:]).all() or found.low < 0.9
    few = balanced_ratio(GROUPS > 1, np.ones(360), LABELS, GROUPS)
    # one of 30 groups of each class is not restored: Clopper and Pearson's bound is 17.2 %
    assert 0.8 < few.low < 0.84
    assert np.isnan(balanced_ratio(np.zeros(360), np.zeros(360), LABELS, GROUPS)).all()
