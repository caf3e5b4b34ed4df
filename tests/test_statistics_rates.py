import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.statistics.intervals import clopper_pearson_upper, wilson
from tasks.statistics.rates import rate_estimate, rate_estimates, rate_intervals

GROUPS = np.repeat(np.arange(30), 10)
IMAGES = st.lists(st.tuples(st.integers(0, 14), st.booleans(), st.booleans()), min_size=1, max_size=80)


@pytest.mark.parametrize("n_groups", [6, 25, 100])
def test_rates_of_0_and_1_have_clopper_and_pearsons_bound_for_the_number_of_groups(n_groups: int) -> None:
    groups = np.repeat(np.arange(n_groups), 4)
    bound = 1 - 0.025 ** (1 / n_groups)
    assert rate_estimate(np.zeros(len(groups), dtype=bool), groups) == pytest.approx((0, 0, bound))
    assert rate_estimate(np.ones(len(groups), dtype=bool), groups) == pytest.approx((1, 1 - bound, 1))


def test_single_images_have_wilsons_interval() -> None:
    successes = np.arange(50) < 20
    low, high = wilson(20, 50)
    assert rate_estimate(successes, np.arange(50)) == pytest.approx((0.4, float(low), float(high)))


def test_trials_choose_the_images_and_their_groups() -> None:
    successes, trials = np.arange(300) % 3 == 0, GROUPS % 2 == 0
    expected = rate_estimate(successes[trials], GROUPS[trials])
    assert rate_estimate(successes & trials, GROUPS, trials) == pytest.approx(expected)


def test_similar_images_of_a_group_give_a_wider_interval_than_independent_ones() -> None:
    rng = np.random.default_rng(0)
    independent, similar = rng.random(300) < 0.5, (rng.random(30) < 0.5)[GROUPS]
    widths = [high - low for _, low, high in (rate_estimate(each, GROUPS) for each in (independent, similar))]
    # ten equal images of a group are one image
    assert widths[1] / widths[0] == pytest.approx(10**0.5, rel=0.25)
    low, high = (float(bound) for bound in wilson(similar.sum(), 300))
    assert widths[1] > 2 * (high - low)


def test_scattered_and_clustered_errors_have_different_intervals() -> None:
    scattered = np.arange(300) % 50 == 0
    clustered = np.arange(300) < 6
    of_scattered, of_clustered = rate_estimate(scattered, GROUPS), rate_estimate(clustered, GROUPS)
    assert of_scattered.value == of_clustered.value == 0.02
    # one group with a success may stand for any share of groups up to the bound of 1 of 30
    assert of_clustered.high == pytest.approx(float(clopper_pearson_upper(1, 30)))
    assert of_scattered.high < 0.06 < of_clustered.high


def test_small_groups_with_a_success_count_as_groups() -> None:
    groups = np.concatenate([np.repeat(np.arange(8), 20), [8, 9]])
    found = rate_estimate(groups >= 8, groups)
    assert found.value == pytest.approx(2 / 162)
    assert found.high == pytest.approx(float(clopper_pearson_upper(2, 10)))


def test_one_success_has_a_bound_above_that_of_no_success() -> None:
    none, one = (rate_estimate(np.arange(300) < n, GROUPS) for n in (0, 1))
    assert none.high < one.high == pytest.approx(float(clopper_pearson_upper(1, 30)))


def test_the_same_rate_in_every_group_has_an_interval_with_a_width() -> None:
    bound = 1 - 0.025 ** (1 / 30)
    for every, rate in ((2, 0.5), (5, 0.2)):
        found = rate_estimate(np.arange(300) % every == 0, GROUPS)
        assert found == pytest.approx((rate, rate - bound * rate, rate + bound * (1 - rate)))


def test_the_upper_bound_is_at_most_that_of_the_groups_with_a_success() -> None:
    # all images of three of 100 groups
    groups = np.repeat(np.arange(100), 10)
    found = rate_estimate(groups < 3, groups)
    assert found.high == pytest.approx(float(clopper_pearson_upper(3, 100)))


def test_the_interval_moves_towards_one_half() -> None:
    # every sixth image of 600 in groups of two; the middle of the interval of the logit is that of (x + 1) / (n + 2)
    successes, groups = np.arange(600) % 6 == 0, np.repeat(np.arange(300), 2)
    _, low, high = rate_estimate(successes, groups)
    middle = (np.log(low / (1 - low)) + np.log(high / (1 - high))) / 2
    # two images of a group are independent or not similar, so the effective number of images is 600 or more
    assert 100 / 600 < 1 / (1 + np.exp(-middle)) <= 101 / 602 + 1e-4


def test_too_few_groups_have_a_rate_without_bounds() -> None:
    for groups in (np.repeat(np.arange(4), 25), np.minimum(np.arange(100), 12)):
        value, low, high = rate_estimate(np.arange(100) % 2 == 0, groups)
        assert value == 0.5
        assert np.isnan([low, high]).all()


def test_a_rate_without_trials_or_images_is_nan() -> None:
    nothing = np.zeros(300, dtype=bool)
    assert np.isnan(rate_estimate(nothing, GROUPS, nothing)).all()
    assert np.isnan(rate_estimate(nothing[:0], GROUPS[:0])).all()


def test_successes_outside_the_trials_raise_an_error() -> None:
    with pytest.raises(ValueError, match="successes of an image: 1 of 0 trials"):
        rate_estimate(np.array([True, False]), np.arange(2), np.array([False, True]))


@given(IMAGES)
def test_rates_of_a_table_equal_single_rates(images: list[tuple[int, bool, bool]]) -> None:
    groups, successes, trials = (np.array(column) for column in zip(*images, strict=True))
    rows = np.stack([successes & trials, ~successes & trials])
    together = rate_estimates(rows, groups, trials[None])
    for row, found in zip(rows, together, strict=True):
        assert found == pytest.approx(rate_estimate(row, groups, trials), nan_ok=True)


@given(IMAGES)
def test_intervals_contain_the_rate_have_a_width_and_mirror_for_failures(images: list[tuple[int, bool, bool]]) -> None:
    groups, successes, _ = (np.array(column) for column in zip(*images, strict=True))
    value, low, high = rate_estimate(successes, groups)
    assert value == pytest.approx(successes.mean())
    if np.isfinite(low):
        assert 0 <= low <= value <= high <= 1
        assert high - low > 0.05
    failures = rate_estimate(~successes, groups)
    assert (failures.low, failures.high) == pytest.approx((1 - high, 1 - low), nan_ok=True)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), min_size=6, max_size=30))
def test_fractions_of_successes_are_allowed(groups: list[tuple[int, int]]) -> None:
    successes, sizes = (np.array(column, dtype=float)[None] for column in zip(*groups, strict=True))
    half = np.minimum(successes, sizes) / 2
    low, high = rate_intervals(half, sizes)
    if np.isfinite(low[0]):
        assert low[0] <= half.sum() / sizes.sum() <= high[0]
