import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import precision_recall_fscore_support

from tasks.statistics.confusion import confusion_matrix, precision_recall_f1


def test_rows_of_the_confusion_matrix_are_true_classes() -> None:
    counts = confusion_matrix(np.array([0, 0, 1, 2]), np.array([0, 2, 1, 2]), n_classes=4)
    assert counts.tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_precision_recall_and_f1_equal_hand_computed_values() -> None:
    # 3 of 4 positive images are predicted as positive, and 3 of 5 positive predictions are correct
    values = precision_recall_f1(np.array([[4, 2], [1, 3]]))
    assert values["precision"][1] == pytest.approx(3 / 5)
    assert values["recall"][1] == pytest.approx(3 / 4)
    assert values["f1"][1] == pytest.approx(2 / 3)


def test_a_class_without_predictions_has_precision_recall_and_f1_0() -> None:
    values = precision_recall_f1(np.array([[5, 0], [2, 0]]))
    assert [values[name][1] for name in ("precision", "recall", "f1")] == [0, 0, 0]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_metrics_equal_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    labels, predictions = np.array(pairs).T
    confusion = confusion_matrix(labels, predictions, 4)
    assert (confusion == sklearn_confusion(labels, predictions, labels=range(4))).all()
    expected = precision_recall_fscore_support(labels, predictions, labels=range(4), zero_division=0)
    for actual, metric in zip(precision_recall_f1(confusion).values(), expected[:3], strict=True):
        assert actual == pytest.approx(metric)
