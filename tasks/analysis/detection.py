"""Detection: can an input be told to be adversarial from one score? Higher scores mean more adversarial.

An input is flagged where its score lies above a threshold that clean validation images have set.
"""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from tasks.statistics.intervals import Estimate, bootstrap, resampled_auroc, wilson

UNDEFINED = Estimate(float("nan"), float("nan"), float("nan"))

MAX_POINTS = 200
"""Points of a ROC curve, at most."""
GATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Shares of the clean validation images that a gate turns away."""


def auroc(clean: np.ndarray, adversarial: np.ndarray) -> float:
    """Chance that an adversarial image has a higher score than a clean one, ties counted as half, in [0, 1].

    Args:
        clean: scores ``(N,)``.
        adversarial: scores ``(M,)``.

    Returns:
        NaN where a score is NaN, or one side has none.
    """
    if _undefined(clean, adversarial):
        return float("nan")
    scores, positive = np.concatenate([clean, adversarial]), np.repeat([False, True], [len(clean), len(adversarial)])
    return float(resampled_auroc(scores, positive, np.ones((1, len(scores))))[0])


def roc_curve(clean: np.ndarray, adversarial: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates over all thresholds, from (0, 0) to (1, 1), at most 200 points.

    The points are corners of the exact curve: all of them where 200 suffice, else some that are spread evenly along it,
    which leave out no corner that is more than about 0.01 away from them.

    Args:
        clean: scores ``(N,)``.
        adversarial: scores ``(M,)``.

    Returns:
        Both float64 ``(P,)``, rising; without any point where a score is NaN, or one side has none.
    """
    if _undefined(clean, adversarial):
        return np.empty(0), np.empty(0)
    levels, level = np.unique(np.concatenate([clean, adversarial]), return_inverse=True)
    false, true = (
        np.concatenate([[0], np.bincount(of_side, minlength=len(levels))[::-1].cumsum()])
        for of_side in np.split(level, [len(clean)])
    )
    bends = (np.diff(false, 2) != 0) | (np.diff(true, 2) != 0)
    kept = np.flatnonzero(np.concatenate([[True], bends, [True]]))
    rates = np.stack([false[kept] / len(clean), true[kept] / len(adversarial)])
    if len(kept) > MAX_POINTS:
        stops = np.linspace(0, 2, MAX_POINTS)
        rates = rates[:, np.unique(np.searchsorted(rates.sum(axis=0), stops - 1e-9))]
    return rates[0], rates[1]


def threshold_at(clean: np.ndarray, false_positive_rate: float = 0.05) -> float:
    """The smallest score of clean validation images above which at most the given share of them lies.

    An image is flagged above the threshold, not at it: where images tie there, fewer than the share are flagged.

    Args:
        clean: scores of the validation images ``(N,)``; the threshold is NaN where one is NaN.
        false_positive_rate: the share, in [0, 1).

    Raises:
        ValueError: no validation images, or an impossible share.
    """
    if not 0 <= false_positive_rate < 1:
        raise ValueError(f"false_positive_rate must lie in [0, 1), not {false_positive_rate}")
    if not len(clean):
        raise ValueError("a threshold needs the scores of at least 1 validation image")
    # 0.29 of 100 images are 29, which floating point takes for 28.999...
    n_above = int(false_positive_rate * len(clean) + 1e-9)
    # NaN sorts last
    return float("nan") if np.isnan(clean).any() else float(np.sort(clean)[len(clean) - 1 - n_above])


def detection_row(
    clean: np.ndarray, adversarial: np.ndarray, successful: np.ndarray, threshold: float, counts: np.ndarray
) -> dict[str, Any]:
    """How well a detector tells the adversarial versions of images from the images.

    - ``n``, ``n_successful``: images, and those on which the attack was successful;
    - ``auroc``, ``auroc_successful``: of all images, and of those on which the attack was successful against these same
      images clean; with ``_low``, ``_high``, 95 % by bootstrap, both versions drawn together;
    - ``threshold``: as given;
    - ``false_positive_rate``: share of the clean images that are flagged; ``detection_rate``: of the adversarial ones;
      ``detection_rate_successful``: of the adversarial ones that fool the model; each with its 95 % Wilson interval.

    NaN: the AUROC where any score is NaN; a rate where a score of its images or the threshold is NaN, or where it has
    no images.

    Args:
        clean: scores ``(N,)``.
        adversarial: scores of the adversarial versions of the same images, in the same order, ``(N,)``.
        successful: bool ``(N,)``.
        threshold: above which an image is flagged.
        counts: of :func:`tasks.statistics.intervals.bootstrap_counts`, ``(R, N)``.
    """
    row: dict[str, Any] = {"n": len(clean), "n_successful": int(successful.sum()), "threshold": threshold}
    for name, chosen in {"auroc": np.full(len(clean), True), "auroc_successful": successful}.items():
        pair, area = (clean[chosen], adversarial[chosen]), UNDEFINED
        if not _undefined(*pair):
            area = bootstrap(partial(_twin_auroc, *pair), counts[:, chosen])
        row |= {name: area.value, f"{name}_low": area.low, f"{name}_high": area.high}
    flagged = {
        "false_positive_rate": clean,
        "detection_rate": adversarial,
        "detection_rate_successful": adversarial[successful],
    }
    for name, scores in flagged.items():
        defined = len(scores) > 0 and not np.isnan([*scores, threshold]).any()
        n_flagged, n_scores = (int((scores > threshold).sum()), len(scores)) if defined else (0, 0)
        low, high = wilson(n_flagged, n_scores)
        row[name] = n_flagged / n_scores if defined else float("nan")
        row |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return row


def gate_rows(
    clean: np.ndarray,
    attacked: np.ndarray,
    clean_right: np.ndarray,
    attacked_right: np.ndarray,
    validation: np.ndarray,
) -> pd.DataFrame:
    """A detector as a gate before the classifier: what passes it, at thresholds that turn more and more images away.

    Columns: ``aimed`` (share of the clean validation images above the threshold), ``threshold``; ``rejected_clean`` and
    ``rejected``, shares of the clean and of the attacked images above it; of those that pass, the ``clean_accuracy``
    and, of ``n_passed`` attacked ones, the ``accuracy``; and ``harm``, the share of all attacked images that pass and
    are classified wrongly. The last two with their 95 % Wilson intervals; NaN where nothing passes.

    The first row is no gate at all: threshold infinite, nothing turned away.

    Args:
        clean: scores of the images as they are, ``(N,)``.
        attacked: of the attacked versions, ``(N,)``.
        clean_right: whether the classifier is right on the first, bool ``(N,)``.
        attacked_right: and on the second, bool ``(N,)``.
        validation: scores of clean validation images, which set the thresholds, ``(V,)``.
    """
    rows = []
    for aimed in (0.0, *GATES):
        threshold = threshold_at(validation, aimed) if aimed else float("inf")
        # what is not above the threshold passes, also what has no score
        clean_passes, passes = ~(clean > threshold), ~(attacked > threshold)
        n_passed, n_right = int(passes.sum()), int((passes & attacked_right).sum())
        low, high = wilson(n_right, n_passed)
        harm_low, harm_high = wilson(n_passed - n_right, len(attacked))
        rows.append(
            {
                "aimed": aimed,
                "threshold": threshold,
                "rejected_clean": 1 - clean_passes.mean(),
                "rejected": 1 - passes.mean(),
                "clean_accuracy": clean_right[clean_passes].mean() if clean_passes.any() else float("nan"),
                "n_passed": n_passed,
                "accuracy": n_right / n_passed if n_passed else float("nan"),
                "accuracy_low": float(low),
                "accuracy_high": float(high),
                "harm": (n_passed - n_right) / len(attacked),
                "harm_low": float(harm_low),
                "harm_high": float(harm_high),
            }
        )
    return pd.DataFrame(rows)


def _twin_auroc(clean: np.ndarray, adversarial: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """AUROC in each resample, without the pairs of an image and its own adversarial version; float64 ``(R,)``.

    The two are no independent draws, and a resample that draws an image twice would count their pair four times.
    """
    n = len(clean)
    of_all = resampled_auroc(
        np.concatenate([clean, adversarial]), np.repeat([False, True], n), np.hstack([counts, counts])
    )
    own = (np.sign(adversarial - clean) + 1) / 2
    squares = counts.astype(np.float64) ** 2
    n_pairs, n_own = counts.sum(axis=1, dtype=np.float64) ** 2, squares.sum(axis=1)
    ordered, n_left = of_all * n_pairs - squares @ own, n_pairs - n_own
    area: np.ndarray = np.divide(ordered, n_left, out=np.full(len(counts), np.nan), where=n_left > 0)
    return area


def _undefined(clean: np.ndarray, adversarial: np.ndarray) -> bool:
    return not len(clean) or not len(adversarial) or bool(np.isnan(clean).any() or np.isnan(adversarial).any())
