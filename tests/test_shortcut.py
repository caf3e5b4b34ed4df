"""Shortcut baseline."""

import numpy as np
import pandas as pd
import pytest

from tasks.dataset.shortcut import SHORTCUTS, predict_from_shortcuts, score_predictions

N = 600


def images(n_classes: int = 2) -> pd.DataFrame:
    """Images whose shortcuts do not depend on the class; a quarter is for tests."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.uniform(size=(N, len(SHORTCUTS))), columns=list(SHORTCUTS))
    split = np.where(np.arange(N) % 4 == 1, "test", "train")
    return table.assign(
        path=[f"{i}.png" for i in range(N)], label=rng.integers(n_classes, size=N), group=np.arange(N) // 3, split=split
    )


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_a_class_that_one_shortcut_gives_away_is_predicted(shortcut: str) -> None:
    table = images()
    table[shortcut] = 300 * table[shortcut] + 1000 * table["label"]
    assert score_predictions(predict_from_shortcuts(table)) == {"accuracy": 1.0, "balanced_accuracy": 1.0}


def test_shortcuts_of_three_classes_are_predicted() -> None:
    table = images(3)
    table["width"] = 100 * table["label"] + table["width"]
    predictions = predict_from_shortcuts(table)
    assert set(predictions["prediction"]) == {0, 1, 2}
    assert predictions["correct"].all()


def test_without_a_shortcut_accuracy_is_that_of_chance() -> None:
    scores = score_predictions(predict_from_shortcuts(images()))
    # standard deviation 0.04 for 150 images
    assert abs(scores["accuracy"] - 0.5) < 0.1
    assert abs(scores["balanced_accuracy"] - 0.5) < 0.1


def test_there_is_one_row_for_each_test_image() -> None:
    table = images()
    predictions = predict_from_shortcuts(table)
    assert predictions["image"].tolist() == list(range(1, N, 4))
    assert predictions["path"].tolist() == [f"{i}.png" for i in range(1, N, 4)]
    assert predictions["group"].tolist() == [i // 3 for i in range(1, N, 4)]
    assert (predictions["correct"] == (predictions["label"] == predictions["prediction"])).all()


def test_labels_of_test_and_validation_images_do_not_change_the_predictions() -> None:
    table = images()
    table["mean"] += 0.3 * table["label"]
    table.loc[::10, "split"] = "validation"
    other = table.assign(label=table["label"].where(table["split"] == "train", 1 - table["label"]))
    expected = predict_from_shortcuts(table)["prediction"].tolist()
    assert predict_from_shortcuts(other)["prediction"].tolist() == expected
    assert len(set(expected)) == 2


def test_images_of_equal_size_are_no_problem() -> None:
    table = images().assign(width=512, height=512)
    assert len(predict_from_shortcuts(table)) == N // 4


def test_balanced_accuracy_is_the_mean_of_the_recalls() -> None:
    predictions = pd.DataFrame({"label": [0, 0, 0, 0, 1, 1], "correct": [True, True, True, False, True, False]})
    scores = score_predictions(predictions)
    assert scores == {"accuracy": pytest.approx(4 / 6), "balanced_accuracy": pytest.approx((0.75 + 0.5) / 2)}
