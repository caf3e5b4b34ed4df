import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tasks.records.scores import entropy, margin


def test_entropy_of_known_distributions() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]], dtype=np.float32))
    assert entropy(logits) == pytest.approx([1.5 * np.log(2), np.log(3)], abs=1e-6)


def test_a_one_hot_softmax_has_zero_entropy_for_any_size_of_the_logits() -> None:
    zero = entropy(np.array([[1e4, -1e4], [-3e38, 3e38]], dtype=np.float32))
    assert zero.tolist() == [0, 0]
    assert not np.signbit(zero).any()


def test_margin_is_the_true_logit_minus_the_largest_other() -> None:
    logits = np.array([[1, 5, 3], [1, 5, 3], [2, 2, 0]], dtype=np.float32)
    assert margin(logits, np.array([1, 2, 0])).tolist() == [2, -2, 0]


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2, min_side=2), elements=st.floats(-1e4, 1e4, width=32)))
def test_scores_stay_in_their_bounds_and_do_not_change_the_logits(logits: np.ndarray) -> None:
    before = logits.copy()
    nats = entropy(logits)
    assert (nats >= 0).all()
    assert (nats <= np.log(logits.shape[1]) + 1e-9).all()
    margins = margin(logits, logits.argmax(axis=1))
    assert (margins >= 0).all()
    assert (logits == before).all()
