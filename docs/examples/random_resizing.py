"""Random resizing and padding (Xie et al. 2018, arXiv 1711.01991), broken by Athalye et al. 2018 (arXiv 1802.00420).

Each draw shrinks each image by another factor and moves it within a black frame. Attacks average over draws (EOT), and
also run with fixed draws, because the module derives from RandomModule. The classifier is trained further behind it.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.defences.randomness import RandomModule


class ResizeAndPad(RandomModule):
    """Resize to a random size and pad with zeros to the old size; factors of the size are ``smallest`` to 1."""

    def __init__(self, smallest: float) -> None:
        super().__init__()
        self.smallest = smallest
        self.reseed([0])

    def reseed(self, seed: Sequence[int]) -> None:
        """Restart the random numbers from a seed."""
        self.generator = np.random.default_rng(seed)

    def forward(self, images: Tensor) -> Tensor:
        """Return images of the same shape and range."""
        n = 1 if self.same_for_all_images else len(images)
        uniform = torch.from_numpy(self.generator.random((n, 3), dtype=np.float32)).to(images.device)
        factor = self.smallest + (1 - self.smallest) * uniform[:, 0]
        # from coordinates of the output to those of the input, both in [-1, 1]
        matrices = torch.zeros(n, 2, 3, device=images.device)
        matrices[:, 0, 0] = matrices[:, 1, 1] = 1 / factor
        matrices[:, :, 2] = (2 * uniform[:, 1:] - 1) * (1 / factor - 1)[:, None]
        grid = F.affine_grid(matrices.expand(len(images), 2, 3), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False).clamp(0, 1)


class Resized(nn.Sequential):
    """The transform and a classifier."""

    def fit(self, images: Tensor, labels: Tensor, n_epochs: int = 10) -> None:
        """Train the classifier on transformed training images."""
        optimizer = torch.optim.Adam(self.requires_grad_().parameters(), 3e-4)
        for rows in torch.split(torch.cat([torch.randperm(len(images)) for _ in range(n_epochs)]), 32):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(self(images[rows]), labels[rows]))
            optimizer.step()


def build(classifier: nn.Module, smallest: float = 0.8) -> nn.Module:
    """Return the transform and a copy of the undefended classifier."""
    return Resized(ResizeAndPad(smallest), copy.deepcopy(classifier))
