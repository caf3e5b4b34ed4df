"""Outputs of a classifier and an autoencoder for one batch of images, each computed once and only when needed."""

from functools import cached_property

import torch
from torch import Tensor, nn

from tasks.models.features import LogitsAndFeatures


class Activations:
    """Logits, features and reconstructions of a batch of images, before and after an autoencoder.

    Every property is computed at its first use. Gradients with respect to the images are available unless the caller
    disables them.

    Args:
        images: float32 ``(N, C, H, W)`` in [0, 1].
        classifier: the undefended classifier, which also returns its penultimate features.
        purifier: autoencoder with a submodule ``encoder``; takes and returns images.
    """

    def __init__(self, images: Tensor, classifier: LogitsAndFeatures, purifier: nn.Module) -> None:
        self.images = images
        self._classifier = classifier
        self._purifier = purifier

    @property
    def logits(self) -> Tensor:
        """Logits of the images, ``(N, K)``."""
        return self._classified[0]

    @property
    def features(self) -> Tensor:
        """Penultimate features of the images, ``(N, D)``."""
        return self._classified[1]

    @property
    def purified(self) -> Tensor:
        """Output of the autoencoder, ``(N, C, H, W)``."""
        return self._autoencoded[0]

    @property
    def bottleneck(self) -> Tensor:
        """Output of the encoder of the autoencoder, flattened, ``(N, B)``."""
        return self._autoencoded[1]

    @property
    def purified_logits(self) -> Tensor:
        """Logits of the purified images, ``(N, K)``."""
        return self._purified_classified[0]

    @property
    def purified_features(self) -> Tensor:
        """Penultimate features of the purified images, ``(N, D)``."""
        return self._purified_classified[1]

    @cached_property
    def _classified(self) -> tuple[Tensor, Tensor]:
        logits, features = self._classifier(self.images)
        return logits, features

    @cached_property
    def _autoencoded(self) -> tuple[Tensor, Tensor]:
        codes: list[Tensor] = []
        encoder = self._purifier.get_submodule("encoder")
        hook = encoder.register_forward_hook(lambda _module, _inputs, output: codes.append(output))
        try:
            purified = self._purifier(self.images)
        finally:
            hook.remove()
        return purified, torch.flatten(codes[0], 1)

    @cached_property
    def _purified_classified(self) -> tuple[Tensor, Tensor]:
        logits, features = self._classifier(self.purified)
        return logits, features
