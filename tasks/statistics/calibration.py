"""Calibration: does a prediction of confidence 0.8 hold in 80 % of cases?

The confidence of a prediction is the largest probability of the softmax.
"""

import numpy as np
import pandas as pd

from tasks.statistics.intervals import wilson

N_BINS = 15
"""Bins of equal width over confidences in [0, 1], each closed on the right, as in Guo et al. 2017."""


def reliability_curve(confidence: np.ndarray, correct: np.ndarray) -> pd.DataFrame:
    """Accuracy against confidence (Guo et al. 2017, arXiv 1706.04599, section 2), a row for each of the 15 bins.

    Columns: ``bin`` from 0; ``n`` predictions; mean ``confidence``; ``accuracy`` and its 95 % Wilson interval ``low``,
    ``high``. All but the first two are NaN in an empty bin.

    Args:
        confidence: ``(N,)`` in [0, 1].
        correct: bool ``(N,)``.

    Raises:
        ValueError: a confidence lies outside [0, 1].
    """
    bins = _bin(confidence)
    n = np.bincount(bins, minlength=N_BINS)
    n_correct = np.bincount(bins, weights=correct, minlength=N_BINS)
    total_confidence = np.bincount(bins, weights=confidence, minlength=N_BINS)
    filled = np.where(n > 0, n, np.nan)
    low, high = wilson(n_correct, n)
    return pd.DataFrame(
        {
            "bin": np.arange(N_BINS),
            "n": n,
            "confidence": total_confidence / filled,
            "accuracy": n_correct / filled,
            "low": low,
            "high": high,
        }
    )


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean gap between accuracy and confidence over the bins (Guo et al. 2017, equation 5), float64 ``(R,)`` in [0, 1].

    Chance alone makes gaps, so even a calibrated predictor has an error above 0 (about 0.02 for 500 images, 0.04 for
    100). Resampling adds to them: a percentile interval holds a larger error as it should, but never reaches 0.

    Args:
        confidence: ``(N,)`` in [0, 1].
        correct: bool ``(N,)``.
        counts: how often each image counts in each resample, ``(R, N)``.

    Raises:
        ValueError: a confidence lies outside [0, 1].
    """
    gaps = np.zeros((len(confidence), N_BINS))
    gaps[np.arange(len(confidence)), _bin(confidence)] = correct - confidence
    error: np.ndarray = np.abs(counts @ gaps).sum(axis=1) / counts.sum(axis=1)
    return error


def brier_scores(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Squared differences from the truth, summed over the classes (Brier 1950), float64 ``(N,)`` in [0, 2].

    Over two classes it is twice what is also called Brier score, the squared difference of one class.

    Args:
        probabilities: ``(N, K)``, rows sum to 1.
        labels: true classes, int ``(N,)``.
    """
    differences = probabilities.astype(np.float64)
    differences[np.arange(len(labels)), labels] -= 1
    scores: np.ndarray = (differences**2).sum(axis=1)
    return scores


def _bin(confidence: np.ndarray) -> np.ndarray:
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("confidences must lie in [0, 1]")
    # closed on the right: a confidence of 1 belongs to the last bin, and 0 to the first
    bins: np.ndarray = np.maximum(np.ceil(confidence * N_BINS).astype(np.int64) - 1, 0)
    return bins
