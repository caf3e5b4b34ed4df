"""Thermometer encoding (Buckman et al. 2018), broken by Athalye et al. 2018 (arXiv 1802.00420).

Each pixel becomes some bits: bit i is 1 if the pixel is above level i. The backward pass (BPDA) is that of ramps in
place of steps. The classifier is trained on the bits.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.defences.preprocessing import BPDA


class Ramps(nn.Module):
    """The encoding with ramps in place of steps."""

    def __init__(self, n_levels: int) -> None:
        super().__init__()
        self.n_levels = n_levels

    def forward(self, images: Tensor) -> Tensor:
        """Return ``(N, levels * C, H, W)`` in [0, 1]."""
        return torch.cat([(self.n_levels * images - i).clamp(0, 1) for i in range(self.n_levels)], dim=1)


class Network(nn.Module):
    """Convolutional classifier behind the encoding."""

    def __init__(self, n_channels: int, n_classes: int, n_levels: int) -> None:
        super().__init__()

        def encode(images: np.ndarray) -> tuple[np.ndarray, Any]:
            return np.concatenate([images > (i + 0.5) / n_levels for i in range(n_levels)], axis=1), None

        layers: list[nn.Module] = [BPDA(encode, f"{n_levels} levels", Ramps(n_levels)), nn.PixelUnshuffle(2)]
        for n_in, n_out, stride in ((4 * n_levels * n_channels, 24, 2), (24, 48, 2), (48, 96, 2)):
            layers += [nn.Conv2d(n_in, n_out, 3, stride, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, n_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, K)``."""
        logits: Tensor = self.layers(images)
        return logits

    def fit(self, images: Tensor, labels: Tensor, n_epochs: int = 15) -> None:
        """Train the network on the training images."""
        optimizer = torch.optim.Adam(self.parameters(), 1e-3)
        for rows in torch.split(torch.cat([torch.randperm(len(images)) for _ in range(n_epochs)]), 32):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(self(images[rows]), labels[rows]))
            optimizer.step()


def build(classifier: nn.Module, n_channels: int = 1, n_classes: int = 2, n_levels: int = 16) -> nn.Module:
    """Return a classifier of its own, so ``classifier`` is not used."""
    return Network(n_channels, n_classes, n_levels)
