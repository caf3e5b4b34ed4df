"""Detectors: differentiable scores ``(N,)`` of images, higher for adversarial images.

Because every score is differentiable, an adaptive attack can include it in its objective.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor
from torch.nn import functional as F

from tasks.analysis.activations import Activations

Detector = Callable[[Activations], Tensor]
"""Takes the activations of N images, returns their scores ``(N,)``."""


class Scale(NamedTuple):
    """Median of the scores of clean validation images, and the threshold above which an image is flagged."""

    median: float
    threshold: float

    def excess(self, scores: Tensor) -> Tensor:
        """Scores on a common scale: 0 for the median, 1 for the threshold, ``(N,)``."""
        return (scores - self.median) / ((self.threshold - self.median) or 1.0)


def reconstruction_error(activations: Activations) -> Tensor:
    """Mean squared change of a pixel by the purifier (Meng and Chen 2017, "MagNet", arXiv 1705.09064), at least 0."""
    return (activations.purified - activations.images).square().mean(dim=(1, 2, 3))


def prediction_entropy(activations: Activations) -> Tensor:
    """Entropy of the predicted probabilities in nats (Smith and Gal 2018, arXiv 1803.08533), in [0, ln K]."""
    log_probabilities = F.log_softmax(activations.logits, dim=1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=1)


def prediction_change(activations: Activations) -> Tensor:
    """L1 distance between the probabilities before and after the purifier, in [0, 2].

    After Xu et al. 2018, "Feature Squeezing" (arXiv 1704.01155), with the autoencoder as the squeezer.
    """
    return change_of_probabilities(activations.logits, activations.purified_logits)


def change_of_probabilities(logits: Tensor, others: Tensor) -> Tensor:
    """L1 distance between the probabilities of two logits ``(N, K)``, ``(N,)`` in [0, 2]."""
    return (logits.softmax(dim=1) - others.softmax(dim=1)).abs().sum(dim=1)


class FeatureDistance:
    """Mahalanobis distance of the penultimate features to the nearest class mean (Lee et al. 2018, arXiv 1807.03888).

    The class means and one covariance for all classes are estimated from clean training images. The covariance is
    shrunk (Ledoit and Wolf 2004, Journal of Multivariate Analysis 88, 365-411), so there may be fewer images than
    features.

    Args:
        features: penultimate features of clean training images, float ``(M, D)``.
        labels: their classes, int ``(M,)``.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray) -> None:
        classes = np.unique(labels)
        means = np.stack([features[labels == label].mean(axis=0, dtype=np.float64) for label in classes])
        centred = features - means[np.searchsorted(classes, labels)]
        precision = LedoitWolf(assume_centered=True).fit(centred).precision_
        whitening = np.linalg.cholesky(precision)
        self._means = torch.from_numpy(means @ whitening).float()
        self._whitening = torch.from_numpy(whitening).float()

    def __call__(self, activations: Activations) -> Tensor:
        """Squared distance divided by the number of features, ``(N,)``, at least 0."""
        device = activations.images.device
        whitened = activations.features @ self._whitening.to(device)
        squared = (whitened[:, None] - self._means.to(device)).square().mean(dim=2)
        return squared.amin(dim=1)


class LargestExcess:
    """Largest excess of several detectors, on the scale of each (:meth:`Scale.excess`).

    A threshold on it raises or lowers the thresholds of all detectors together: an image is flagged if one detector
    flags it. So one false-positive rate applies to all detectors together.

    Args:
        detectors: by name.
        scales: of their scores, by name.
    """

    def __init__(self, detectors: Mapping[str, Detector], scales: Mapping[str, Scale]) -> None:
        self._detectors, self._scales = dict(detectors), scales

    def __call__(self, activations: Activations) -> Tensor:
        """Largest excess of each image, ``(N,)``."""
        return self.of_scores({name: detector(activations) for name, detector in self._detectors.items()})

    def of_scores(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Largest excess of each image ``(N,)`` from the scores of the detectors, ``(N,)`` each."""
        return torch.stack([self._scales[name].excess(scores[name]) for name in self._detectors]).amax(dim=0)


def build_detectors(training_features: np.ndarray, training_labels: np.ndarray) -> dict[str, Detector]:
    """Return every detector by name.

    Args:
        training_features: penultimate features of clean training images, float ``(M, D)``.
        training_labels: their classes, int ``(M,)``.
    """
    return {
        "reconstruction error": reconstruction_error,
        "entropy": prediction_entropy,
        "prediction change": prediction_change,
        "feature distance": FeatureDistance(training_features, training_labels),
    }
