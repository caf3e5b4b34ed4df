"""Detectors: how adversarial images look, as a score ``(N,)`` of what is seen in them; higher is more so.

Every score is differentiable, so that an attacker can be given it, too.
"""

from collections.abc import Callable

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor
from torch.nn import functional as F

from tasks.analysis.input_transforms import Seen

Detector = Callable[[Seen], Tensor]


def reconstruction_error(seen: Seen) -> Tensor:
    """Mean squared change that purifying makes (Meng and Chen 2017, "MagNet", arXiv 1705.09064), at least 0."""
    return (seen.purified - seen.images).square().mean(dim=(1, 2, 3))


def prediction_entropy(seen: Seen) -> Tensor:
    """Entropy of the predicted probabilities in nats (Smith and Gal 2018, arXiv 1803.08533), in [0, ln K]."""
    log_probabilities = F.log_softmax(seen.logits, dim=1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=1)


def prediction_change(seen: Seen) -> Tensor:
    """How much purifying changes the predicted probabilities: sum over classes of absolute differences, in [0, 2].

    After Xu et al. 2018, "Feature Squeezing" (arXiv 1704.01155), with the autoencoder in place of their squeezers.
    """
    return change_of_probabilities(seen.logits, seen.purified_logits)


def change_of_probabilities(logits: Tensor, others: Tensor) -> Tensor:
    """Sum over classes of absolute differences of probabilities, ``(N,)`` in [0, 2], from logits ``(N, K)``."""
    return (logits.softmax(dim=1) - others.softmax(dim=1)).abs().sum(dim=1)


class FeatureDistance:
    """Mahalanobis distance of the penultimate features to the nearest class (Lee et al. 2018, arXiv 1807.03888).

    Class means and one covariance for all classes are those of clean training images; the covariance is shrunk after
    Ledoit and Wolf (2004, Journal of Multivariate Analysis 88, 365-411), since images may be fewer than features.

    Args:
        features: of the classifier on clean training images, float ``(M, D)``.
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

    def __call__(self, seen: Seen) -> Tensor:
        """The squared distance over the number of features, at least 0."""
        device = seen.images.device
        whitened = seen.features @ self._whitening.to(device)
        squared = (whitened[:, None] - self._means.to(device)).square().mean(dim=2)
        return squared.amin(dim=1)


def detectors(training_features: np.ndarray, training_labels: np.ndarray) -> dict[str, Detector]:
    """Every detector by name.

    Args:
        training_features: penultimate, of the classifier on clean training images, float ``(M, D)``.
        training_labels: their classes, int ``(M,)``.
    """
    return {
        "reconstruction error": reconstruction_error,
        "entropy": prediction_entropy,
        "prediction change": prediction_change,
        "feature distance": FeatureDistance(training_features, training_labels),
    }
