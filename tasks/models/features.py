"""What a classifier sees inside: its penultimate features, and the feature maps behind its heat maps."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def head_of(classifier: nn.Module) -> nn.Module:
    """The layer that makes the logits: the last linear or convolutional one.

    Raises:
        ValueError: there is none.
    """
    layers = [module for module in classifier.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if not layers:
        raise ValueError(f"{type(classifier).__name__} has no linear or convolutional layer that could be its head")
    return layers[-1]


class Features(nn.Module):
    """Logits of a classifier together with its penultimate features: the input of its head.

    Args:
        classifier: takes images ``(N, 1, H, W)``, returns logits ``(N, K)``.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        self._head = [head_of(classifier)]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(N, K)`` and features ``(N, D)``; where the head is a convolution, their mean over positions."""
        with _inputs_of(self._head[0]) as seen:
            logits = self.classifier(images)
        (features,) = seen
        return logits, features.mean(dim=(2, 3)) if features.ndim == 4 else features.flatten(1)


def last_feature_map(classifier: nn.Module, image_size: int) -> nn.Module:
    """The module behind Grad-CAM: the last to run whose output is a map, ``(N, C, h, w)`` with more than one place.

    Args:
        classifier: takes images ``(N, 1, H, W)``.
        image_size: H and W.

    Raises:
        ValueError: no module's output is a map.
    """
    last: list[nn.Module] = []

    def keep(module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1 and module is not classifier:
            last[:] = [module]

    hooks = [module.register_forward_hook(keep) for module in classifier.modules()]
    try:
        parameter = next(classifier.parameters())
        with torch.inference_mode():
            classifier(torch.zeros(1, 1, image_size, image_size, device=parameter.device))
    finally:
        for hook in hooks:
            hook.remove()
    if not last:
        raise ValueError(f"{type(classifier).__name__} has no feature map that a heat map could be made of")
    return last[0]


@contextmanager
def _inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        hook.remove()
