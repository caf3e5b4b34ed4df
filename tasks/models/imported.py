"""The user's classifier as a module of this project: images in [0, 1] in, logits of the classes out."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.params import ClassifierInput, ClassifierOutput

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601), as in the step ``prepare``."""
LABEL_LOGIT = 20.0
"""Logit of the predicted class of a classifier that returns labels; the others are 0."""


class ImportedClassifier(nn.Module):
    """The network of the user between the declared conversion of images and the declared conversion of its output.

    Args:
        network: takes and returns what ``input`` and ``output`` declare.
        input: the images that the network expects.
        output: its output.
        order: position among the outputs of each class, K numbers.
        source: text that identifies the files of the network, for digests of the classifier.
        has_gradients: False for a network that is only queried.
        batch_size: images of one call of the network; 0: all. Programs can be exported for one image.
        head_layer: name of the layer whose input are the features; None: to be found.
        feature_map_layer: name of the layer for Grad-CAM; None: to be found.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        input: ClassifierInput,
        output: ClassifierOutput,
        order: Sequence[int],
        source: str = "",
        has_gradients: bool = True,
        batch_size: int = 0,
        head_layer: str | None = None,
        feature_map_layer: str | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.input, self.output, self.order = input, output, tuple(order)
        self.source, self.has_gradients, self.batch_size = source, has_gradients, batch_size
        self.head_layer, self.feature_map_layer = head_layer, feature_map_layer
        self._surrogates: list[nn.Module] = []
        self._digest = ""
        # layers for heat maps and for features of a network whose own layers are not modules
        self.images, self.outputs = nn.Identity(), nn.Identity()
        for name, values, default in (("mean", input.mean, 0.0), ("std", input.std, 1.0)):
            numbers = torch.tensor(values or (default,), dtype=torch.float32)
            self.register_buffer(name, numbers.view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, K)`` for images ``(N, C, H, W)`` in [0, 1], C = 1 or 3."""
        images = self.images(images)
        logits = self.to_logits(self.outputs(self.raw(images)))
        if self.has_gradients or not self._surrogates or not images.requires_grad:
            return logits
        borrowed = torch.stack([surrogate(images) for surrogate in self._surrogates]).mean(dim=0)
        return logits.detach() + (borrowed - borrowed.detach())

    def borrow_gradients(self, surrogates: Sequence[nn.Module], digest: str) -> None:
        """Use the mean gradient of surrogates for a network that is only queried; its logits stay the same.

        Args:
            surrogates: take the same images and return logits of the same classes.
            digest: of the surrogates, so that digests of the classifier depend on them.
        """
        # in a list, so that they are no part of the classifier's parameters
        self._surrogates, self._digest = list(surrogates), digest

    def raw(self, images: Tensor) -> Tensor:
        """Return the output of the network, ``(N, ...)``, for images ``(N, C, H, W)`` in [0, 1]."""
        return self.run(self.to_input(images))

    def run(self, inputs: Tensor) -> Tensor:
        """Return the output of the network, ``(N, ...)``, for images as it expects them, of :meth:`to_input`.

        The network gets a copy, because it may change its input in place.
        """
        if not self.batch_size:
            return output_tensor(self.network(inputs.clone()))
        parts = torch.split(inputs, self.batch_size)
        return torch.cat([output_tensor(self.network(part.clone())) for part in parts])

    def to_input(self, images: Tensor) -> Tensor:
        """Return images ``(N, C, H, W)`` in [0, 1] as the network expects them."""
        wanted, given = self.input.channels, images.shape[1]
        if wanted == 1 and given == 3:
            images = (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
        elif wanted == 3 and given == 1:
            images = images.expand(-1, 3, -1, -1)
        if self.input.size is not None and tuple(images.shape[2:]) != self.input.size:
            images = F.interpolate(images, self.input.size, mode="bilinear", antialias=True)
        if self.input.channel_order == "BGR":
            images = images.flip(1)
        low, high = self.input.value_range
        if (low, high) != (0, 1):
            images = images * (high - low) + low
        if self.input.mean is not None:
            images = images - self.mean
        return images if self.input.std is None else images / self.std

    def to_logits(self, output: Tensor) -> Tensor:
        """Return logits ``(N, K)`` in the order of the classes for outputs of the network.

        Raises:
            ValueError: the network has another number of outputs than ``output`` declares, or no labels of the classes.
        """
        kind, n = self.output.kind, len(self.order)
        output = output.float()
        if kind == "labels":
            labels = output.long().flatten()
            is_class = (labels == output.flatten()) & (labels >= 0) & (labels < n)
            if len(labels) != len(output) or not bool(is_class.all()):
                raise ValueError(
                    f"classifier.output: the network returns {str(output.tolist())[:80]}. One number of a class, from "
                    f"0 to {n - 1}, for each image is allowed for kind labels. Correct the network, or declare the "
                    "kind of its outputs"
                )
            return LABEL_LOGIT * F.one_hot(labels, n)[:, self.order].float()
        if kind.startswith("sigmoid"):
            output = self._finding(output)
            logit = output if kind == "sigmoid_logit" else torch.logit(output, eps=2.0**-24)
            return torch.stack([torch.zeros_like(logit), logit], dim=1)[:, self.order]
        output = output.reshape(len(output), -1)
        if output.shape[1] != n:
            raise ValueError(
                f"classifier.output: the network has {output.shape[1]} outputs for the {n} classes of acquire.classes. "
                "Audit one finding of a multi-label classifier (kind sigmoid, column), or set acquire.classes"
            )
        if kind == "probabilities":
            output = output.clamp_min(torch.finfo(output.dtype).tiny).log()
        return output[:, self.order]

    def redeclared(
        self, input: Mapping[str, object] | None = None, output: Mapping[str, object] | None = None
    ) -> "ImportedClassifier":
        """Return the same network with some fields of its input or output declared otherwise."""
        changed = ImportedClassifier(
            self.network,
            self.input.model_copy(update=input or {}),
            self.output.model_copy(update=output or {}),
            self.order,
            has_gradients=self.has_gradients,
            batch_size=self.batch_size,
        )
        # the layers of the network keep their mode
        changed.training = self.training
        return changed.to(self.mean.device)

    def extra_repr(self) -> str:
        """Return everything beside the weights that determines the logits, so that digests depend on it."""
        declared = f"{self.input!r}, {self.output!r}, order={self.order}, batch_size={self.batch_size}"
        return f"{self.source}, {declared}{self._digest}"

    def _finding(self, output: Tensor) -> Tensor:
        columns = output.reshape(len(output), -1)
        if self.output.column is None and columns.shape[1] > 1:
            raise ValueError(
                f"classifier.output.column: the network has {columns.shape[1]} outputs. A multi-label classifier is "
                "audited for one finding. Set the column of the finding, from 0"
            )
        column = self.output.column or 0
        if column >= columns.shape[1]:
            raise ValueError(
                f"classifier.output.column: {column}. The network has the columns 0 to {columns.shape[1] - 1}"
            )
        return columns[:, column]


def output_tensor(output: Any) -> Tensor:
    """Return the tensor in the output of a network: itself, its field ``logits``, or its first item.

    Raises:
        ValueError: there is none.
    """
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
    if found is None and isinstance(output, tuple | list) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        raise ValueError(
            f"classifier.output: the network returns {type(output).__name__}. A tensor, or an object with the field "
            "logits, is allowed. Return one of them from your factory"
        )
    return found


def output_order(output: ClassifierOutput, classes: Sequence[str], positive_class: str) -> list[int]:
    """Position among the outputs of a network of each class.

    Args:
        output: as declared.
        classes: ``acquire.classes``.
        positive_class: ``acquire.positive_class``.

    Raises:
        ValueError: the declared classes are others, or a single output stands for more than two classes.
    """
    named = output.classes
    if output.kind.startswith("sigmoid"):
        if len(classes) != 2:
            raise ValueError(
                f"classifier.output.kind: {output.kind} is for two classes, and acquire.classes has {len(classes)}. "
                "Declare logits or probabilities"
            )
        named = named or (*(name for name in classes if name != positive_class), positive_class)
    named = named or tuple(classes)
    if sorted(named) != sorted(classes):
        raise ValueError(
            f"classifier.output.classes: {list(named)}. These must be the names of acquire.classes, {list(classes)}, "
            "in the order of the outputs. Rename the folders of the images, or the classes here"
        )
    return [named.index(name) for name in classes]
