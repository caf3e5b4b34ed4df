import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import precision_recall_fscore_support

from tasks.statistics.confusion import confusion_matrix, precision_recall_f1


def test_confusion_counts_true_classes_in_rows() -> None:
    counts = confusion_matrix(np.array([0, 0, 1, 2]), np.array([0, 2, 1, 2]), n_classes=4)
    assert counts.tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_known_precision_recall_and_f1() -> None:
    # of 4 positives 3 are found; of 5 called positive 3 are
    values = precision_recall_f1(np.array([[4, 2], [1, 3]]))
    assert values["precision"][1] == pytest.approx(3 / 5)
    assert values["recall"][1] == pytest.approx(3 / 4)
    assert values["f1"][1] == pytest.approx(2 / 3)


def test_a_class_that_is_never_predicted_has_precision_zero() -> None:
    values = precision_recall_f1(np.array([[5, 0], [2, 0]]))
    assert [values[name][1] for name in ("precision", "recall", "f1")] == [0, 0, 0]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_metrics_equal_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    labels, predictions = np.array(pairs).T
    ours = confusion_matrix(labels, predictions, 4)
    assert (ours == sklearn_confusion(labels, predictions, labels=range(4))).all()
    theirs = precision_recall_fscore_support(labels, predictions, labels=range(4), zero_division=0)
    for values, expected in zip(precision_recall_f1(ours).values(), theirs[:3], strict=True):
        assert values == pytest.approx(expected)
