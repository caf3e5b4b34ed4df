"""Training, validation and test split: by single images, or by whole groups."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

TRAIN, VALIDATION, TEST = 0, 1, 2
NAMES = np.array(["train", "validation", "test"])

TOLERANCE = 0.05
"""How far the share of a split, and of a class in it, may be off where whole groups are kept together."""
N_ATTEMPTS = 50
"""Random orders of the groups, of which the best split is taken."""


def stratified_split(labels: np.ndarray, test_fraction: float, validation_fraction: float, seed: int) -> np.ndarray:
    """Draw single images, each class in proportion.

    Args:
        labels: int ``(N,)`` in 0 .. K - 1.
        test_fraction: of all images.
        validation_fraction: of the images that are not test images.
        seed: of the drawing.

    Returns:
        ``train``, ``validation`` or ``test``, str ``(N,)``.

    Raises:
        ValueError: a class would be missing from a split.
    """
    counts = np.bincount(labels)
    targets = _target_counts(counts, test_fraction, validation_fraction)
    if (lacking := targets < 1).any():
        split, label = np.argwhere(lacking)[0]
        raise ValueError(
            f"prepare.split leaves no {NAMES[split]} image for a class of {counts[label]} images: "
            "use other fractions or more images"
        )
    rng = np.random.default_rng(seed)
    split = np.full(len(labels), TRAIN)
    for label in range(len(counts)):
        rows = rng.permutation(np.flatnonzero(labels == label))
        n_test, n_validation = targets[TEST, label], targets[VALIDATION, label]
        split[rows[:n_test]] = TEST
        split[rows[n_test : n_test + n_validation]] = VALIDATION
    return np.asarray(NAMES[split])


def grouped_split(
    labels: np.ndarray, groups: np.ndarray, test_fraction: float, validation_fraction: float, seed: int
) -> np.ndarray:
    """Draw whole groups, so that each split has nearly its share of the images of each class.

    Groups are taken in random order, each goes where it brings the counts nearest to their targets in
    the squared sense; of :data:`N_ATTEMPTS` orders the one with the smallest deviation is taken.

    Args:
        labels: int ``(N,)`` in 0 .. K - 1.
        groups: int ``(N,)``; a group may hold several classes.
        test_fraction: of all images.
        validation_fraction: of the images that are not test images.
        seed: of the drawing.

    Returns:
        ``train``, ``validation`` or ``test``, str ``(N,)``.

    Raises:
        ValueError: no attempt comes within :data:`TOLERANCE`, or a class would be missing from a split.
    """
    counts = np.bincount(labels)
    targets = _target_counts(counts, test_fraction, validation_fraction).astype(float)
    _, groups = np.unique(groups, return_inverse=True)
    sizes = np.zeros((groups.max() + 1, len(counts)), dtype=np.int64)
    np.add.at(sizes, (groups, labels), 1)

    rng = np.random.default_rng(seed)
    best, smallest = None, np.inf
    for _ in range(N_ATTEMPTS):
        split, filled = np.empty(len(sizes), dtype=np.int64), np.zeros_like(targets)
        for group in rng.permutation(len(sizes)):
            size = sizes[group]
            # change of the squared distance to the targets
            split[group] = np.argmin((size * (size + 2 * (filled - targets)) / counts**2).sum(axis=1))
            filled[split[group]] += size
        deviation = _deviation(filled, targets)
        if (filled >= 1).all() and deviation < smallest:
            best, smallest = split, deviation
    if best is None or smallest > TOLERANCE:
        reached = "no split has every class" if best is None else f"the best split is off by {smallest:.1%}"
        raise ValueError(
            f"prepare.split.strategy grouped can't meet the fractions within {TOLERANCE:.0%}: {reached}; there are "
            f"{len(sizes)} groups, {(sizes > 0).sum(axis=0).tolist()} by class, and the largest has "
            f"{sizes.sum(axis=1).max() / len(labels):.1%} of the images. Use more images, other fractions, a higher "
            "validate.neighbour_correlation (smaller groups), or the strategy stratified"
        )
    return np.asarray(NAMES[best][groups])


def leakage(table: "pd.DataFrame") -> dict[str, float]:
    """Shares of the test images that have a near-duplicate, and another image of their group, in training."""
    test, train = table[table["split"] == "test"], table[table["split"] == "train"]
    return {
        "near_duplicate_in_train": float(test["near_duplicate_group"].isin(train["near_duplicate_group"]).mean()),
        "group_in_train": float(test["group"].isin(train["group"]).mean()),
    }


def _target_counts(counts: np.ndarray, test_fraction: float, validation_fraction: float) -> np.ndarray:
    """Images of each split and class, int ``(3, K)``; columns add up to ``counts`` ``(K,)``."""
    test = _proportional(counts, round(counts.sum() * test_fraction))
    rest = counts - test
    validation = _proportional(rest, round(rest.sum() * validation_fraction))
    return np.stack([rest - validation, validation, test])


def _proportional(counts: np.ndarray, n: int) -> np.ndarray:
    """``n`` images over classes in proportion to ``counts``, rounded by largest remainder, int ``(K,)``."""
    quotas = counts * n / max(counts.sum(), 1)
    shares = np.floor(quotas).astype(np.int64)
    shares[np.argsort(shares - quotas, kind="stable")[: n - shares.sum()]] += 1
    return np.asarray(shares)


def _deviation(filled: np.ndarray, targets: np.ndarray) -> float:
    """Largest error of a split's share of all images, and of a class's share of a split; both ``(3, K)``."""
    of_all = abs(filled.sum(axis=1) - targets.sum(axis=1)) / targets.sum()
    sums = np.maximum(filled.sum(axis=1, keepdims=True), 1)
    in_split = abs(filled / sums - targets / targets.sum(axis=1, keepdims=True))
    return float(max(of_all.max(), in_split.max()))
