"""Exact leakage by patient, its estimate without patient ids, and the sweep of the grouping threshold."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tasks.dataset.leakage import (
    FALSE_POSITIVE_RATE,
    SWEEP,
    _null_threshold,
    compare_groups,
    estimate_leakage,
    histograms,
    leakage_fractions,
    measure_leakage,
    sweep_grouping,
)

SIDE, N_SLICES = 48, 4


def patient_slices(patient: int) -> np.ndarray:
    """Slices of one patient, uint8 ``(4, 1, 48, 48)``: one histogram up to noise, but the second half is upside down.

    So the thumbnails of the halves do not correlate, as between distant slices of a patient.
    """
    rng = np.random.default_rng([7, patient])
    coarse = rng.choice(rng.uniform(0, 255, 12), (8, 8)).astype(np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float64)
    slices = image + rng.normal(0, 1, (N_SLICES, SIDE, SIDE))
    slices[N_SLICES // 2 :] = slices[N_SLICES // 2 :, ::-1].transpose(0, 2, 1)
    return np.clip(np.rint(slices), 0, 255).astype(np.uint8)[:, None]


def data_set(n_patients: int, leaked_fraction: float, n_classes: int = 2) -> tuple[pd.DataFrame, np.ndarray]:
    """Patients of whom a quarter has test images; leaked patients have their first half in training as another group.

    Returns:
        the table, with the true patient in the column ``true_patient``, and the images.
    """
    patient = np.repeat(np.arange(n_patients), N_SLICES)
    first_half = np.tile(np.arange(N_SLICES) < N_SLICES // 2, n_patients)
    is_test_patient = patient % 4 == 0
    is_leaked = is_test_patient & (patient // 4 < leaked_fraction * n_patients / 4)
    label = patient // 4 % n_classes
    # the classes of training patients follow each other in blocks of four, as those of test patients
    table = pd.DataFrame(
        {
            "path": [f"{label[i]}/{i:05d}.png" for i in range(len(patient))],
            "label": label,
            "true_patient": [f"p{number}" for number in patient],
            "group": np.where(is_leaked & first_half, n_patients + patient, patient),
            "near_duplicate_group": np.arange(len(patient)),
            "split": np.where(is_test_patient & ~(is_leaked & first_half), "test", "train"),
        }
    )
    return table, np.concatenate([patient_slices(number) for number in range(n_patients)])


def true_leakage(table: pd.DataFrame) -> float:
    test, train = (table[table["split"] == split]["true_patient"] for split in ("test", "train"))
    return float(test.isin(train).mean())


def test_leakage_by_group_is_the_fraction_of_test_images_with_a_near_duplicate_or_group_member_in_training() -> None:
    table = pd.DataFrame(
        {
            "split": ["train", "train", "validation", "test", "test", "test", "test"],
            "near_duplicate_group": [0, 1, 2, 0, 2, 3, 4],
            "group": [0, 1, 2, 0, 2, 1, 4],
        }
    )
    assert leakage_fractions(table) == {"near_duplicate_in_train": 0.25, "group_in_train": 0.5}
    with_patients = table.assign(patient=["a", "b", "c", "a", "c", "b", "b"])
    assert leakage_fractions(with_patients)["patient_in_train"] == 0.75


def test_with_patient_ids_leakage_is_exact_and_without_them_it_is_unverified() -> None:
    table, pixels = data_set(40, leaked_fraction=0.5)
    unknown = measure_leakage(table, pixels)
    assert unknown["outcome"] == "unverified"
    assert set(unknown["fractions"]) == {"near_duplicate_in_train", "group_in_train"}
    known = measure_leakage(table.assign(patient=table["true_patient"]), pixels)
    assert known["outcome"] == "exact"
    assert known["fractions"]["patient_in_train"] == true_leakage(table) > 0.3
    # the unit of the interval is the patient; here every test patient is one group
    assert known["estimate"]["n_groups"] == unknown["estimate"]["n_groups"] == 10


def test_a_missing_patient_id_makes_leakage_unverified() -> None:
    table, pixels = data_set(40, leaked_fraction=0.5)
    table["patient"] = table["true_patient"].mask(table.index == 3)
    measured = measure_leakage(table, pixels)
    assert measured["outcome"] == "unverified"
    assert "patient_in_train" not in measured["fractions"]


@pytest.mark.parametrize("leaked_fraction", [0.3, 0.6, 1.0])
def test_a_planted_leak_that_the_groups_do_not_see_is_found(leaked_fraction: float) -> None:
    table, pixels = data_set(160, leaked_fraction)
    measured = measure_leakage(table, pixels)
    assert measured["fractions"] == {"near_duplicate_in_train": 0.0, "group_in_train": 0.0}
    estimate, truth = measured["estimate"], true_leakage(table)
    assert truth >= 0.17
    assert abs(estimate["value"] - truth) < 0.1
    assert 0 < estimate["low"] <= truth <= estimate["high"]


@pytest.mark.parametrize("n_classes", [2, 3])
def test_without_a_leak_the_estimate_is_near_zero_and_its_interval_contains_zero(n_classes: int) -> None:
    table, pixels = data_set(160, leaked_fraction=0, n_classes=n_classes)
    estimate = measure_leakage(table, pixels)["estimate"]
    assert estimate["value"] < 0.05
    assert estimate["low"] == 0


def test_images_of_one_scanner_raise_the_estimate_without_a_leak() -> None:
    """A known limit: an estimate above 0 does not prove a leak."""
    table, pixels = data_set(160, leaked_fraction=0)
    # each class has two scanners; the images of one scanner have almost equal histograms
    scanner = table["label"].to_numpy() * 2 + np.arange(len(table)) // N_SLICES % 2
    grey = 60 * scanner[:, None, None, None] + np.arange(SIDE)
    pixels = np.clip(grey + np.random.default_rng(0).integers(0, 2, pixels.shape), 0, 255).astype(np.uint8)
    assert true_leakage(table) == 0
    assert measure_leakage(table, pixels)["estimate"]["low"] > 0.5


def simulated(seed: int, n_patients: int, positive_fraction: float, leaked: float) -> tuple[np.ndarray, ...]:
    """Feature vectors of patients with four similar images each: features, labels, groups, split and patients."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_patients), 4)
    features = rng.normal(size=(n_patients, 24))[patient] + 0.3 * rng.normal(size=(4 * n_patients, 24))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    label = (rng.random(n_patients) < positive_fraction).astype(np.int64)[patient]
    order = rng.permutation(n_patients)[patient] / n_patients
    moved = (order < 0.25 * leaked) & (np.arange(4 * n_patients) % 4 < 2)
    split = np.where((order < 0.25) & ~moved, "test", "train")
    return features, label, patient + n_patients * moved, split, patient


@pytest.mark.parametrize("positive_fraction", [0.5, 0.2])
def test_in_at_most_one_of_twenty_data_sets_without_a_leak_the_interval_excludes_zero(positive_fraction: float) -> None:
    estimates = [estimate_leakage(*simulated(seed, 120, positive_fraction, leaked=0)[:4]) for seed in range(60)]
    assert sum(estimate["low"] > 0 for estimate in estimates) <= 3
    assert np.mean([estimate["value"] for estimate in estimates]) < 0.03


@pytest.mark.parametrize("positive_fraction", [0.5, 0.2])
def test_the_interval_contains_the_true_leakage_if_images_of_one_patient_are_alike(positive_fraction: float) -> None:
    n_covered, values, truths = 0, [], []
    for seed in range(60):
        *data, split, patient = simulated(seed, 160, positive_fraction, leaked=0.5)
        estimate, truth = estimate_leakage(*data, split), np.isin(patient[split == "test"], patient[split == "train"])
        n_covered += estimate["low"] <= truth.mean() <= estimate["high"]
        values.append(estimate["value"])
        truths.append(truth.mean())
    assert n_covered >= 54
    assert abs(np.mean(values) - np.mean(truths)) < 0.03


def test_group_numbers_and_the_order_of_images_do_not_change_the_estimate() -> None:
    features, labels, groups, split, _ = simulated(0, 60, 0.5, 0.5)
    expected = estimate_leakage(features, labels, groups, split)
    order = np.random.default_rng(1).permutation(len(labels))
    found = estimate_leakage(features[order], labels[order], 3 * groups[order] + 11, split[order])
    assert found == pytest.approx(expected)


def test_an_estimate_of_zero_has_the_bound_of_clopper_and_pearson() -> None:
    features, labels, groups, split, _ = simulated(0, 40, 0.5, 0)
    # test images are orthogonal to all others
    features = np.where((split == "test")[:, None], np.eye(25)[24], np.pad(features, ((0, 0), (0, 1))))
    estimate = estimate_leakage(features, labels, groups, split)
    assert (estimate["value"], estimate["low"], estimate["n_flagged"], estimate["n_groups"]) == (0, 0, 0, 10)
    # upper bound of 0 of 10 groups, from a table of exact binomial intervals
    assert estimate["high"] == pytest.approx((0.3085 - FALSE_POSITIVE_RATE) / (1 - FALSE_POSITIVE_RATE), abs=1e-4)


@pytest.mark.parametrize("missing", ["own", "other"])
def test_without_training_images_of_own_or_other_classes_there_is_no_estimate(missing: str) -> None:
    features, labels, groups, split, _ = simulated(0, 40, 0.5, 0)
    split[(split == "train") & (labels == (1 if missing == "own" else 0))] = "seen"
    if missing == "other":
        labels = np.where(split == "test", 1, labels)
    estimate = estimate_leakage(features, labels, groups, split)
    assert (estimate["value"], estimate["low"], estimate["high"], estimate["n_flagged"]) == (None,) * 4
    assert estimate["n_images"] == 40


def test_the_threshold_is_the_quantile_over_random_choices_of_other_images() -> None:
    """The exact quantile agrees with 4000 random choices of 5 of 40 images."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(70, 6))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    images, other = np.arange(30), np.arange(30, 70)
    threshold = _null_threshold(features, images, other, n_own=5)(np.ones(70, dtype=bool))
    chosen = np.array([rng.choice(other, 5, replace=False) for _ in range(4000)])
    nearest = (features[images] @ features.T)[:, chosen].max(axis=2)
    assert (nearest >= threshold).mean() == pytest.approx(FALSE_POSITIVE_RATE, abs=0.004)


def test_images_of_a_left_out_group_do_not_count_for_the_threshold() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(70, 6)) * np.where(np.arange(70) < 10, 3, 1)[:, None]
    images, other = np.arange(30), np.arange(30, 70)
    without_first = _null_threshold(features, images, other, n_own=5)(np.arange(70) >= 10)
    assert without_first == _null_threshold(features, images[10:], other, n_own=5)(np.ones(70, dtype=bool))
    assert without_first < _null_threshold(features, images, other, n_own=5)(np.ones(70, dtype=bool))


def test_histograms_ignore_positions_and_have_norm_one() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 16, 16), dtype=np.uint8)
    shuffled = rng.permutation(image.ravel()).reshape(image.shape)
    black = np.zeros_like(image)
    found = histograms(np.stack([image, shuffled, black]))
    assert found.shape == (3, 64)
    np.testing.assert_allclose(np.square(found).sum(axis=1), 1)
    np.testing.assert_array_equal(found[0], found[1])
    assert found[2].tolist() == [1.0] + [0.0] * 63


def test_sweep_counts_relatives_by_the_groups_of_each_threshold() -> None:
    # consecutive images correlate by 0.82, 0.57 and 0.42; the last image is in another folder
    angles = np.cumsum([0, *np.arccos([0.82, 0.57, 0.42]), 0])
    thumbnails = np.column_stack([np.cos(angles), np.sin(angles)])
    folders = [Path("a")] * 4 + [Path("b")]
    split = np.array(["train", "test", "validation", "test", "test"])
    rows = sweep_grouping(thumbnails, folders, np.arange(5), split)
    assert [row["same_group_correlation"] for row in rows] == list(SWEEP)
    found = {row["same_group_correlation"]: (row["n_groups"], row["group_in_train"]) for row in rows}
    assert found[0.85] == (5, 0.0)
    assert found[0.8] == (4, pytest.approx(1 / 3))
    assert found[0.55] == (3, pytest.approx(1 / 3))
    # all images of the first folder are connected
    assert found[0.4] == found[0.3] == (2, pytest.approx(2 / 3))


def test_near_duplicates_are_relatives_at_every_threshold() -> None:
    thumbnails, folders = np.eye(3), [Path("a")] * 3
    rows = sweep_grouping(thumbnails, folders, np.array([4, 2, 4]), np.array(["train", "train", "test"]))
    assert {(row["n_groups"], row["group_in_train"]) for row in rows} == {(2, 1.0)}


def test_precision_and_recall_of_inferred_groups_are_over_pairs_of_images() -> None:
    # pairs of one group: 01, 02, 12, 34; pairs of one patient: 01, 23, 24, 34
    found = compare_groups(np.array([5, 5, 5, 7, 7]), np.array([1, 1, 2, 2, 2]))
    assert found == {"precision": 0.5, "recall": 0.5, "n_inferred": 2, "n_patients": 2}
    alone = compare_groups(np.arange(3), np.zeros(3, dtype=int))
    assert (alone["precision"], alone["recall"]) == (None, 0.0)
