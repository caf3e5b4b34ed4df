"""Detection of adversarial images by a score that is higher for adversarial images.

An image is flagged if its score is above a threshold. Clean validation images determine the threshold.
"""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import sklearn.metrics

from tasks.analysis.tables import UNDEFINED
from tasks.statistics.intervals import bootstrap, resampled_auroc, wilson

MAX_POINTS = 200
"""Points of a ROC curve, at most."""
GATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Shares of the clean validation images that a gate rejects."""


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


def threshold_at(clean: np.ndarray, false_positive_rate: float = 0.05) -> float:
    """Smallest score of clean validation images with at most the given share of the images above it.

    Images at the threshold are not flagged. With ties there, fewer images than the share are flagged.

    Args:
        clean: scores of the validation images ``(N,)``; the threshold is NaN if one of them is NaN.
        false_positive_rate: the share, in [0, 1).

    Raises:
        ValueError: there are no validation images, or the share is outside [0, 1).
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
    clean: np.ndarray, adversarial: np.ndarray, successful: np.ndarray, threshold: float, counts: np.ndarray
) -> dict[str, Any]:
    """AUROC and detection rates of a detector, as one row of ``detection.csv``.

    - ``n``, ``n_successful``: number of images, and of images with a successful attack;
    - ``auroc``, ``auroc_successful``: over all images, and over the images with a successful attack (both versions of
      them); ``_low`` and ``_high`` are 95 % bootstrap intervals, with both versions of an image drawn together;
    - ``threshold``: as given;
    - ``false_positive_rate``: share of the clean images that are flagged; ``detection_rate``: of the adversarial
      images; ``detection_rate_successful``: of the adversarial images with a successful attack; with 95 % Wilson
      intervals.

    NaN: an AUROC if one of its scores is NaN; a rate if one of its scores or the threshold is NaN, or if it has no
    images.

    Args:
        clean: scores of the clean images ``(N,)``.
        adversarial: scores of their adversarial versions, in the same order, ``(N,)``.
        successful: whether the attack is successful, bool ``(N,)``.
        threshold: images with a higher score are flagged.
        counts: of :func:`tasks.statistics.intervals.bootstrap_counts`, ``(R, N)``.
    """
    row: dict[str, Any] = {"n": len(clean), "n_successful": int(successful.sum()), "threshold": threshold}
    for name, chosen in {"auroc": np.full(len(clean), True), "auroc_successful": successful}.items():
        pair, area = (clean[chosen], adversarial[chosen]), UNDEFINED
        if not _is_undefined(*pair):
            area = bootstrap(partial(_paired_auroc, *pair), counts[:, chosen])
        row |= {name: area.value, f"{name}_low": area.low, f"{name}_high": area.high}
    by_rate = {
        "false_positive_rate": clean,
        "detection_rate": adversarial,
        "detection_rate_successful": adversarial[successful],
    }
    for name, scores in by_rate.items():
        is_defined = len(scores) > 0 and not np.isnan([*scores, threshold]).any()
        n_flagged, n_scores = (int((scores > threshold).sum()), len(scores)) if is_defined else (0, 0)
        low, high = wilson(n_flagged, n_scores)
        row[name] = n_flagged / n_scores if is_defined else float("nan")
        row |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return row


def gate_rows(
    clean: np.ndarray,
    adversarial: np.ndarray,
    clean_correct: np.ndarray,
    correct: np.ndarray,
    validation: np.ndarray,
) -> pd.DataFrame:
    """Accuracy of a classifier behind a gate: a detector that rejects images with a score above a threshold.

    Columns: ``aimed`` (share of the clean validation images above the threshold), ``threshold``; ``rejected_clean`` and
    ``rejected``, the shares of the clean and of the adversarial images above it; ``clean_accuracy`` and ``accuracy``
    over the images that are not rejected, ``n_passed`` of them adversarial; ``harm``, the share of all adversarial
    images that are not rejected and are misclassified. The last two have 95 % Wilson intervals. An accuracy is NaN if
    all images are rejected.

    The first row is the classifier without a gate: its threshold is infinite.

    Args:
        clean: scores of the clean images, ``(N,)``.
        adversarial: scores of their adversarial versions, ``(N,)``.
        clean_correct: whether the clean images are classified correctly, bool ``(N,)``.
        correct: whether the adversarial versions are, bool ``(N,)``.
        validation: scores of clean validation images, which determine the thresholds, ``(V,)``.
    """
    rows = []
    for aimed in (0.0, *GATES):
        threshold = threshold_at(validation, aimed) if aimed else float("inf")
        # an image without a score is not rejected
        clean_passes, passes = ~(clean > threshold), ~(adversarial > threshold)
        n_passed, n_correct = int(passes.sum()), int((passes & correct).sum())
        low, high = wilson(n_correct, n_passed)
        harm_low, harm_high = wilson(n_passed - n_correct, len(adversarial))
        rows.append(
            {
                "aimed": aimed,
                "threshold": threshold,
                "rejected_clean": 1 - clean_passes.mean(),
                "rejected": 1 - passes.mean(),
                "clean_accuracy": clean_correct[clean_passes].mean() if clean_passes.any() else float("nan"),
                "n_passed": n_passed,
                "accuracy": n_correct / n_passed if n_passed else float("nan"),
                "accuracy_low": float(low),
                "accuracy_high": float(high),
                "harm": (n_passed - n_correct) / len(adversarial),
                "harm_low": float(harm_low),
                "harm_high": float(harm_high),
            }
        )
    return pd.DataFrame(rows)


def _paired_auroc(clean: np.ndarray, adversarial: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """AUROC in each resample without the pairs of the two versions of one image, float64 ``(R,)``.

    The two versions are not independent, and a resample with the image drawn twice would count their pair four times.
    """
    n = len(clean)
    over_all_pairs = resampled_auroc(
        np.concatenate([clean, adversarial]), np.repeat([False, True], n), np.hstack([counts, counts])
    )
    own_pair = (np.sign(adversarial - clean) + 1) / 2
    squares = counts.astype(np.float64) ** 2
    n_pairs, n_own = counts.sum(axis=1, dtype=np.float64) ** 2, squares.sum(axis=1)
    n_ordered, n_left = over_all_pairs * n_pairs - squares @ own_pair, n_pairs - n_own
    area: np.ndarray = np.divide(n_ordered, n_left, out=np.full(len(counts), np.nan), where=n_left > 0)
    return area


def _is_undefined(clean: np.ndarray, adversarial: np.ndarray) -> bool:
    return not len(clean) or not len(adversarial) or bool(np.isnan(clean).any() or np.isnan(adversarial).any())
