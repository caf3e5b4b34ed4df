import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from tasks.statistics.intervals import estimate_over_seeds, wilson
from tasks.statistics.resampled import resampled_mean, resampled_ranks, resampled_ratio


# Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3; 0 and 5 of 10 are textbook values
@pytest.mark.parametrize(
    ("n_success", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
    ],
)
def test_wilson_interval_equals_published_values(n_success: int, n: int, low: float, high: float) -> None:
    bounds = wilson(n_success, n)
    assert [float(bound) for bound in bounds] == pytest.approx([low, high], abs=5e-5)


def test_0_successes_and_0_failures_give_exact_bounds() -> None:
    assert wilson(0, 496)[0] == 0
    assert wilson(496, 496)[1] == 1


def test_0_trials_give_nan() -> None:
    low, high = wilson([0, 3], [0, 5])
    assert np.isnan([low[0], high[0]]).all()
    assert 0 < low[1] < 0.6 < high[1] < 1


@given(n=st.integers(1, 2000), fraction=st.floats(0, 1))
def test_interval_contains_the_proportion_and_mirrors_for_failures(n: int, fraction: float) -> None:
    n_success = round(fraction * n)
    low, high = map(float, wilson(n_success, n))
    assert 0 <= low <= n_success / n <= high <= 1
    mirrored_low, mirrored_high = map(float, wilson(n - n_success, n))
    assert (1 - mirrored_high, 1 - mirrored_low) == pytest.approx((low, high), abs=1e-12)


def test_arrays_broadcast_and_give_the_same_bounds_as_scalars() -> None:
    low, high = wilson([[1], [4]], [5, 10, 20])
    assert low.shape == high.shape == (2, 3)
    assert high[1, 2] == wilson(4, 20)[1]


@pytest.mark.parametrize(("n_success", "n"), [(-1, 5), (6, 5)])
def test_impossible_counts_raise_an_error(n_success: int, n: int) -> None:
    with pytest.raises(ValueError, match="n_success must lie between 0 and n"):
        wilson(n_success, n)


def test_means_skip_undefined_values() -> None:
    counts = np.array([[1, 1, 1], [0, 2, 1], [0, 3, 0]], dtype=np.float32)
    means = resampled_mean(np.array([1, np.nan, 4]), counts)
    assert means[:2].tolist() == [2.5, 4]
    assert np.isnan(means[2])


def test_a_ratio_with_denominator_0_is_nan() -> None:
    counts = np.array([[1, 1], [2, 0]], dtype=np.float32)
    numerator = denominator = np.array([False, True])
    ratios = resampled_ratio(numerator, denominator, counts)
    assert ratios[0] == 1
    assert np.isnan(ratios[1])


@given(values=st.lists(st.integers(0, 4), min_size=1, max_size=30), seed=st.integers(0, 99))
def test_ranks_equal_those_of_scipy_on_the_resampled_images(values: list[int], seed: int) -> None:
    counts = np.random.default_rng(seed).integers(3, size=(5, len(values)))
    ranks = resampled_ranks(np.array(values), counts)
    for resample, actual in zip(counts.astype(int), ranks, strict=True):
        assert np.repeat(actual, resample) == pytest.approx(rankdata(np.repeat(values, resample)))


def test_the_interval_over_seeds_is_students_t_and_few_seeds_have_none() -> None:
    ten = estimate_over_seeds(np.tile([1.0, 3.0], 5))
    # 2.262157 is the 97.5 % point of t with nine degrees of freedom
    half_width = 2.262157 * (10 / 9) ** 0.5 / 10**0.5
    assert ten == pytest.approx({"value": 2, "low": 2 - half_width, "high": 2 + half_width, "std": (10 / 9) ** 0.5})
    three = estimate_over_seeds(np.array([1.0, 2.0, 3.0]))
    assert (three["value"], three["std"]) == (2, 1)
    assert np.isnan([three["low"], three["high"]]).all()
    one = estimate_over_seeds(np.array([5.0]))
    assert one["value"] == 5
    assert all(np.isnan(one[name]) for name in ("low", "high", "std"))
    assert np.isnan(estimate_over_seeds(np.empty(0))["value"])
