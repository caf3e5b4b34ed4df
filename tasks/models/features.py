"""Penultimate features of a classifier, and the layer of its last feature map."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tasks.models.compute import device_of
from tasks.models.imported import ImportedClassifier


def classification_head(classifier: nn.Module) -> nn.Module:
    """Return the layer that computes the logits: the last linear or convolutional layer, or the named one.

    An imported classifier from TorchScript, or one that is only queried, has no such module. Then it is the module that
    returns the output of the network and whose input are the logits; :class:`LogitsAndFeatures` uses the logits as
    features.

    Raises:
        ValueError: the classifier has no such layer.
    """
    if isinstance(classifier, ImportedClassifier) and classifier.head_layer is not None:
        return named_layer(classifier, classifier.head_layer, "classifier.head_layer")
    layers = [module for module in classifier.modules() if _is_layer(module)]
    if not layers:
        if isinstance(classifier, ImportedClassifier):
            return classifier.outputs
        raise ValueError(
            f"{type(classifier).__name__} has no linear or convolutional layer. The last such layer is the "
            "classification head. Use a classifier with one"
        )
    return layers[-1]


def named_layer(classifier: ImportedClassifier, name: str, key: str) -> nn.Module:
    """Return a layer of the network of an imported classifier by its name.

    Raises:
        ValueError: there is no such layer.
    """
    layers: dict[str, nn.Module] = dict(classifier.network.named_modules())
    if name not in layers:
        near = [each for each in layers if each.split(".")[-1] == name.split(".")[-1]] or list(layers)[-8:]
        raise ValueError(f"{key}: the network has no layer {name!r}. It has {near}. Use the name of a layer")
    return layers[name]


def _is_layer(module: nn.Module) -> bool:
    """Return whether a module is a linear or convolutional layer, or one of a program of ``torch.export``."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        return True
    weight = getattr(module, "weight", None)
    # by name, since the import of its module takes seconds
    is_program = type(module).__name__ == "InterpreterModule"
    return is_program and isinstance(weight, Tensor) and weight.ndim in (2, 4)


class LogitsAndFeatures(nn.Module):
    """A classifier that returns logits and penultimate features; the features are the input of its head.

    Args:
        classifier: takes images ``(N, C, H, W)``, returns logits ``(N, K)``.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        # in a list, so that the head is not registered as a second submodule
        self._head = [classification_head(classifier)]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``(N, K)`` and features ``(N, D)``.

        Features are averaged over positions if the head is a convolution, and over passes if the head runs repeatedly.
        """
        with _capture_inputs(self._head[0]) as captured:
            logits = self.classifier(images)
        features = torch.stack(captured).mean(dim=0)
        return logits, features.mean(dim=(2, 3)) if features.ndim == 4 else features.flatten(1)


def last_feature_map_layer(classifier: nn.Module, image_shape: tuple[int, ...]) -> nn.Module:
    """Return the layer for Grad-CAM: the last one with output ``(N, C, h, w)`` and h, w above 1, in order of execution.

    Args:
        classifier: takes images ``(N, C, H, W)``.
        image_shape: ``(C, H, W)``.

    Raises:
        ValueError: no layer has such an output.
    """
    if isinstance(classifier, ImportedClassifier) and classifier.feature_map_layer is not None:
        return named_layer(classifier, classifier.feature_map_layer, "classifier.feature_map_layer")
    last: list[nn.Module] = []

    def keep_layer(module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1 and module is not classifier:
            last[:] = [module]

    modules = [module for module in classifier.modules() if not isinstance(module, torch.jit.ScriptModule)]
    hooks = [module.register_forward_hook(keep_layer) for module in modules]
    try:
        with torch.inference_mode():
            classifier(torch.zeros(1, *image_shape, device=device_of(classifier)))
    finally:
        for hook in hooks:
            hook.remove()
    if not last:
        raise ValueError(
            f"{type(classifier).__name__} has no feature map larger than 1 x 1. Grad-CAM needs one. Use a "
            "convolutional classifier or a larger prepare.image_size"
        )
    return last[0]


@contextmanager
def _capture_inputs(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the first argument of every call of a module."""
    captured: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _module, inputs: captured.append(inputs[0]))
    try:
        yield captured
    finally:
        hook.remove()
