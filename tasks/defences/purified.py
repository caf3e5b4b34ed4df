"""A classifier behind a purifying defence, as one network."""

import math

import torch
from torch import Tensor, nn


class Purified(nn.Module):
    """Purifier, then classifier: one network, so that an adaptive attack goes through both.

    After Salman et al. 2020, "Denoised Smoothing" (arXiv 2003.01908), where the composition is the model under attack.

    Args:
        purifier: takes and returns images ``(N, 1, H, W)`` in [0, 1]; a denoising autoencoder, for one.
        classifier: takes images ``(N, 1, H, W)`` in [0, 1], returns logits ``(N, K)``.
        n_draws: looks through a random purifier whose predicted probabilities are averaged; 1 where it is not random.
            An attacker who differentiates this meets the expectation over transformation (EOT; Athalye et al. 2018,
            arXiv 1707.07397).
    """

    def __init__(self, purifier: nn.Module, classifier: nn.Module, n_draws: int = 1) -> None:
        super().__init__()
        self.purifier = purifier
        self.classifier = classifier
        self.n_draws = n_draws

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, K)`` of images ``(N, 1, H, W)`` in [0, 1]."""
        return self.classify([self.purifier(images) for _ in range(self.n_draws)])

    def classify(self, looks: list[Tensor]) -> Tensor:
        """Logits ``(N, K)`` of what the purifier made of the same images, once or several times."""
        logits = torch.stack([self.classifier(purified) for purified in looks])
        if len(looks) == 1:
            return logits[0]
        return logits.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(looks))
