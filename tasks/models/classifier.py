"""Classifiers: from images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``, with the normalisation inside the model."""

import os

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.models.seeding import torch_seeded


class Normalized(nn.Module):
    """A network that normalises its input first, so that attacks and defences work on pixels in [0, 1].

    Args:
        network: takes normalised images ``(N, C, H, W)``, returns logits ``(N, K)``.
        mean: mean of the training pixels, in [0, 1].
        std: standard deviation of the training pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, K)``."""
        output = self.network((images - self.mean) / self.std)
        # torchvision's Inception and GoogLeNet also return auxiliary logits in training mode
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        return logits.float()


def check_image_size(key: str, architecture: str, size: tuple[int, int], key_of_size: str, n_channels: int = 1) -> None:
    """Pass two zero images through an untrained classifier.

    Args:
        key: dotted key of the architecture, for the message.
        architecture: see :func:`build_classifier`.
        size: height and width of the images in pixels.
        key_of_size: dotted key of the parameter that sets the size, for the message.
        n_channels: C.

    Raises:
        ValueError: the architecture is unknown, or does not accept images of this size.
    """
    with torch_seeded(0):
        classifier = build_classifier(architecture, 2, 0.0, 1.0, n_channels=n_channels)
        try:
            classifier.train()(torch.zeros(2, n_channels, *size))
        except Exception as error:
            # each architecture rejects images with an exception of its own
            cause = str(error).partition("\n")[0]
            raise ValueError(
                f"{key} {architecture!r} does not accept the images of {key_of_size}: {size[0]} x {size[1]} pixels "
                f"({cause}). Many architectures need large images, and some need exactly 224 x 224. Change "
                f"{key_of_size}, or choose another architecture."
            ) from error


class ResidualBlock(nn.Module):
    """Residual block of two 3 x 3 convolutions (He et al. 2016, arXiv 1512.03385)."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            conv_bn_relu(n_channels, n_channels),
            nn.Conv2d(n_channels, n_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(n_channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape."""
        return F.relu(features + self.convolutions(features))


def conv_bn_relu(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    """Return a 3 x 3 convolution, batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True)
    )


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Return images ``(N, C, H, W)`` with zeros below and on the right, so that H and W are multiples of a number."""
    below, right = (-side % multiple for side in images.shape[2:])
    return F.pad(images, (0, right, 0, below)) if below or right else images


CNN_WIDTHS = (24, 48, 96, 192)
"""Numbers of channels of the four levels of :class:`Cnn`."""


class Cnn(nn.Module):
    """Small classifier that is fast on a CPU, because no layer works at full resolution.

    Each 4 x 4 block of pixels becomes 16 channels (pixel unshuffle), 48 for colours. Four convolutional levels follow,
    the last two with a residual block, then global average pooling and a linear layer.
    """

    def __init__(self, n_classes: int, n_channels: int = 1) -> None:
        super().__init__()
        first, second, third, fourth = CNN_WIDTHS
        self.features = nn.Sequential(
            nn.PixelUnshuffle(4),
            conv_bn_relu(16 * n_channels, first),
            conv_bn_relu(first, second, stride=2),
            conv_bn_relu(second, third, stride=2),
            ResidualBlock(third),
            conv_bn_relu(third, fourth, stride=2),
            ResidualBlock(fourth),
        )
        self.head = nn.Linear(fourth, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, K)`` for normalised images ``(N, C, H, W)``."""
        logits: Tensor = self.head(self.features(pad_to_multiple(images, 4)).mean(dim=(2, 3)))
        return logits


def build_classifier(
    architecture: str, n_classes: int, mean: float, std: float, pretrained: bool = False, n_channels: int = 1
) -> Normalized:
    """Return a classifier with random or with pretrained weights.

    Args:
        architecture: ``cnn`` or the name of a torchvision classifier.
        n_classes: number of classes, K.
        mean: mean of the training pixels, in [0, 1].
        std: standard deviation of the training pixels.
        pretrained: load torchvision's ImageNet weights.
        n_channels: C, 1 or 3.

    Raises:
        ValueError: the architecture is unknown, or its pretrained weights are not available.
    """
    if architecture == "cnn":
        network: nn.Module = Cnn(n_classes, n_channels)
    else:
        network = _torchvision_classifier(architecture, n_classes, pretrained, n_channels)
    return Normalized(network, mean, std)


def _torchvision_classifier(architecture: str, n_classes: int, pretrained: bool, n_channels: int) -> nn.Module:
    from urllib.error import URLError

    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if architecture not in known:
        raise ValueError(
            f"train_classifier.architecture: no classifier {architecture!r}. Allowed are 'cnn' and the classifiers of "
            f"torchvision: {', '.join(known)}. Set one of these names"
        )
    # without this variable, torchvision unpickles the file of weights in TORCH_HOME
    os.environ.setdefault("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    try:
        network: nn.Module = torchvision.models.get_model(architecture, weights="DEFAULT" if pretrained else None)
    except URLError as error:
        raise ValueError(
            f"train_classifier.pretrained: torchvision's weights of {architecture!r} cannot be downloaded: "
            f"{error.reason}. The download needs a network. Connect to one, copy the weights to TORCH_HOME, or "
            "set it to false"
        ) from error
    except Exception as error:
        if not pretrained:
            raise
        # torch raises many types of exceptions for damaged files
        raise ValueError(
            f"train_classifier.pretrained: the weights of {architecture!r} in TORCH_HOME are damaged: "
            f"{type(error).__name__}. A file of weights from torchvision is needed. Delete the file; the next run "
            "downloads it again"
        ) from error
    # with pretrained weights, Inception and GoogLeNet normalise three separate channels
    if hasattr(network, "transform_input"):
        setattr(network, "transform_input", False)  # noqa: B010  mypy takes the attribute for a module
    if n_channels == 1:
        _adapt_first_convolution(network)
    _replace_heads(network, n_classes)
    return network


def _adapt_first_convolution(network: nn.Module) -> None:
    """Replace the first convolution by one for grey images; its weights are summed over the colour channels."""
    name, first = next((name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d))
    assert (first.in_channels, first.groups) == (3, 1)
    assert not isinstance(first.padding, str)
    grey = nn.Conv2d(
        1,
        first.out_channels,
        kernel_size=(first.kernel_size[0], first.kernel_size[1]),
        stride=(first.stride[0], first.stride[1]),
        padding=(first.padding[0], first.padding[1]),
        bias=first.bias is not None,
    )
    with torch.no_grad():
        grey.weight.copy_(first.weight.sum(dim=1, keepdim=True))
        if grey.bias is not None and first.bias is not None:
            grey.bias.copy_(first.bias)
    network.set_submodule(name, grey)


def _replace_heads(network: nn.Module, n_classes: int) -> None:
    """Replace every head with 1000 ImageNet logits by a head with ``n_classes`` logits."""
    heads = [
        (name, module)
        for name, module in network.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == 1000)
        or (isinstance(module, nn.Conv2d) and module.out_channels == 1000)
    ]
    assert heads
    for name, head in heads:
        if isinstance(head, nn.Linear):
            network.set_submodule(name, nn.Linear(head.in_features, n_classes))
        else:
            assert isinstance(head, nn.Conv2d)
            network.set_submodule(name, nn.Conv2d(head.in_channels, n_classes, kernel_size=1))
