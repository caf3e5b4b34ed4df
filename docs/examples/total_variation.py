"""Total-variation minimisation (Guo et al. 2018, arXiv 1711.00117), broken by Athalye et al. 2018 (arXiv 1802.00420).

The minimisation has a fixed number of gradient steps, so the purifier has its true gradient.
"""

import torch
from torch import Tensor, nn


class TotalVariation(nn.Module):
    """Image with a small total variation near the given one.

    Args:
        weight: weight of the total variation, for images in [0, 1].
        n_steps: gradient steps.
        smoothing: added below the square root, so that flat regions have a gradient.
    """

    def __init__(self, weight: float, n_steps: int, smoothing: float = 1e-3) -> None:
        super().__init__()
        self.weight, self.n_steps, self.smoothing = weight, n_steps, smoothing
        # the curvature is at most 1 + 8 * weight / sqrt(smoothing)
        self.step = 2 / (2 + 8 * weight / smoothing**0.5)

    def forward(self, images: Tensor) -> Tensor:
        """Return denoised images of the same shape and range."""
        denoised = images
        for _ in range(self.n_steps):
            denoised = denoised - self.step * (denoised - images + self.weight * self._gradient(denoised))
        return denoised.clamp(0, 1)

    def _gradient(self, images: Tensor) -> Tensor:
        """Gradient of the smoothed total variation, the sum of |x| over all differences of neighbours."""
        gradient = torch.zeros_like(images)
        for axis in (2, 3):
            difference = images.diff(dim=axis)
            force = difference / (difference.square() + self.smoothing).sqrt()
            zero = torch.zeros_like(images.narrow(axis, 0, 1))
            gradient = gradient + torch.cat([zero, force], dim=axis) - torch.cat([force, zero], dim=axis)
        return gradient


def build(weight: float = 0.15, n_steps: int = 25) -> nn.Module:
    """Return the purifier."""
    return TotalVariation(weight, n_steps)
