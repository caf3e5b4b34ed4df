import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.evaluation.intervals import wilson


# Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3; and the textbook pair of 0 and 5 of 10
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
def test_interval_equals_published_values(n_success: int, n: int, low: float, high: float) -> None:
    bounds = wilson(n_success, n)
    assert [float(bound) for bound in bounds] == pytest.approx([low, high], abs=5e-5)


def test_no_success_and_no_failure_give_exact_bounds() -> None:
    assert wilson(0, 496)[0] == 0
    assert wilson(496, 496)[1] == 1


def test_no_trials_give_nan() -> None:
    low, high = wilson([0, 3], [0, 5])
    assert np.isnan([low[0], high[0]]).all()
    assert 0 < low[1] < 0.6 < high[1] < 1


@given(n=st.integers(1, 2000), share=st.floats(0, 1), confidence=st.floats(0.5, 0.999))
def test_interval_holds_the_share_and_mirrors_for_failures(n: int, share: float, confidence: float) -> None:
    n_success = round(share * n)
    low, high = map(float, wilson(n_success, n, confidence))
    assert 0 <= low <= n_success / n <= high <= 1
    mirrored_low, mirrored_high = map(float, wilson(n - n_success, n, confidence))
    assert (1 - mirrored_high, 1 - mirrored_low) == pytest.approx((low, high), abs=1e-12)


def test_arrays_give_what_their_elements_give() -> None:
    low, high = wilson([[1], [4]], [5, 10, 20])
    assert low.shape == high.shape == (2, 3)
    assert high[1, 2] == wilson(4, 20)[1]


@pytest.mark.parametrize(("n_success", "n"), [(-1, 5), (6, 5)])
def test_impossible_counts_are_refused(n_success: int, n: int) -> None:
    with pytest.raises(ValueError, match="n_success must lie between 0 and n"):
        wilson(n_success, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_impossible_confidence_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1"):
        wilson(1, 2, confidence)
