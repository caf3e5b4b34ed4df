"""Split into training, validation and test images: given, of single images, or of whole groups; also k folds."""

from typing import TYPE_CHECKING

import numpy as np

from tasks.dataset.prepared import SPLITS
from tasks.params import Split

if TYPE_CHECKING:
    import pandas as pd

TRAIN, VALIDATION, TEST = 0, 1, 2
SPLIT_NAMES = np.array(SPLITS)
"""Names of the splits by number."""

MAX_SPLIT_DEVIATION = 0.05
"""Maximum deviation of a grouped split: of the fraction of each split, and of the fraction of each class in a split."""
N_ATTEMPTS = 50
"""Number of random orders of the groups; the best split is used."""


def split_strategy(setting: str, source: str, table: "pd.DataFrame") -> str:
    """Return ``given``, ``grouped`` or ``stratified``.

    Args:
        setting: ``prepare.split.strategy``.
        source: ``acquire.source``.
        table: one row for each image; with columns ``split`` and ``patient`` if they are given.
    """
    if "split" in table:
        return "given"
    if setting != "auto":
        return setting
    return "grouped" if "patient" in table or source == "folder" else "stratified"


def draw_split(strategy: str, table: "pd.DataFrame", settings: Split, seed: int) -> np.ndarray:
    """``train``, ``validation`` or ``test`` for each image, str ``(N,)``.

    With ``n_folds``, the test images are those of the fold ``fold``, and the seed draws the same folds for every
    number. If a given split has no validation images, whole groups of its training images become validation images.

    Args:
        strategy: from :func:`split_strategy`.
        table: one row for each image; columns ``label``, ``group`` and, if the split is given, ``split``.
        settings: section ``prepare.split``.
        seed: of the draw.

    Raises:
        ValueError: a class would be missing from a split, or the fractions cannot be met.
    """
    labels = table["label"].to_numpy()
    fractions = settings.test_fraction, settings.validation_fraction
    if strategy != "given":
        check_class_sizes(table, strategy, max(len(SPLITS), settings.n_folds))
        if settings.n_folds:
            folds = draw_folds(strategy, labels, table["group"].to_numpy(), settings.n_folds, seed)
            return _fold_split(strategy, table, folds == settings.fold, settings.validation_fraction, seed)
    if strategy == "stratified":
        check_fractions(table, *fractions)
        return stratified_split(labels, *fractions, seed)
    if strategy == "grouped":
        return grouped_split(labels, table["group"].to_numpy(), *fractions, seed)
    return _given_split(table, settings.validation_fraction, seed)


def _given_split(table: "pd.DataFrame", validation_fraction: float, seed: int) -> np.ndarray:
    """The split of the column ``split``, str ``(N,)``, with validation images from the training images if it has none.

    Raises:
        ValueError: a split lacks a class, or the fraction cannot be met.
    """
    given = table["split"].to_numpy(dtype=object)
    has_validation = "validation" in given
    for split in SPLITS if has_validation else ("train", "test"):
        if missing := sorted(set(table["class"]) - set(table["class"][given == split])):
            raise ValueError(
                f"acquire.table.split: no {split} image of the classes {missing}. Every split needs images of every "
                "class. Complete the table, or leave acquire.table.split empty."
            )
    if not has_validation:
        # of the training images; the test images stay as they are
        is_train = given == "train"
        labels, groups = (table[name].to_numpy()[is_train] for name in ("label", "group"))
        given = given.copy()
        given[is_train] = grouped_split(labels, groups, 0.0, validation_fraction, seed)
    return given.astype(str)


def draw_folds(strategy: str, labels: np.ndarray, groups: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """Number of the fold of each image, from 0, int64 ``(N,)``; each fold has its part of each class.

    Args:
        strategy: ``stratified``: of single images; ``grouped``: of whole groups.
        labels: int ``(N,)`` in 0 .. K - 1.
        groups: int ``(N,)``.
        n_folds: at least 2.
        seed: of the draw.

    Raises:
        ValueError: no folds of whole groups are nearly equal; see :func:`grouped_split`.
    """
    if strategy == "grouped":
        targets = np.tile(np.bincount(labels) / n_folds, (n_folds, 1))
        return _assign_all_groups(labels, groups, targets, seed)
    order = np.random.default_rng(seed).permutation(len(labels))
    # class by class, to each fold in turn, so that folds and classes in folds differ by one image at most
    order = order[np.argsort(labels[order], kind="stable")]
    folds = np.empty(len(labels), dtype=np.int64)
    folds[order] = np.arange(len(labels)) % n_folds
    return folds


def _fold_split(
    strategy: str, table: "pd.DataFrame", is_test: np.ndarray, validation_fraction: float, seed: int
) -> np.ndarray:
    """``test`` for the images of a fold, ``train`` or ``validation`` for the others, str ``(N,)``."""
    rest = table[~is_test]
    if strategy == "grouped":
        others = grouped_split(rest["label"].to_numpy(), rest["group"].to_numpy(), 0.0, validation_fraction, seed)
    else:
        others = stratified_split(rest["label"].to_numpy(), 0.0, validation_fraction, seed)
    split = np.full(len(table), "test", dtype=SPLIT_NAMES.dtype)
    split[~is_test] = others
    return split


def check_class_sizes(table: "pd.DataFrame", strategy: str, n_parts: int = len(SPLITS)) -> None:
    """Check that each class has an image, or a group, for every split, and for every fold if there are folds.

    Args:
        table: one row for each image; columns ``class`` and ``group``.
        strategy: ``stratified`` or ``grouped``.
        n_parts: number of splits or folds.

    Raises:
        ValueError: a class has too few.
    """
    what = "images" if strategy == "stratified" else "groups of images"
    sizes = table["class"].value_counts() if strategy == "stratified" else table.groupby("class")["group"].nunique()
    if too_few := {str(name): int(size) for name, size in sizes.items() if size < n_parts}:
        raise ValueError(
            f"acquire.classes: too few {what}: {too_few}. Each class needs at least {n_parts}, one for each "
            f"{'split, and no fraction of prepare.split helps' if n_parts == len(SPLITS) else 'fold'}. Add images of "
            "these classes, or remove the classes."
        )


def check_fractions(table: "pd.DataFrame", test_fraction: float, validation_fraction: float) -> None:
    """Check that a split of single images has an image of every class in every split.

    Args:
        table: one row for each image; columns ``class`` and ``label``.
        test_fraction: of all images.
        validation_fraction: of the images that are not test images.

    Raises:
        ValueError: a class would be missing. The message has the nearest fractions that work.
    """
    counts = np.bincount(table["label"])
    is_empty = _target_counts(counts, test_fraction, validation_fraction) < 1
    if not is_empty.any():
        return
    split, label = np.argwhere(is_empty)[0]
    name = table["class"][table["label"] == label].iloc[0]
    percents = np.arange(1, 100) / 100
    # one fraction is changed if that is enough
    candidates = [(test_fraction, value) for value in percents] + [(value, validation_fraction) for value in percents]
    working = [pair for pair in candidates if (_target_counts(counts, *pair) >= 1).all()]
    if not working:
        pairs = ((first, second) for first in percents for second in percents)
        working = [pair for pair in pairs if (_target_counts(counts, *pair) >= 1).all()]
    advice = "Add images of this class."
    if working:
        nearest = min(working, key=lambda pair: abs(pair[0] - test_fraction) + abs(pair[1] - validation_fraction))
        advice = (
            f"Set prepare.split.test_fraction to {nearest[0]:g} and prepare.split.validation_fraction to "
            f"{nearest[1]:g}, or add images of this class."
        )
    raise ValueError(
        f"prepare.split leaves no {SPLIT_NAMES[split]} image of the class {name!r}, which has {counts[label]} images. "
        f"Every split needs an image of every class. {advice}"
    )


def stratified_split(labels: np.ndarray, test_fraction: float, validation_fraction: float, seed: int) -> np.ndarray:
    """Draw single images, stratified by class.

    Args:
        labels: int ``(N,)`` in 0 .. K - 1.
        test_fraction: of all images; 0: no test images.
        validation_fraction: of the images that are not test images.
        seed: of the draw.

    Returns:
        ``train``, ``validation`` or ``test`` for each image, str ``(N,)``.

    Raises:
        ValueError: a class would be missing from a split.
    """
    counts = np.bincount(labels)
    targets = _target_counts(counts, test_fraction, validation_fraction)
    if (is_empty := targets[: _n_splits(test_fraction)] < 1).any():
        split, label = np.argwhere(is_empty)[0]
        raise ValueError(
            f"prepare.split leaves no {SPLIT_NAMES[split]} image for a class with {counts[label]} images. Every split "
            "needs an image of every class. Use more images, or change prepare.split.test_fraction or "
            "prepare.split.validation_fraction."
        )
    rng = np.random.default_rng(seed)
    split = np.full(len(labels), TRAIN)
    for label in range(len(counts)):
        rows = rng.permutation(np.flatnonzero(labels == label))
        n_test, n_validation = targets[TEST, label], targets[VALIDATION, label]
        split[rows[:n_test]] = TEST
        split[rows[n_test : n_test + n_validation]] = VALIDATION
    return np.asarray(SPLIT_NAMES[split])


def grouped_split(
    labels: np.ndarray, groups: np.ndarray, test_fraction: float, validation_fraction: float, seed: int
) -> np.ndarray:
    """Draw whole groups, so that each split has approximately its fraction of the images of each class.

    The groups are assigned in random order. Each group is assigned to the split that minimizes the squared distance of
    the counts from their targets. Of :data:`N_ATTEMPTS` orders, the one with the smallest deviation is used.

    Args:
        labels: int ``(N,)`` in 0 .. K - 1.
        groups: int ``(N,)``; the images of a group may have different classes.
        test_fraction: of all images; 0: no test images.
        validation_fraction: of the images that are not test images.
        seed: of the draw.

    Returns:
        ``train``, ``validation`` or ``test`` for each image, str ``(N,)``.

    Raises:
        ValueError: in every attempt, the deviation is above :data:`MAX_SPLIT_DEVIATION` or a split lacks a class.
    """
    targets = _target_counts(np.bincount(labels), test_fraction, validation_fraction)
    targets = targets[: _n_splits(test_fraction)].astype(float)
    return np.asarray(SPLIT_NAMES[_assign_all_groups(labels, groups, targets, seed)])


def _n_splits(test_fraction: float) -> int:
    """Number of splits: 3, or 2 without test images."""
    return TEST + 1 if test_fraction else VALIDATION + 1


def _assign_all_groups(labels: np.ndarray, groups: np.ndarray, targets: np.ndarray, seed: int) -> np.ndarray:
    """Split or fold of each image, int ``(N,)``: the best of :data:`N_ATTEMPTS`.

    Args:
        labels: int ``(N,)`` in 0 .. K - 1.
        groups: int ``(N,)``.
        targets: images of each split or fold and class, float ``(S, K)``.
        seed: of the random orders.

    Raises:
        ValueError: in every attempt, the deviation is above :data:`MAX_SPLIT_DEVIATION` or a split lacks a class.
    """
    _, groups = np.unique(groups, return_inverse=True)
    sizes = np.zeros((groups.max() + 1, targets.shape[1]), dtype=np.int64)
    np.add.at(sizes, (groups, labels), 1)

    rng = np.random.default_rng(seed)
    best, smallest = None, np.inf
    for _ in range(N_ATTEMPTS):
        split, assigned = _assign_groups(rng.permutation(len(sizes)), sizes, targets)
        deviation = _deviation(assigned, targets)
        if (assigned >= 1).all() and deviation < smallest:
            best, smallest = split, deviation
    if best is None or smallest > MAX_SPLIT_DEVIATION:
        result = "each attempt leaves out a class" if best is None else f"the best split deviates by {smallest:.1%}"
        raise ValueError(
            f"prepare.split.strategy grouped cannot meet the fractions within {MAX_SPLIT_DEVIATION:.0%}: {result}. "
            f"There are {len(sizes)} groups, {(sizes > 0).sum(axis=0).tolist()} by class, and the largest group has "
            f"{sizes.sum(axis=1).max() / len(labels):.1%} of the images. Use more images, other fractions, fewer "
            "folds, a higher validate.same_group_correlation (smaller groups), or the strategy stratified."
        )
    return np.asarray(best[groups])


def _assign_groups(order: np.ndarray, sizes: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Assign each group to the split that minimizes the squared distance of the counts from their targets.

    Args:
        order: permutation of the groups, int ``(G,)``.
        sizes: images of each group and class, int ``(G, K)``.
        targets: images of each split and class, float ``(S, K)``.

    Returns:
        split of each group, int ``(G,)``, and images of each split and class, float ``(S, K)``.
    """
    split, assigned = np.empty(len(sizes), dtype=np.int64), np.zeros_like(targets)
    n_by_class = targets.sum(axis=0)
    for group in order:
        size = sizes[group]
        # change of the squared distance for each split
        split[group] = np.argmin((size * (size + 2 * (assigned - targets)) / n_by_class**2).sum(axis=1))
        assigned[split[group]] += size
    return split, assigned


def _target_counts(counts: np.ndarray, test_fraction: float, validation_fraction: float) -> np.ndarray:
    """Number of images of each split and class, int ``(3, K)``; the sums over the splits are ``counts``, ``(K,)``."""
    test = _proportional(counts, round(counts.sum() * test_fraction))
    rest = counts - test
    validation = _proportional(rest, round(rest.sum() * validation_fraction))
    return np.stack([rest - validation, validation, test])


def _proportional(counts: np.ndarray, n: int) -> np.ndarray:
    """Distribute ``n`` images over the classes in proportion to ``counts``, int ``(K,)``.

    Numbers are rounded by the largest remainder method.
    """
    quotas = counts * n / max(counts.sum(), 1)
    shares = np.floor(quotas).astype(np.int64)
    shares[np.argsort(shares - quotas, kind="stable")[: n - shares.sum()]] += 1
    return np.asarray(shares)


def _deviation(assigned: np.ndarray, targets: np.ndarray) -> float:
    """Deviation of a split from its targets, both ``(S, K)``.

    It is the largest error of the fraction of a split, and of the fraction of a class in a split.
    """
    split_errors = abs(assigned.sum(axis=1) - targets.sum(axis=1)) / targets.sum()
    totals = np.maximum(assigned.sum(axis=1, keepdims=True), 1)
    class_errors = abs(assigned / totals - targets / targets.sum(axis=1, keepdims=True))
    return float(max(split_errors.max(), class_errors.max()))
