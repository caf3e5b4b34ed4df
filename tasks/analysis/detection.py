"""Detection of adversarial images by a score that is higher for adversarial images.

An image is flagged if its score is above a threshold. Clean validation images determine the threshold.
"""

from typing import Any

import numpy as np
import pandas as pd
import sklearn.metrics

from tasks.statistics.auroc import ordered_pairs
from tasks.statistics.groups import GroupJackknife
from tasks.statistics.intervals import RATE, UNDEFINED, Estimate
from tasks.statistics.rates import rate_estimate

MAX_POINTS = 200
"""Points of a ROC curve, at most."""
REJECTION_RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Fractions of the clean validation images that a detector rejects."""


def roc_curve(clean: np.ndarray, adversarial: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates over all thresholds, from (0, 0) to (1, 1), at most 200 points.

    The points are on the exact curve. Points between two equal steps are left out. If more than 200 points remain, some
    at even distances along the curve are kept; the others are at most about 0.01 away from a kept point.

    Args:
        clean: scores ``(N,)``.
        adversarial: scores ``(M,)``.

    Returns:
        Both float64 ``(P,)``, non-decreasing; no points if a score is NaN or one side has no scores.
    """
    if _is_undefined(clean, adversarial):
        return np.empty(0), np.empty(0)
    is_adversarial = np.repeat([0, 1], [len(clean), len(adversarial)])
    # ranks give the same curve as scores, which may be infinite
    _, rank = np.unique(np.concatenate([clean, adversarial]), return_inverse=True)
    rates = np.stack(sklearn.metrics.roc_curve(is_adversarial, rank, drop_intermediate=False)[:2])
    # drop_intermediate would keep the point after (0, 0) in any case; differences of counts, unlike rates, are exact
    counts = np.rint(rates * [[len(clean)], [len(adversarial)]])
    step_changes = (np.diff(counts, 2) != 0).any(axis=0)
    rates = rates[:, np.concatenate([[True], step_changes, [True]])]
    if rates.shape[1] > MAX_POINTS:
        stops = np.linspace(0, 2, MAX_POINTS)
        rates = rates[:, np.unique(np.searchsorted(rates.sum(axis=0), stops - 1e-9))]
    return rates[0], rates[1]


def threshold_at(clean: np.ndarray, false_positive_rate: float) -> float:
    """Smallest score of clean validation images with at most the given fraction of the images above it.

    Images at the threshold are not flagged. With ties there, fewer images than the fraction are flagged.

    Args:
        clean: scores of the validation images ``(N,)``; the threshold is NaN if one of them is NaN.
        false_positive_rate: the fraction, in [0, 1).

    Raises:
        ValueError: there are no validation images, or the fraction is outside [0, 1).
    """
    if not 0 <= false_positive_rate < 1:
        raise ValueError(
            f"false_positive_rate: {false_positive_rate}. [0, 1) is allowed. Change analyze.false_positive_rate"
        )
    if not len(clean):
        raise ValueError(
            "no validation images for the threshold of a detector: 0. At least 1 is needed. "
            "Raise prepare.split.validation_fraction"
        )
    # the small number is for rounding errors: 0.29 * 100 is 28.999...
    n_above = int(false_positive_rate * len(clean) + 1e-9)
    # NaN sorts last
    return float("nan") if np.isnan(clean).any() else float(np.sort(clean)[len(clean) - 1 - n_above])


def detection_row(
    clean: np.ndarray,
    adversarial: np.ndarray,
    clean_correct: np.ndarray,
    successful: np.ndarray,
    threshold: float,
    jackknife: GroupJackknife,
) -> dict[str, Any]:
    """AUROC and detection rates of a detector, as one row of ``detection.csv``.

    - ``n``, ``n_successful``: number of images, and of images with a successful attack; ``n_groups``,
      ``n_groups_successful``: numbers of their groups;
    - ``auroc``, ``auroc_successful``: over all images, and over the images with a successful attack (both versions of
      them); ``_low`` and ``_high`` are 95 % intervals by group; both versions of an image belong to its group;
    - ``threshold``: as given;
    - ``false_positive_rate``: share of the clean images that are flagged; ``detection_rate``: of the adversarial
      images; ``detection_rate_successful``: of the adversarial images with a successful attack;
      ``undetected_success_rate``: share of the images that are correct without an attack whose adversarial version is
      misclassified and not flagged; with 95 % intervals by group.

    NaN: an AUROC if one of its scores is NaN, or if all are equal; a rate if one of its scores or the threshold is NaN,
    or if it has no images.

    Args:
        clean: scores of the clean images ``(N,)``.
        adversarial: scores of their adversarial versions, in the same order, ``(N,)``.
        clean_correct: whether the clean images are classified correctly, bool ``(N,)``.
        successful: whether the attack is successful, bool ``(N,)``.
        threshold: images with a higher score are flagged.
        jackknife: of the images.
    """
    row: dict[str, Any] = {"n": len(clean), "n_groups": jackknife.n_groups, "n_successful": int(successful.sum())}
    row |= {"n_groups_successful": jackknife.select(successful).n_groups, "threshold": threshold}
    for name, chosen in {"auroc": np.full(len(clean), True), "auroc_successful": successful}.items():
        area = _paired_auroc(clean[chosen], adversarial[chosen], jackknife.select(chosen))
        row |= area.columns(name)
    by_rate = {
        "false_positive_rate": (clean, jackknife),
        "detection_rate": (adversarial, jackknife),
        "detection_rate_successful": (adversarial[successful], jackknife.select(successful)),
    }
    for name, (scores, of_images) in by_rate.items():
        is_defined = not np.isnan([*scores, threshold]).any()
        rate = rate_estimate(scores > threshold, of_images.groups) if is_defined else UNDEFINED
        row |= rate.columns(name)
    is_defined = not np.isnan([*adversarial, threshold]).any()
    undetected = successful & ~(adversarial > threshold)
    rate = rate_estimate(undetected, jackknife.groups, clean_correct) if is_defined else UNDEFINED
    name = "undetected_success_rate"
    return row | rate.columns(name)


def rejection_rows(
    clean: np.ndarray,
    adversarial: np.ndarray,
    clean_correct: np.ndarray,
    correct: np.ndarray,
    validation: np.ndarray,
    groups: np.ndarray,
) -> pd.DataFrame:
    """Accuracy of a classifier behind a detector that rejects images with a score above a threshold.

    An image that is not rejected is accepted. Columns:

    - ``nominal_false_positive_rate``: fraction of the clean validation images above the ``threshold``
    - ``clean_rejection_rate``, ``adversarial_rejection_rate``: fractions of the clean and of the adversarial images
      that are rejected
    - ``clean_accepted_accuracy``, ``accepted_accuracy``: accuracies on the accepted clean images and on the
      ``n_accepted`` accepted adversarial images; NaN if all images are rejected
    - ``undetected_error_rate``: fraction of all adversarial images that are accepted and misclassified

    All rates have 95 % intervals by group. The first row is the classifier without a detector: its threshold is
    infinite.

    Args:
        clean: scores of the clean images, ``(N,)``.
        adversarial: scores of their adversarial versions, ``(N,)``.
        clean_correct: whether the clean images are classified correctly, bool ``(N,)``.
        correct: whether the adversarial versions are, bool ``(N,)``.
        validation: scores of clean validation images, which determine the thresholds, ``(V,)``.
        groups: group of each image, int ``(N,)``.
    """
    rows = []
    for rate in (0.0, *REJECTION_RATES):
        threshold = threshold_at(validation, rate) if rate else float("inf")
        # an image without a score is accepted
        accepted_clean, accepted = ~(clean > threshold), ~(adversarial > threshold)
        row = {"nominal_false_positive_rate": rate, "threshold": threshold, "n_accepted": int(accepted.sum())}
        for name, successes, trials in (
            ("clean_rejection_rate", ~accepted_clean, None),
            ("adversarial_rejection_rate", ~accepted, None),
            ("clean_accepted_accuracy", accepted_clean & clean_correct, accepted_clean),
            ("accepted_accuracy", accepted & correct, accepted),
            ("undetected_error_rate", accepted & ~correct, None),
        ):
            row |= rate_estimate(successes, groups, trials).columns(name)
        rows.append(row)
    return pd.DataFrame(rows)


def _paired_auroc(clean: np.ndarray, adversarial: np.ndarray, jackknife: GroupJackknife) -> Estimate:
    """AUROC without the pairs of the two versions of one image, which are not independent; NaN if it is undefined.

    It is undefined if all scores are equal: 0.5 would look like a measured overlap.
    """
    if _is_undefined(clean, adversarial) or np.ptp([clean, adversarial]) == 0:
        return UNDEFINED
    both = GroupJackknife(np.tile(jackknife.groups, 2))
    n_ordered, n_pairs = ordered_pairs(np.concatenate([clean, adversarial]), np.repeat([False, True], len(clean)), both)
    own_pairs = jackknife.counts @ ((np.sign(adversarial - clean) + 1) / 2)
    n_ordered, n_pairs = n_ordered - own_pairs, n_pairs - jackknife.counts.sum(axis=1)
    areas = np.divide(n_ordered, n_pairs, out=np.full(len(n_pairs), np.nan), where=n_pairs > 0)
    low, high = jackknife.interval(areas, RATE)
    return Estimate(float(areas[0]), float(low), float(high))


def _is_undefined(clean: np.ndarray, adversarial: np.ndarray) -> bool:
    return not len(clean) or not len(adversarial) or bool(np.isnan(clean).any() or np.isnan(adversarial).any())
