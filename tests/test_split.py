"""Training, validation and test split."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tasks.dataset.prepared import SPLITS
from tasks.dataset.split import (
    MAX_SPLIT_DEVIATION,
    check_class_sizes,
    check_fractions,
    draw_folds,
    draw_split,
    grouped_split,
    stratified_split,
)
from tasks.params import Split


def counts_by_split(split: np.ndarray, labels: np.ndarray, label: int) -> dict[str, int]:
    return {name: int(((split == name) & (labels == label)).sum()) for name in SPLITS}


def test_split_80_20_of_the_published_data_set() -> None:
    labels = np.repeat([0, 1], [1229, 1252])
    split = stratified_split(labels, 0.2, 0.1, seed=0)
    assert counts_by_split(split, labels, 0) == {"train": 885, "validation": 98, "test": 246}
    assert counts_by_split(split, labels, 1) == {"train": 902, "validation": 100, "test": 250}


@given(
    counts=st.lists(st.integers(25, 200), min_size=2, max_size=4),
    test_fraction=st.floats(0.15, 0.6),
    validation_fraction=st.floats(0.15, 0.5),
    seed=st.integers(0, 2**32 - 1),
)
def test_stratified_split_has_the_fractions_in_every_class(
    counts: list[int], test_fraction: float, validation_fraction: float, seed: int
) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    split = stratified_split(labels, test_fraction, validation_fraction, seed)
    n = len(labels)
    assert split.shape == labels.shape
    assert set(split) == set(SPLITS)
    n_test = round(n * test_fraction)
    assert (split == "test").sum() == n_test
    assert (split == "validation").sum() == round((n - n_test) * validation_fraction)
    for label, count in enumerate(counts):
        found = counts_by_split(split, labels, label)
        assert abs(found["test"] - count * n_test / n) < 1
        assert abs(found["validation"] - count * (1 - n_test / n) * validation_fraction) < 2
    np.testing.assert_array_equal(split, stratified_split(labels, test_fraction, validation_fraction, seed))


def test_another_seed_gives_another_split() -> None:
    labels = np.repeat([0, 1], 50)
    assert (stratified_split(labels, 0.2, 0.1, 0) != stratified_split(labels, 0.2, 0.1, 1)).any()


@pytest.mark.parametrize(
    ("counts", "fractions", "missing"),
    [((4, 100), (0.1, 0.3), "test"), ((10, 10), (0.2, 0.01), "validation"), ((1, 1), (0.9, 0.5), "train")],
)
def test_split_without_images_of_a_class_is_rejected(
    counts: tuple[int, int], fractions: tuple[float, float], missing: str
) -> None:
    with pytest.raises(ValueError, match=rf"prepare\.split leaves no {missing} image for a class with \d+ images"):
        stratified_split(np.repeat([0, 1], counts), *fractions, seed=0)


@pytest.mark.parametrize(
    ("counts", "fractions"), [((100, 3), (0.3, 0.15)), ((100, 3), (0.2, 0.25)), ((40, 4, 3), (0.05, 0.05))]
)
def test_fractions_that_leave_out_a_class_are_refused_with_fractions_that_work(
    counts: tuple[int, ...], fractions: tuple[float, float]
) -> None:
    names = ("many", "few", "fewer")
    labels = np.repeat(range(len(counts)), counts)
    table = pd.DataFrame({"class": np.repeat(names[: len(counts)], counts), "label": labels})
    with pytest.raises(ValueError, match=r"leaves no .* image of the class 'few.*', which has [34] im") as refused:
        check_fractions(table, *fractions)
    advised = [float(text) for text in re.findall(r"fraction to (0\.\d+)", str(refused.value))]
    check_fractions(table, *advised)


@pytest.mark.parametrize(
    ("strategy", "message"), [("stratified", "images: {'few': 2}"), ("grouped", "groups of images: {'few': 2}")]
)
def test_a_class_with_fewer_images_or_groups_than_splits_is_named(strategy: str, message: str) -> None:
    table = pd.DataFrame({"class": ["many"] * 8 + ["few"] * 2, "group": range(10)})
    with pytest.raises(ValueError, match=f"acquire.classes: too few {message}"):
        check_class_sizes(table, strategy)


@settings(max_examples=6)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 1)), min_size=60, max_size=120),
    test_fraction=st.sampled_from([0.2, 0.3, 0.5]),
    validation_fraction=st.sampled_from([0.15, 0.25]),
    seed=st.integers(0, 2**32 - 1),
)
def test_grouped_split_has_the_fractions_and_keeps_groups_in_one_split(
    sizes: list[tuple[int, int]], test_fraction: float, validation_fraction: float, seed: int
) -> None:
    labels = np.concatenate([np.full(size, label) for size, label in sizes])
    groups = np.repeat(np.arange(len(sizes)), [size for size, _ in sizes])
    # the fractions cannot be met if a class has few groups
    assume(min(sum(label == other for _, other in sizes) for label in (0, 1)) >= 20)
    order = np.random.default_rng(seed).permutation(len(labels))
    labels, groups = labels[order], groups[order]
    split = grouped_split(labels, groups, test_fraction, validation_fraction, seed)
    assert set(split) == set(SPLITS)
    assert all(len(set(split[groups == group])) == 1 for group in np.unique(groups))
    assert abs((split == "test").mean() - test_fraction) <= MAX_SPLIT_DEVIATION
    assert abs((split == "validation").mean() - (1 - test_fraction) * validation_fraction) <= MAX_SPLIT_DEVIATION
    for name in SPLITS:
        assert abs(labels[split == name].mean() - labels.mean()) <= 2 * MAX_SPLIT_DEVIATION
    np.testing.assert_array_equal(split, grouped_split(labels, groups, test_fraction, validation_fraction, seed))


def test_groups_with_images_of_both_classes_stay_in_one_split() -> None:
    labels = np.tile([0, 1], 60)
    groups = np.repeat(np.arange(30), 4)
    split = grouped_split(labels, groups, 0.2, 0.2, seed=0)
    assert all(len(set(split[groups == group])) == 1 for group in range(30))
    assert {name: int((split == name).sum()) for name in SPLITS} == {"train": 76, "validation": 20, "test": 24}


def test_group_numbers_need_not_be_consecutive() -> None:
    labels, groups = np.repeat([0, 1], 60), np.repeat(np.arange(30), 4)
    expected = grouped_split(labels, groups, 0.2, 0.2, seed=0)
    np.testing.assert_array_equal(grouped_split(labels, groups * 7 + 3, 0.2, 0.2, seed=0), expected)


def test_grouped_split_with_one_very_large_group_is_rejected() -> None:
    labels = np.repeat([0, 1], 50)
    groups = np.where(np.arange(100) < 45, 0, np.arange(100))
    with pytest.raises(ValueError, match=r"grouped cannot meet the fractions within 5%: .*largest group has 45\.0%"):
        grouped_split(labels, groups, 0.2, 0.1, seed=0)


def test_grouped_split_with_too_few_groups_is_rejected() -> None:
    labels = np.repeat([0, 1], 50)
    with pytest.raises(ValueError, match=r"each attempt leaves out a class\. There are 4 groups, \[2, 2\] by class"):
        grouped_split(labels, np.repeat(np.arange(4), 25), 0.2, 0.2, seed=0)


def test_a_given_split_without_validation_images_gets_whole_groups_of_the_training_images() -> None:
    groups = np.arange(120) // 3
    split = np.where(groups < 8, "test", "train")
    table = pd.DataFrame(
        {"label": groups % 2, "class": np.array(["a", "b"])[groups % 2], "group": groups, "split": split}
    )
    fractions = Split(strategy="auto", test_fraction=0.5, validation_fraction=0.25, n_folds=0, fold=0)
    drawn = draw_split("given", table, fractions, seed=0)
    assert ((drawn == "test") == (split == "test")).all()
    assert table.assign(drawn=drawn).groupby("group")["drawn"].nunique().max() == 1
    assert (drawn == "validation").sum() == 24
    assert draw_split("given", table.assign(split=drawn), fractions, seed=1).tolist() == drawn.tolist()


@pytest.mark.parametrize("strategy", ["stratified", "grouped"])
def test_every_image_is_a_test_image_in_exactly_one_fold_and_groups_stay_together(strategy: str) -> None:
    groups = np.arange(120) // 3
    labels = groups % 2
    table = pd.DataFrame({"label": labels, "class": np.array(["a", "b"])[labels], "group": groups})
    drawn = np.array(
        [draw_split(strategy, table, folds_of(5, fold, validation_fraction=0.25), seed=3) for fold in range(5)]
    )
    is_test = drawn == "test"
    assert (is_test.sum(axis=0) == 1).all()
    assert [counts_by_split(split, labels, 0) for split in drawn] == [{"train": 36, "validation": 12, "test": 12}] * 5
    assert all(set(split) == set(SPLITS) for split in drawn)
    if strategy == "grouped":
        assert all(table.assign(split=split).groupby("group")["split"].nunique().max() == 1 for split in drawn)
    again = draw_split(strategy, table, folds_of(5, 2, validation_fraction=0.25), seed=3)
    assert again.tolist() == drawn[2].tolist()
    other = draw_split(strategy, table, folds_of(5, 2, validation_fraction=0.25), seed=4)
    assert other.tolist() != drawn[2].tolist()


def test_stratified_folds_differ_by_one_image_at_most_also_within_a_class() -> None:
    labels = np.repeat([0, 1, 2], [7, 11, 5])
    folds = draw_folds("stratified", labels, np.arange(23), 4, seed=0)
    assert sorted(np.bincount(folds)) == [5, 6, 6, 6]
    for label, sizes in enumerate(([1, 2, 2, 2], [2, 3, 3, 3], [1, 1, 1, 2])):
        assert sorted(np.bincount(folds[labels == label], minlength=4)) == sizes


def test_a_class_with_fewer_groups_than_folds_is_refused() -> None:
    table = pd.DataFrame(
        {"class": ["many"] * 12 + ["few"] * 8, "label": [0] * 12 + [1] * 8, "group": [*range(16)] * 1 + [15] * 4}
    )
    with pytest.raises(
        ValueError, match=r"too few groups of images: {'few': 4}\. Each class needs at least 5, one for each fold"
    ):
        draw_split("grouped", table, folds_of(5, 0), seed=0)


def folds_of(n_folds: int, fold: int, validation_fraction: float = 0.1) -> Split:
    return Split(
        strategy="auto", test_fraction=0.2, validation_fraction=validation_fraction, n_folds=n_folds, fold=fold
    )
