"""k-winners-take-all (Xiao et al. 2020, arXiv 1905.10510), broken by Tramer et al. 2020 (arXiv 2002.08347).

In every layer, only the largest activations of an image pass. So small changes of the image change which units are
active, and the gradient changes everywhere.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class KWinners(nn.Module):
    """Activation that keeps a fraction of the values of each image and sets the others to zero."""

    def __init__(self, fraction: float) -> None:
        super().__init__()
        self.fraction = fraction

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape."""
        flat = features.flatten(1)
        smallest = flat.topk(max(1, int(self.fraction * flat.shape[1])), dim=1).values[:, -1]
        return features * (features >= smallest[:, None, None, None])


class Network(nn.Module):
    """Convolutional classifier with the activation."""

    def __init__(self, n_channels: int, n_classes: int, fraction: float) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.PixelUnshuffle(4)]
        for n_in, n_out, stride in ((16 * n_channels, 32, 1), (32, 64, 2), (64, 128, 2)):
            layers += [nn.Conv2d(n_in, n_out, 3, stride, padding=1), nn.BatchNorm2d(n_out), KWinners(fraction)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(128, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, K)``."""
        logits: Tensor = self.head(self.features(images).mean(dim=(2, 3)))
        return logits

    def fit(self, images: Tensor, labels: Tensor, n_epochs: int = 15) -> None:
        """Train the network on the training images."""
        optimizer = torch.optim.Adam(self.parameters(), 1e-3)
        for rows in torch.split(torch.cat([torch.randperm(len(images)) for _ in range(n_epochs)]), 32):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(self(images[rows]), labels[rows]))
            optimizer.step()


def build(classifier: nn.Module, n_channels: int = 1, n_classes: int = 2, fraction: float = 0.1) -> nn.Module:
    """Return a classifier of its own, so ``classifier`` is not used."""
    return Network(n_channels, n_classes, fraction)
