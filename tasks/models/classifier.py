"""Classifiers: images ``(N, 1, H, W)`` in [0, 1] to logits ``(N, K)``; normalisation lives inside."""

import os

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Normalized(nn.Module):
    """A network behind the normalisation of its input, so that attacks and defences see pixels in [0, 1].

    Args:
        network: takes normalised images ``(N, 1, H, W)``, returns logits ``(N, K)``.
        mean: of the training pixels, in [0, 1].
        std: of the training pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, K)``."""
        output = self.network((images - self.mean) / self.std)
        # torchvision's Inception and GoogLeNet add auxiliary heads while they train
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        return logits.float()


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around which the input passes unchanged (He et al. 2016, arXiv 1512.03385)."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            convolution(n_channels, n_channels),
            nn.Conv2d(n_channels, n_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(n_channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features of the same shape."""
        return F.relu(features + self.convolutions(features))


def convolution(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    """3 x 3 convolution, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True)
    )


class Cnn(nn.Module):
    """Our small classifier, made for CPUs: pixels go to channels first, so that no layer works at full resolution.

    A 4 x 4 block of pixels becomes 16 channels (no pixel is lost), then a convolutional pyramid of four levels,
    residual blocks at the two coarsest, and the mean over positions.
    """

    def __init__(self, n_classes: int, widths: tuple[int, int, int, int] = (24, 48, 96, 192)) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.features = nn.Sequential(
            nn.PixelUnshuffle(4),
            convolution(16, first),
            convolution(first, second, stride=2),
            convolution(second, third, stride=2),
            ResidualBlock(third),
            convolution(third, fourth, stride=2),
            ResidualBlock(fourth),
        )
        self.head = nn.Linear(fourth, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, K)`` of normalised images, H and W multiples of 4."""
        logits: Tensor = self.head(self.features(images).mean(dim=(2, 3)))
        return logits


def build_classifier(
    architecture: str, n_classes: int, mean: float, std: float, pretrained: bool = False
) -> Normalized:
    """An untrained (or pretrained) classifier.

    Args:
        architecture: ``cnn`` or the name of a torchvision classifier.
        n_classes: K, the number of logits.
        mean: of the training pixels, in [0, 1].
        std: of the training pixels.
        pretrained: begin with torchvision's ImageNet weights.

    Raises:
        ValueError: no such architecture, or its weights can't be had.
    """
    network = Cnn(n_classes) if architecture == "cnn" else _torchvision_classifier(architecture, n_classes, pretrained)
    return Normalized(network, mean, std)


def _torchvision_classifier(architecture: str, n_classes: int, pretrained: bool) -> nn.Module:
    from urllib.error import URLError

    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if architecture not in known:
        raise ValueError(
            f"train_classifier.architecture: no classifier {architecture!r}; 'cnn' or one of torchvision's: {known}"
        )
    # torchvision would unpickle whatever lies in TORCH_HOME under the name of its file
    os.environ.setdefault("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    try:
        network: nn.Module = torchvision.models.get_model(architecture, weights="DEFAULT" if pretrained else None)
    except URLError as error:
        raise ValueError(
            f"train_classifier.pretrained: torchvision's weights of {architecture!r} can't be downloaded "
            f"({error.reason}); set it to false, or put the weights into TORCH_HOME on a machine with network"
        ) from error
    except Exception as error:
        if not pretrained:
            raise
        # a damaged file makes torch raise nearly anything
        raise ValueError(
            f"train_classifier.pretrained: the file in TORCH_HOME for {architecture!r} holds no weights "
            f"({type(error).__name__}); delete it, and it is fetched again"
        ) from error
    _take_one_channel(network)
    _give_logits(network, n_classes)
    return network


def _take_one_channel(network: nn.Module) -> None:
    """Replace the first convolution by one for grey images; weights are summed over the colours."""
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
    # Inception and GoogLeNet pick apart three channels when they carry pretrained weights
    if hasattr(network, "transform_input"):
        setattr(network, "transform_input", False)  # noqa: B010  to mypy it is a module


def _give_logits(network: nn.Module, n_classes: int) -> None:
    """Replace every head of 1000 ImageNet logits by one of ``n_classes``."""
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
