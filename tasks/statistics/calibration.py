"""Calibration: agreement of the confidence of predictions with their accuracy.

Predictions with confidence 0.8 are calibrated if 80 % of them are correct. The confidence is the largest probability of
the softmax.
"""

import numpy as np
import pandas as pd

from tasks.statistics.rates import rate_estimates

N_BINS = 15
"""Number of bins of equal width over [0, 1], each closed on the right, as in Guo et al. 2017 (arXiv 1706.04599)."""


def reliability_curve(confidence: np.ndarray, correct: np.ndarray, groups: np.ndarray) -> pd.DataFrame:
    """Return accuracy against confidence, a row for each of the 15 bins (Guo et al. 2017, section 2).

    Args:
        confidence: confidence of each prediction, ``(N,)`` in [0, 1].
        correct: True for correct predictions, bool ``(N,)``.
        groups: group of the image of each prediction, int ``(N,)``.

    Returns:
        Columns ``bin``, from 0; ``n``, the number of predictions; mean ``confidence``; ``accuracy``, with its 95 %
        interval by group, ``low`` and ``high``; they are NaN in a bin with too few groups. In an empty bin all but
        ``bin`` and ``n`` are NaN.

    Raises:
        ValueError: a confidence is outside [0, 1].
    """
    bins = _bin(confidence)
    n = np.bincount(bins, minlength=N_BINS)
    total_confidence = np.bincount(bins, weights=confidence, minlength=N_BINS)
    in_bin = bins == np.arange(N_BINS)[:, None]
    accuracy = pd.DataFrame(rate_estimates(in_bin & correct, groups, in_bin)).rename(columns={"value": "accuracy"})
    mean_confidence = total_confidence / np.where(n > 0, n, np.nan)
    return pd.DataFrame({"bin": np.arange(N_BINS), "n": n, "confidence": mean_confidence}).join(accuracy)


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the expected calibration error of each resample, float64 ``(R,)`` in [0, 1].

    It is the mean gap between accuracy and confidence over the bins (Guo et al. 2017, equation 5). The estimate is
    biased upwards: a calibrated classifier has about 0.02 with 500 images and 0.04 with 100. So its interval does not
    contain 0.

    Args:
        confidence: confidence of each prediction, ``(N,)`` in [0, 1].
        correct: True for correct predictions, bool ``(N,)``.
        counts: how often each resample contains each image, ``(R, N)``.

    Raises:
        ValueError: a confidence is outside [0, 1].
    """
    gaps = np.zeros((len(confidence), N_BINS))
    gaps[np.arange(len(confidence)), _bin(confidence)] = correct - confidence
    error: np.ndarray = np.abs(counts @ gaps).sum(axis=1) / counts.sum(axis=1)
    return error


def brier_scores(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the Brier score of each prediction, float64 ``(N,)`` in [0, 2].

    It is the squared difference between probabilities and one-hot labels, summed over the classes (Brier 1950). For two
    classes, another definition uses one class only and gives half of this value.

    Args:
        probabilities: predicted probabilities, ``(N, K)``, rows sum to 1.
        labels: true classes, int ``(N,)``.
    """
    differences = probabilities.astype(np.float64)
    differences[np.arange(len(labels)), labels] -= 1
    scores: np.ndarray = (differences**2).sum(axis=1)
    return scores


def _bin(confidence: np.ndarray) -> np.ndarray:
    """Return the number of the bin of each confidence, int64 ``(N,)``."""
    if (outside := ~((confidence >= 0) & (confidence <= 1))).any():
        raise ValueError(
            f"a confidence is {confidence[outside][0]:g}. All confidences must lie in [0, 1]. Pass probabilities of a "
            "softmax"
        )
    # closed on the right: 1 belongs to the last bin; 0 belongs to the first
    bins: np.ndarray = np.maximum(np.ceil(confidence * N_BINS).astype(np.int64) - 1, 0)
    return bins
