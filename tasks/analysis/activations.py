"""What a classifier and an autoencoder in front of it see in a batch of images, each thing computed once."""

from functools import cached_property

import torch
from torch import Tensor, nn

from tasks.models.features import Features


class Seen:
    """A batch of images, as it is and purified, through every layer that analyses and detectors ask for.

    Nothing is computed before it is asked for. Gradients flow to the images where the caller lets them.

    Args:
        images: float32 ``(N, 1, H, W)`` in [0, 1].
        classifier: the undefended one, with its features.
        purifier: autoencoder with a module ``encoder``, takes and returns images.
    """

    def __init__(self, images: Tensor, classifier: Features, purifier: nn.Module) -> None:
        self.images = images
        self._classifier = classifier
        self._purifier = purifier

    @property
    def logits(self) -> Tensor:
        """Of the classifier on the images, ``(N, K)``."""
        return self._of_images[0]

    @property
    def features(self) -> Tensor:
        """Penultimate, of the classifier on the images, ``(N, D)``."""
        return self._of_images[1]

    @property
    def purified(self) -> Tensor:
        """The images purified, ``(N, 1, H, W)``."""
        return self._of_purifier[0]

    @property
    def bottleneck(self) -> Tensor:
        """What the autoencoder's encoder makes of the images, ``(N, B)``."""
        return self._of_purifier[1]

    @property
    def purified_logits(self) -> Tensor:
        """Of the classifier on the purified images, ``(N, K)``."""
        return self._of_purified[0]

    @property
    def purified_features(self) -> Tensor:
        """Penultimate, of the classifier on the purified images, ``(N, D)``."""
        return self._of_purified[1]

    @cached_property
    def _of_images(self) -> tuple[Tensor, Tensor]:
        logits, features = self._classifier(self.images)
        return logits, features

    @cached_property
    def _of_purifier(self) -> tuple[Tensor, Tensor]:
        codes: list[Tensor] = []
        encoder = self._purifier.get_submodule("encoder")
        hook = encoder.register_forward_hook(lambda _module, _inputs, output: codes.append(output))
        try:
            purified = self._purifier(self.images)
        finally:
            hook.remove()
        return purified, torch.flatten(codes[0], 1)

    @cached_property
    def _of_purified(self) -> tuple[Tensor, Tensor]:
        logits, features = self._classifier(self.purified)
        return logits, features
