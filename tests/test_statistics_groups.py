from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from tasks.statistics.auroc import auroc_without_blocks
from tasks.statistics.groups import (
    MAX_BLOCKS,
    GroupJackknife,
    effective_groups,
    group_sums,
    rate_deviations,
    too_few_groups,
)
from tasks.statistics.intervals import (
    CORRELATION,
    POSITIVE,
    RATE,
    UNBOUNDED,
    clopper_pearson_upper,
    jackknife_interval,
    jackknife_variance,
    p_values_of_intervals,
)
from tasks.statistics.rates import rate_intervals
from tasks.statistics.resampled import resampled_mean
from tests.simulations.draws import draw_sizes, draw_successes


def test_effective_groups_are_the_groups_if_all_have_one_size_and_near_1_if_one_holds_most_images() -> None:
    assert effective_groups(np.full(12, 7)) == pytest.approx(12)
    assert effective_groups(np.array([1000, 1, 1, 1])) == pytest.approx(1.006, abs=1e-3)
    # groups without images do not count
    assert effective_groups(np.array([[3, 3, 0], [0, 0, 0]])).tolist() == [2, 0]


def test_there_are_too_few_groups_below_five_effective_ones() -> None:
    assert too_few_groups(np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [9, 1, 1, 1, 1]])).tolist() == [True, False, True]


def test_sums_by_group_are_in_the_order_of_the_groups() -> None:
    groups = np.array([7, -2, 7, 0, -2])
    assert group_sums(np.array([[1, 2, 3, 4, 5], [1, 1, 1, 1, 1]]), groups).tolist() == [[7, 4, 4], [2, 1, 2]]


def test_the_change_of_a_rate_is_that_of_the_rate_without_the_group() -> None:
    sums, sizes = np.array([[3.0, 1, 0]]), np.array([[4, 4, 2]])
    assert rate_deviations(sums, sizes)[0] == pytest.approx([1 / 6 - 0.4, 3 / 6 - 0.4, 4 / 8 - 0.4])
    # the rate is not defined without the only group
    assert rate_deviations(np.array([[3.0]]), np.array([[4]])).tolist() == [[0]]


def test_resamples_are_all_images_and_then_those_outside_each_group() -> None:
    jackknife = GroupJackknife(np.array([5, 3, 5]))
    assert jackknife.counts.tolist() == [[1, 1, 1], [1, 0, 1], [0, 1, 0]]
    assert jackknife.select(np.array([True, False, True])).counts.tolist() == [[1, 1], [0, 0]]


def test_more_groups_than_the_limit_share_blocks() -> None:
    jackknife = GroupJackknife(np.arange(3 * MAX_BLOCKS))
    assert jackknife.counts.shape == (1 + MAX_BLOCKS, 3 * MAX_BLOCKS)
    assert (jackknife.counts[1:].sum(axis=1) == 3 * MAX_BLOCKS - 3).all()
    values = np.random.default_rng(0).normal(size=3 * MAX_BLOCKS)
    estimate = jackknife.estimate(partial(resampled_mean, values), UNBOUNDED)
    half_width = 1.96 * values.std() / len(values) ** 0.5
    assert (estimate.high - estimate.low) / 2 == pytest.approx(half_width, rel=0.15)


def test_the_interval_of_a_mean_is_students_t_with_the_standard_error_of_the_groups() -> None:
    groups = np.repeat(np.arange(40), 5)
    values = np.random.default_rng(0).normal(size=40)[groups]
    low, high = GroupJackknife(groups).interval(resampled_mean(values, GroupJackknife(groups).counts), UNBOUNDED)
    means = values[::5]
    # the jackknife's variance is larger by 40 / 39
    error = means.std(ddof=1) / 40**0.5 * (40 / 39) ** 0.5
    _, degrees = jackknife_variance((means.mean() - means) / 39)
    assert 30 < degrees < 60
    assert (float(low), float(high)) == pytest.approx(
        tuple(means.mean() + sign * student.ppf(0.975, degrees) * error for sign in (-1, 1))
    )


def test_degrees_of_freedom_are_near_the_number_of_groups_and_small_if_few_groups_decide() -> None:
    normal = np.random.default_rng(0).normal(size=(50, 4000))
    assert np.median(jackknife_variance(normal)[1]) == pytest.approx(50, abs=5)
    few = np.concatenate([10 * normal[:3], normal[3:]])
    assert np.median(jackknife_variance(few)[1]) < 8
    assert jackknife_variance(np.array([1.0, 0, 0]))[1] == 3


@given(
    deviations=st.lists(st.floats(-0.2, 0.2).map(lambda value: round(value, 6)), min_size=5, max_size=30).map(np.array),
    share=st.floats(0.01, 0.99),
    bounds=st.sampled_from([RATE, CORRELATION, POSITIVE, UNBOUNDED]),
)
def test_intervals_contain_the_value_and_stay_within_the_bounds(
    deviations: np.ndarray, share: float, bounds: tuple[float, float]
) -> None:
    value = np.array(bounds[0] + share * (bounds[1] - bounds[0]) if np.isfinite(bounds[1]) else share)
    low, high = jackknife_interval(value, deviations, bounds, 20)
    if np.isnan(low):
        assert (np.abs(deviations) < 1e-9).all()
    else:
        assert bounds[0] <= low <= value <= high <= bounds[1]
        assert low < high


def test_intervals_of_a_rate_and_of_its_complement_mirror_each_other() -> None:
    deviations = np.random.default_rng(0).normal(0, 0.02, size=20)
    low, high = jackknife_interval(np.array(0.1), deviations, RATE, 20)
    other_low, other_high = jackknife_interval(np.array(0.9), -deviations, RATE, 20)
    assert (float(low), float(high)) == pytest.approx((float(1 - other_high), float(1 - other_low)))
    # the interval is longer towards the middle
    assert high - 0.1 > 0.1 - low


def test_a_value_that_no_group_changes_has_the_width_of_the_bound_for_0_of_n_groups() -> None:
    jackknife = GroupJackknife(np.repeat(np.arange(20), 2))
    share = 1 - 0.025 ** (1 / 20)
    for value, bounds, expected in [
        (0.0, RATE, (0, share)),
        (1.0, RATE, (1 - share, 1)),
        (0.5, RATE, (0.5 - share / 2, 0.5 + share / 2)),
        (0.0, CORRELATION, (-share, share)),
        (1.0, CORRELATION, (1 - 2 * share, 1)),
    ]:
        estimate = jackknife.estimate(lambda counts, value=value: np.full(len(counts), value), bounds)
        assert estimate == pytest.approx((value, *expected))
    # an infinite range has no such bound
    assert np.isnan(jackknife.estimate(lambda counts: np.full(len(counts), 2.0), POSITIVE)[1:]).all()


def test_too_few_groups_of_one_side_give_nan() -> None:
    values = np.random.default_rng(0).normal(size=40)
    jackknife, statistic = GroupJackknife(np.arange(40)), partial(resampled_mean, values)
    assert np.isfinite(jackknife.estimate(statistic, UNBOUNDED)).all()
    few = np.arange(40) < 4
    value, low, high = jackknife.estimate(statistic, UNBOUNDED, [few, ~few])
    assert value == pytest.approx(values.mean())
    assert np.isnan([low, high]).all()


def test_no_images_give_nan() -> None:
    assert np.isnan(GroupJackknife(np.empty(0, dtype=int)).estimate(partial(resampled_mean, np.empty(0)), RATE)).all()


def test_clopper_pearson_bounds_equal_published_values() -> None:
    # Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 5
    assert clopper_pearson_upper([81, 15, 0, 1], [263, 148, 20, 29]) == pytest.approx(
        [0.3676, 0.1617, 0.1684, 0.1776], abs=5e-5
    )
    assert 1 - clopper_pearson_upper([263 - 81, 148 - 15], [263, 148]) == pytest.approx([0.2527, 0.0578], abs=5e-5)
    assert clopper_pearson_upper(7, 7) == 1


@settings(max_examples=60)
@given(images=st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.integers(0, 6)), min_size=2, max_size=40))
def test_auroc_without_each_group_equals_that_of_scikit_learn(images: list[tuple[int, bool, int]]) -> None:
    scores, positive, groups = (np.array(column) for column in zip(*images, strict=True))
    jackknife = GroupJackknife(groups)
    for kept, found in zip(jackknife.counts > 0, auroc_without_blocks(scores, positive, jackknife), strict=True):
        if positive[kept].all() or not positive[kept].any():
            assert np.isnan(found)
        else:
            assert found == pytest.approx(roc_auc_score(positive[kept], scores[kept]))


def test_a_p_value_agrees_with_its_interval_and_is_larger_with_few_groups() -> None:
    interval = np.array(0.8), np.array(0.7), np.array(0.9)
    for bounds in (RATE, UNBOUNDED):
        at = [float(p_values_of_intervals(*interval, bound, bounds, 60)) for bound in (0.5, 0.7, 0.8, 0.85, 0.9)]
        assert at[1:] == pytest.approx([0.05, 1, at[3], 0.05])
        assert at[0] < 0.05 < at[3] < 1
    # 1.5 half-widths from the value, 10 degrees of freedom
    far = float(p_values_of_intervals(*interval, 0.65, UNBOUNDED, 60))
    assert far == pytest.approx(2 * student.sf(1.5 * student.ppf(0.975, 10), 10))
    assert far < float(p_values_of_intervals(*interval, 0.65, UNBOUNDED, 12))
    # a value at a bound has no logit
    assert 0 < float(p_values_of_intervals(1.0, 0.92, 1.0, 0.8, RATE, 44)) < 0.01
    assert np.isnan(p_values_of_intervals(0.8, np.nan, np.nan, 0.5, RATE, 4))


@pytest.mark.parametrize(("n_groups", "icc"), [(12, 0.3), (50, 0.0), (50, 0.6)])
def test_p_values_hold_the_level_of_a_corrected_comparison(n_groups: int, icc: float) -> None:
    rng = np.random.default_rng(0)
    sizes = draw_sizes(rng, (10_000, n_groups))
    successes = draw_successes(rng, sizes, 0.3, icc).astype(float)
    low, high = rate_intervals(successes, sizes)
    p_values = p_values_of_intervals(successes.sum(axis=1) / sizes.sum(axis=1), low, high, 0.3, RATE, n_groups)
    # three standard errors above 0.5 %
    assert np.mean(p_values < 0.005) <= 0.0071


def test_a_small_change_by_one_group_hardly_widens_the_interval_of_a_perfect_auroc() -> None:
    constant, one = np.zeros(44), np.eye(44)[0] * -0.001
    for value, deviations in ((1.0, constant), (1.0, one), (0.9999, one)):
        share = float(clopper_pearson_upper(int(deviations.any()), 44))
        assert share < 0.13
        low, high = jackknife_interval(np.array(value), deviations, RATE, 44)
        assert float(low) == pytest.approx(1 - share, abs=1e-3)
        assert high == pytest.approx(1)
        other_low, other_high = jackknife_interval(np.array(1 - value), -deviations, RATE, 44)
        assert (float(other_low), float(other_high)) == pytest.approx((1 - float(high), 1 - float(low)))
    # a large change does: three degrees of freedom
    low, high = jackknife_interval(np.array(1.0), 100 * one, RATE, 44)
    assert (float(low), float(high)) == pytest.approx((1 - 0.1 * student.ppf(0.975, 3), 1))
    low, high = jackknife_interval(np.array(1.0), one, CORRELATION, 44)
    assert (float(low), float(high)) == pytest.approx((1 - 2 * share, 1))
