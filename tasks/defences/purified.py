"""A purifier and a classifier as one network."""

import math

import torch
from torch import Tensor, nn


class Purified(nn.Module):
    """A purifier followed by a classifier, as one network: adaptive attacks use the gradients of both.

    Salman et al. 2020, "Denoised Smoothing" (arXiv 2003.01908), attack the same composition.

    Args:
        purifier: takes and returns images ``(N, C, H, W)`` in [0, 1], for example a denoising autoencoder.
        classifier: takes images ``(N, C, H, W)`` in [0, 1], returns logits ``(N, K)``.
        n_eot_samples: number of passes through a random purifier whose predicted probabilities are averaged; 1 for a
            deterministic purifier. It belongs to the deployed defence; attacks average over more passes
            (:class:`tasks.defences.randomness.AveragedPredictions`).
    """

    def __init__(self, purifier: nn.Module, classifier: nn.Module, n_eot_samples: int = 1) -> None:
        super().__init__()
        self.purifier = purifier
        self.classifier = classifier
        self.n_eot_samples = n_eot_samples

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, K)`` for images ``(N, C, H, W)`` in [0, 1]."""
        return self.classify([self.purifier(images) for _ in range(self.n_eot_samples)])

    def classify(self, purified_samples: list[Tensor]) -> Tensor:
        """Return logits ``(N, K)`` for the outputs of the purifier; several are the log of mean probabilities.

        Args:
            purified_samples: outputs of the purifier for the same images, one for each pass, ``(N, C, H, W)``.
        """
        logits = torch.stack([self.classifier(purified) for purified in purified_samples])
        if len(purified_samples) == 1:
            return logits[0]
        return logits.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(purified_samples))

    def extra_repr(self) -> str:
        """Return the number of samples, so that digests of the network depend on it."""
        return f"n_eot_samples={self.n_eot_samples}"
