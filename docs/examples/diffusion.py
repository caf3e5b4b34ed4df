"""Diffusion purification (Nie et al. 2022, arXiv 2205.07460), broken by Lee and Kim 2023 and arXiv 2505.22839.

Noise is added, and a network removes it in a few steps. Gradients are those of all steps.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.defences.randomness import RandomModule


class Diffusion(RandomModule):
    """Noise with the largest of some standard deviations, then one denoising step for each of them."""

    def __init__(self, n_channels: int, levels: Sequence[float], width: int) -> None:
        super().__init__()
        self.levels = levels
        layers: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(4 * n_channels + 4, width, 3, padding=1)]
        layers += [nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)] * 2
        layers += [nn.SiLU(), nn.Conv2d(width, 4 * n_channels, 3, padding=1), nn.PixelShuffle(2)]
        self.network = nn.Sequential(*layers)
        self.reseed([0])

    def reseed(self, seed: Sequence[int]) -> None:
        """Restart the random numbers from a seed."""
        self.generator = np.random.default_rng(seed)

    def denoise(self, noisy: Tensor, level: Tensor) -> Tensor:
        """Return the expected image without noise of the standard deviations ``level``, ``(N, 1, 1, 1)``."""
        noise: Tensor = self.network(torch.cat([noisy, level.expand_as(noisy[:, :1])], dim=1))
        return noisy - level * noise

    def fit(self, images: Tensor, labels: Tensor, n_epochs: int = 10) -> None:
        """Train the network on noisy training images."""
        optimizer = torch.optim.Adam(self.network.parameters(), 2e-3)
        for rows in torch.split(torch.cat([torch.randperm(len(images)) for _ in range(n_epochs)]), 32):
            level = max(self.levels) * torch.rand(len(rows), 1, 1, 1)
            noisy = images[rows] + level * torch.randn_like(images[rows])
            optimizer.zero_grad()
            torch.autograd.backward(F.mse_loss(self.denoise(noisy, level) / level, images[rows] / level))
            optimizer.step()

    def forward(self, images: Tensor) -> Tensor:
        """Return purified images of the same shape and range."""
        shape = images[:1].shape if self.same_for_all_images else images.shape
        noise = torch.from_numpy(self.generator.standard_normal(shape, dtype=np.float32)).to(images.device)
        noisy = images + self.levels[0] * noise
        for level, following in zip(self.levels, [*self.levels[1:], 0.0], strict=True):
            clean = self.denoise(noisy, torch.full_like(noisy[:, :1, :1, :1], level))
            noisy = clean + following / level * (noisy - clean)
        return noisy.clamp(0, 1)


def build(n_channels: int = 1, levels: Sequence[float] = (0.15, 0.07), width: int = 16) -> nn.Module:
    """Return the purifier; ``levels`` are falling standard deviations."""
    return Diffusion(n_channels, levels, width)
