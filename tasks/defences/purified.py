"""A classifier behind a purifying defence, as one network."""

from torch import Tensor, nn


class Purified(nn.Module):
    """Purifier, then classifier: one network, so that an adaptive attack goes through both.

    Args:
        purifier: takes and returns images ``(N, 1, H, W)`` in [0, 1]; a denoising autoencoder, for one.
        classifier: takes images ``(N, 1, H, W)`` in [0, 1], returns logits ``(N, K)``.

    After Salman et al. 2020, "Denoised Smoothing" (arXiv 2003.01908), where the composition is the model under attack.
    """

    def __init__(self, purifier: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.purifier = purifier
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, K)`` of images ``(N, 1, H, W)`` in [0, 1]."""
        logits: Tensor = self.classifier(self.purifier(images))
        return logits
