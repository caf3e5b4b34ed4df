"""Leakage: the fraction of the test images with a relative, an image of the same patient, in training.

With patient ids leakage is exact. Without them it is unknown: the split is drawn by the inferred groups, so they cannot
verify it. There are two measurements instead. :func:`estimate_leakage` uses another similarity than the groups, and
:func:`sweep_grouping` shows how much the leakage depends on the threshold of the groups.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.dataset.images import luma
from tasks.dataset.manifest import adjacent_slice_pairs, connected_component_ids, thumbnail

if TYPE_CHECKING:
    import pandas as pd

N_BINS = 64
"""Bins of the histograms of grey levels."""
FALSE_POSITIVE_RATE = 0.05
"""Fraction of the images without a relative in training that the threshold of :func:`estimate_leakage` flags."""
SWEEP = tuple(round(0.3 + 0.05 * i, 2) for i in range(13))
"""Thresholds of :func:`sweep_grouping`: 0.3 to 0.9."""


def leakage_fractions(table: "pd.DataFrame") -> dict[str, float]:
    """Return the fractions of the test images with a near-duplicate, or another image of their group, in training.

    With patient ids, ``patient_in_train`` is the exact leakage.

    Args:
        table: one row for each image; columns ``split``, ``near_duplicate_group``, ``group`` and, if the ids are known,
            ``patient``.
    """
    test, train = table[table["split"] == "test"], table[table["split"] == "train"]
    units = {"near_duplicate_in_train": "near_duplicate_group", "group_in_train": "group"}
    if has_patients(table):
        units["patient_in_train"] = "patient"
    return {key: float(test[column].isin(train[column]).mean()) for key, column in units.items()}


def has_patients(table: "pd.DataFrame") -> bool:
    """Return True if the patient of every image is known: the column ``patient`` exists and has no missing value."""
    return "patient" in table and bool(table["patient"].notna().all())


def measure_leakage(table: "pd.DataFrame", pixels: np.ndarray) -> dict[str, Any]:
    """Return the content of ``leakage.json``.

    Args:
        table: as for :func:`leakage_fractions`, and ``path`` and ``label``; in the order of the files.
        pixels: the images, uint8 ``(N, C, H, W)``.

    Returns:
        ``outcome`` (``exact`` with patient ids, else ``unverified``), ``fractions`` from :func:`leakage_fractions`,
        ``estimate`` from :func:`estimate_leakage` and ``sweep`` from :func:`sweep_grouping`. With patient ids and
        ``inferred_group`` also ``inferred_groups`` from :func:`compare_groups`.
    """
    labels, split = table["label"].to_numpy(), table["split"].to_numpy()
    units = table["patient" if has_patients(table) else "group"].factorize()[0]
    folders = [Path(path).parent for path in table["path"]]
    thumbnails = np.array(
        [thumbnail(image[0] if len(image) == 1 else luma(image.transpose(1, 2, 0))) for image in pixels]
    )
    leakage = {
        "outcome": "exact" if has_patients(table) else "unverified",
        "fractions": leakage_fractions(table),
        "estimate": estimate_leakage(histograms(pixels), labels, units, split),
        "sweep": sweep_grouping(thumbnails, folders, table["near_duplicate_group"].to_numpy(), split),
    }
    if has_patients(table) and "inferred_group" in table:
        leakage["inferred_groups"] = compare_groups(table["inferred_group"].to_numpy(), units)
    return leakage


def compare_groups(inferred: np.ndarray, patients: np.ndarray) -> dict[str, float | int | None]:
    """Compare inferred groups with patients, over all pairs of images.

    Args:
        inferred: int ``(N,)``.
        patients: int ``(N,)``.

    Returns:
        ``precision``: fraction of the pairs in one inferred group that show one patient. ``recall``: fraction of the
        pairs of one patient that are in one inferred group. None without such pairs. ``n_inferred`` and ``n_patients``:
        numbers of groups.
    """
    both = np.unique(np.column_stack([inferred, patients]), axis=0, return_counts=True)[1]
    n_pairs, in_group, of_patient = (
        int((counts * (counts - 1) // 2).sum())
        for counts in (both, *(np.unique(values, return_counts=True)[1] for values in (inferred, patients)))
    )
    return {
        "precision": n_pairs / in_group if in_group else None,
        "recall": n_pairs / of_patient if of_patient else None,
        "n_inferred": len(np.unique(inferred)),
        "n_patients": len(np.unique(patients)),
    }


def histograms(pixels: np.ndarray) -> np.ndarray:
    """Return the square roots of the histograms of grey levels, float64 ``(N, 64)``, each with norm 1.

    The scalar product of two of them is their Bhattacharyya coefficient, in [0, 1], 1 for equal histograms
    (Bhattacharyya 1943, "On a measure of divergence between two statistical populations defined by their probability
    distributions"). A histogram has no positions, so it differs from the thumbnails that made the groups.

    Args:
        pixels: uint8 ``(N, ...)``.
    """
    counts = [np.bincount(image.ravel() // (256 // N_BINS), minlength=N_BINS) for image in pixels]
    return np.asarray(np.sqrt(np.array(counts) / pixels[0].size))


def estimate_leakage(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, split: np.ndarray) -> dict[str, Any]:
    """Estimate the leakage from the nearest training image of each test image.

    The null distribution is the similarity to the nearest image after an exchange: the training images of the own class
    are replaced by equally many training images of other classes, over all random choices. Two images of different
    classes seldom show one patient. The threshold of a class is the similarity that :data:`FALSE_POSITIVE_RATE` of its
    images exceed under the null. Test images above the threshold are flagged. With the flagged fraction F and the
    false-positive rate a, the estimate is (F - a) / (1 - a) (Rogan and Gladen 1978, "Estimating prevalence from the
    results of a screening test", with sensitivity 1).

    The estimate has systematic errors that the interval does not include. It is too high if images of one class are
    similar for another reason than the patient, such as one scanner or one publication. It is too low if images of one
    patient differ, or if patients have images in several classes.

    Args:
        features: one vector of norm 1 for each image, float ``(N, D)``; the similarity is their scalar product.
        labels: int ``(N,)``.
        groups: the unit of the interval, int ``(N,)``.
        split: ``train``, ``validation`` or ``test``, str ``(N,)``; other values are ignored.

    Returns:
        ``value``, and the bounds ``low`` and ``high`` of its 95 % interval by group: delete-one-group jackknife with
        Student's t, and Clopper and Pearson's bound if no image or every image is flagged. ``n_flagged``, ``n_images``
        (test images) and ``n_groups`` (their groups). Value, bounds and ``n_flagged`` are None if a class of the test
        images has no training images, or if the other classes have none.
    """
    test, train = np.flatnonzero(split == "test"), np.flatnonzero(split == "train")
    test_groups = groups[test]
    size = {"n_images": len(test), "n_groups": len(np.unique(test_groups))}
    similarity, null = np.empty(len(test)), {}
    for label in np.unique(labels[test]):
        own, other = train[labels[train] == label], train[labels[train] != label]
        if not len(own) or not len(other):
            return {**dict.fromkeys(("value", "low", "high", "n_flagged")), **size}
        of_class = labels[test] == label
        similarity[of_class] = (features[test[of_class]] @ features[own].T).max(axis=1)
        null[label] = _null_threshold(features, np.flatnonzero(labels == label), other, len(own))

    def flagged(is_counted: np.ndarray) -> np.ndarray:
        """Flags of the test images, bool ``(n,)``, with the null distribution of some images, bool ``(N,)``."""
        thresholds = {label: threshold(is_counted) for label, threshold in null.items()}
        return np.asarray(similarity > np.array([thresholds[label] for label in labels[test]]))

    flags = flagged(np.ones(len(groups), dtype=bool))
    fraction = flags.mean()
    # a group of all test images cannot be left out
    deleted = [
        flagged(groups != group)[rows].mean() for group in np.unique(groups) if (rows := test_groups != group).any()
    ]
    low, high = _interval(float(fraction), np.array(deleted), size["n_groups"])
    value, low, high = (
        float(np.clip((bound - FALSE_POSITIVE_RATE) / (1 - FALSE_POSITIVE_RATE), 0, 1))
        for bound in (fraction, low, high)
    )
    return {"value": value, "low": low, "high": high, "n_flagged": int(flags.sum()), **size}


def sweep_grouping(
    thumbnails: np.ndarray, folders: Sequence[Path], near_duplicate_groups: np.ndarray, split: np.ndarray
) -> list[dict[str, Any]]:
    """Return the leakage of a split by the groups of other values of ``validate.same_group_correlation``.

    Groups of a lower threshold are larger: they contain the groups of a higher one.

    Args:
        thumbnails: float ``(N, D)``, in the order of the files.
        folders: folder of each file.
        near_duplicate_groups: int ``(N,)``; these images belong together at every threshold.
        split: ``train``, ``validation`` or ``test``, str ``(N,)``.

    Returns:
        ``same_group_correlation``, ``n_groups`` (of all images) and ``group_in_train`` (fraction of the test images),
        for each threshold of :data:`SWEEP`.
    """
    _, first, inverse = np.unique(near_duplicate_groups, return_index=True, return_inverse=True)
    near_duplicates = np.column_stack([first[inverse], np.arange(len(split))])
    rows = []
    for threshold in SWEEP:
        adjacent = adjacent_slice_pairs(thumbnails, list(folders), threshold)
        groups = connected_component_ids(len(split), np.concatenate([near_duplicates, adjacent]))
        leaked = np.isin(groups[split == "test"], groups[split == "train"]).mean()
        n_groups = int(groups.max()) + 1
        rows.append({"same_group_correlation": threshold, "n_groups": n_groups, "group_in_train": float(leaked)})
    return rows


def _null_threshold(
    features: np.ndarray, images: np.ndarray, other: np.ndarray, n_own: int
) -> Callable[[np.ndarray], float]:
    """Prepare the null distribution of one class.

    Args:
        features: of all images, ``(N, D)``.
        images: all images of the class, of every split: none of them has a relative in another class.
        other: training images of the other classes.
        n_own: number of training images of the class.

    Returns:
        function from the images that count, bool ``(N,)``, to the threshold.
    """
    n = min(n_own, len(other))
    # probability that the k-th nearest image is the nearest one of n random images (hypergeometric)
    k = np.arange(len(other) - 1)
    probability = n / len(other) * np.concatenate([[1], np.cumprod(1 - (n - 1) / (len(other) - 1 - k))])
    # the tail has no influence, but costs time
    n_kept = int(np.searchsorted(np.cumsum(probability), 0.999)) + 1
    nearest = -np.sort(-(features[images] @ features[other].T), axis=1)[:, :n_kept]
    order = np.argsort(-nearest.ravel(), kind="stable")
    values = nearest.ravel()[order]
    weights = np.tile(probability[:n_kept], len(images))[order]
    image = np.repeat(images, n_kept)[order]
    # fewer images than the own class has: among n_own, the nearest one would be nearer
    level = 1 - (1 - FALSE_POSITIVE_RATE) ** (n / n_own)

    def threshold(is_counted: np.ndarray) -> float:
        cumulative = np.cumsum(weights * is_counted[image])
        return float(values[np.searchsorted(cumulative, level * cumulative[-1])])

    return threshold


def _interval(fraction: float, deleted: np.ndarray, n_groups: int) -> tuple[float, float]:
    """Return the 95 % interval of a fraction from its values without each group, ``(G,)``."""
    from scipy.stats import t

    if fraction in (0, 1):
        bound = 0.025 ** (1 / n_groups)
        return (0.0, 1 - bound) if fraction == 0 else (bound, 1.0)
    if n_groups == 1:
        return 0.0, 1.0
    n = len(deleted)
    half_width = t.ppf(0.975, n_groups - 1) * np.sqrt((n - 1) / n * np.square(deleted - deleted.mean()).sum())
    return fraction - half_width, fraction + half_width
