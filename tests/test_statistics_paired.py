from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from tasks.statistics.balanced import compare_balanced
from tasks.statistics.multiplicity import holm
from tasks.statistics.paired import compare_paired, detectable_differences, sign_flip_p_value

GROUPS = np.repeat(np.arange(40), 8)


def drawn(gain: float, loss: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two classifiers on 320 images; only the first, or only the second, is correct on these shares of the images."""
    uniform = np.random.default_rng(seed).random(320)
    first, second = np.full(320, True), np.full(320, True)
    second[uniform < gain] = False
    first[(uniform >= gain) & (uniform < gain + loss)] = False
    return first, second


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=10))
def test_p_values_equal_those_of_all_signs(differences: list[int]) -> None:
    sizes = np.abs(differences)
    sums = [abs(int(np.dot(signs, sizes))) for signs in product((-1, 1), repeat=len(sizes))]
    expected = np.mean([total >= abs(sum(differences)) for total in sums])
    assert sign_flip_p_value(np.array(differences)) == pytest.approx(expected)


@given(n_first=st.integers(0, 60), n_second=st.integers(0, 60))
def test_p_values_of_single_images_are_those_of_mcnemars_exact_test(n_first: int, n_second: int) -> None:
    differences = np.repeat([1, -1, 0], [n_first, n_second, 5])
    n = n_first + n_second
    expected = binomtest(n_first, n).pvalue if n else 1.0
    assert sign_flip_p_value(differences) == pytest.approx(expected)


def test_p_values_of_fractions_approximate_those_of_whole_numbers() -> None:
    differences = np.array([3, -1, 2, 2, 0, 4, 1, -2, 1, 1, 2])
    exact = sign_flip_p_value(differences)
    assert sign_flip_p_value(differences * 0.3) == pytest.approx(exact, abs=0.01)
    # the smallest p-value of the draws
    assert sign_flip_p_value(np.full(60, 0.5)) == pytest.approx(1 / 20_001)


def test_the_same_difference_is_not_significant_if_few_groups_have_it() -> None:
    first, second = np.full(320, True), np.arange(320) >= 32
    in_four_groups = compare_paired(first, second, GROUPS)
    in_all_groups = compare_paired(first, second, np.arange(320) % 40)
    assert in_four_groups.difference.value == in_all_groups.difference.value == 0.1
    assert in_four_groups.p_value == 2 / 2**4
    assert in_all_groups.p_value < 1e-6
    assert in_four_groups.difference.low < 0 < in_all_groups.difference.low


def test_a_comparison_has_the_numbers_of_both_classifiers() -> None:
    first, second = drawn(0.2, 0.1)
    found = compare_paired(first, second, GROUPS)
    assert found.n_only_first == (first & ~second).sum()
    assert found.n_only_second == (second & ~first).sum()
    assert found.difference.value == pytest.approx(first.mean() - second.mean())
    swapped = compare_paired(second, first, GROUPS)
    assert swapped.difference == pytest.approx((-found.difference.value, -found.difference.high, -found.difference.low))
    assert (swapped.p_value, swapped.detectable_difference) == (found.p_value, found.detectable_difference)


def test_equal_random_classifiers_do_not_differ_on_nearly_every_image() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.binomial(100, np.where(np.arange(len(GROUPS)) % 3, 0.9, 0.1), size=(2, len(GROUPS))) / 100
    found = compare_paired(first, second, GROUPS)
    assert (first != second).mean() > 0.8
    assert (found.n_only_first, found.n_only_second) == (0, 0)
    assert compare_balanced(first, second, GROUPS % 2, GROUPS).n_only_first == 0
    moved = compare_paired(np.full(360, 0.5), np.full(360, 0.49), np.arange(360))
    assert (moved.n_only_first, moved.n_only_second) == (360, 0)


def test_equal_predictions_give_an_interval_with_a_width() -> None:
    first, _ = drawn(0.1, 0.1)
    same = compare_paired(first, first, GROUPS)
    bound = 1 - 0.025 ** (1 / 40)
    assert same.difference == pytest.approx((0, -bound, bound))
    assert same.p_value == 1
    d = same.detectable_difference
    assert d == pytest.approx(1.959964 * (d / 320 + d**2 / 40) ** 0.5 + 0.841621 * (d / 320) ** 0.5)
    assert d * 320 > 6


def test_a_classifier_is_non_inferior_if_the_interval_is_above_the_margin() -> None:
    first, second = drawn(0.05, 0.05)
    found = compare_paired(first, second, GROUPS)
    assert -0.1 < found.difference.low < 0
    assert found.is_non_inferior(0.1)
    assert not found.is_non_inferior(0.01)
    few_groups = compare_paired(first, second, GROUPS % 3)
    assert not few_groups.is_non_inferior(0.99)
    with pytest.raises(ValueError, match=r"margin: 2. \[0, 1\] is allowed"):
        found.is_non_inferior(2)


def test_expected_accuracies_are_compared_as_predictions_are() -> None:
    first, second = drawn(0.2, 0.1)
    sure = compare_paired(first, second, GROUPS)
    expected = compare_paired(first * 1.0, second * 1.0, GROUPS)
    assert expected == sure
    half = compare_paired(first * 0.5, second * 0.5, GROUPS)
    assert half.difference.value == pytest.approx(sure.difference.value / 2)
    assert half.p_value == pytest.approx(sure.p_value, abs=0.01)


def test_the_detectable_difference_is_2_8_standard_errors_for_many_groups() -> None:
    differences = np.random.default_rng(0).choice([-1, 0, 1], p=[0.05, 0.9, 0.05], size=4000)
    error = differences.std() / 4000**0.5
    found = detectable_differences(differences[None].astype(float), np.ones((1, 4000)))
    assert found[0] == pytest.approx((1.959964 + 0.841621) * error, rel=0.01)
    # with few groups a true difference makes random sums larger; the variance of the jackknife is n / (n - 1)^2 of that
    few = differences[:100]
    found = detectable_differences(few[None].astype(float), np.ones((1, 100)))[0]
    error = few.std() * 100**0.5 / 99
    assert found == pytest.approx(1.959964 * (error**2 + found**2 / 100) ** 0.5 + 0.841621 * error)


@pytest.mark.parametrize(("n_comparisons", "n_needed"), [(1, 6), (3, 7), (54, 12)])
def test_the_detectable_difference_needs_enough_different_groups_for_a_small_p_value(
    n_comparisons: int, n_needed: int
) -> None:
    n, level = 150, 0.05 / n_comparisons
    assert sign_flip_p_value(np.ones(n_needed)) <= level < sign_flip_p_value(np.ones(n_needed - 1))
    one_image = np.zeros((1, n))
    one_image[0, 0] = 1
    found = detectable_differences(one_image, np.ones((1, n)), n_comparisons)[0]
    # with this true difference, and no image that only the second classifier classifies correctly
    different = np.random.default_rng(0).binomial(n, found, size=4000)
    rejected = np.mean([sign_flip_p_value(np.ones(each)) <= level for each in different])
    assert 0.8 <= rejected < 0.99
    # the smallest variance of the data would promise 2.8 standard errors of 1 / 150
    assert found > n_needed / n


def test_too_few_groups_for_the_family_have_no_detectable_difference() -> None:
    same = np.zeros((1, 24))
    assert detectable_differences(same, np.ones((1, 24)))[0] < 0.6
    # p is at least 2 / 2^24
    assert np.isnan(detectable_differences(same, np.ones((1, 24)), n_comparisons=10**6)[0])


def test_different_numbers_of_images_raise_an_error() -> None:
    with pytest.raises(ValueError, match="images of first, second, groups: 2, 3, 2"):
        compare_paired(np.ones(2, dtype=bool), np.ones(3, dtype=bool), np.arange(2))
    with pytest.raises(ValueError, match="at least 1"):
        compare_paired(np.ones(0, dtype=bool), np.ones(0, dtype=bool), np.arange(0))


def test_holms_method_equals_the_textbook_example() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.9, 0.8])).tolist() == [1, 1]
    assert holm(np.empty(0)).tolist() == []


def test_comparisons_that_were_not_made_do_not_count_in_the_family() -> None:
    adjusted = holm(np.array([0.02, np.nan, 0.03]))
    assert adjusted[[0, 2]] == pytest.approx([0.04, 0.04])
    assert np.isnan(adjusted[1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_adjusted_p_values_keep_their_order_and_are_at_least_as_large(p_values: list[float]) -> None:
    found = holm(np.array(p_values))
    assert (found >= p_values).all()
    assert (found <= 1).all()
    assert (np.diff(found[np.argsort(p_values)]) >= 0).all()


@pytest.mark.parametrize(("n_groups", "has_test"), [(5, False), (6, True)])
def test_a_paired_comparison_has_a_test_where_its_p_value_can_be_small(n_groups: int, has_test: bool) -> None:
    groups = np.repeat(np.arange(n_groups), 4)
    first, second = np.ones(len(groups), dtype=bool), np.zeros(len(groups), dtype=bool)
    for found in (
        compare_paired(first, second, groups),
        compare_balanced(first, second, np.arange(len(groups)) % 2, groups),
    ):
        assert np.isnan(found.p_value) != has_test
        assert not has_test or found.p_value < 0.05
