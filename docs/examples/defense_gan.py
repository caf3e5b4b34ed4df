"""Projection on the images of a generator, as Defense-GAN (Samangouei et al. 2018, arXiv 1805.06605).

Broken by Athalye et al. 2018 (arXiv 1802.00420). The generator is the decoder of an autoencoder. Gradient descent finds
the code whose image is nearest. The backward pass (BPDA) is the autoencoder; the identity misleads attacks.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.defences.preprocessing import BPDA


class Projection(nn.Module):
    """Nearest image of a generator to each image, after some steps of gradient descent."""

    def __init__(self, n_channels: int, n_code: int, n_steps: int, step: float, identity: bool) -> None:
        super().__init__()
        self.n_steps, self.step = n_steps, step
        self.encoder = nn.Sequential(
            *(nn.PixelUnshuffle(4), nn.Conv2d(16 * n_channels, 48, 3, padding=1), nn.SiLU()),
            nn.Conv2d(48, n_code, 4, stride=2, padding=1),
        )
        self.generator = nn.Sequential(
            *(nn.ConvTranspose2d(n_code, 48, 4, stride=2, padding=1), nn.SiLU()),
            *(nn.Conv2d(48, 16 * n_channels, 3, padding=1), nn.PixelShuffle(4)),
        )
        autoencoder = nn.Sequential(self.encoder, self.generator)
        self.projection = BPDA(self.project, f"{n_steps} steps of {step}", None if identity else autoencoder)

    def fit(self, images: Tensor, labels: Tensor, n_epochs: int = 15) -> None:
        """Train encoder and generator on the training images."""
        optimizer = torch.optim.Adam(self.parameters(), 2e-3)
        for rows in torch.split(torch.cat([torch.randperm(len(images)) for _ in range(n_epochs)]), 32):
            optimizer.zero_grad()
            torch.autograd.backward(F.mse_loss(self.generator(self.encoder(images[rows])), images[rows]))
            optimizer.step()

    def project(self, images: np.ndarray) -> tuple[np.ndarray, Any]:
        """Return the nearest images of the generator that gradient descent finds, from the code of the encoder."""
        with torch.inference_mode(False), torch.enable_grad():
            wanted = torch.from_numpy(images.copy()).to(next(self.parameters()).device)
            code = self.encoder(wanted).detach().requires_grad_()
            for _ in range(self.n_steps):
                error = (self.generator(code) - wanted).square().sum()
                code = (code - self.step * torch.autograd.grad(error, code)[0]).detach().requires_grad_()
            return self.generator(code).detach().cpu().numpy(), None

    def forward(self, images: Tensor) -> Tensor:
        """Return projected images of the same shape and range."""
        projected: Tensor = self.projection(images)
        return projected


def build(n_channels: int = 1, n_code: int = 8, n_steps: int = 5, identity: bool = False) -> nn.Module:
    """Return the purifier."""
    return Projection(n_channels, n_code, n_steps, 0.1, identity)
