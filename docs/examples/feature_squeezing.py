"""Feature squeezing (Xu et al. 2018, arXiv 1704.01155), broken by He et al. 2017 (arXiv 1706.04701).

Fewer grey levels, then a median filter. The rounding has no gradient, so it has the identity as its backward pass.
"""

from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.defences.preprocessing import BPDA


class Median(nn.Module):
    """Median of ``width`` pixels of a column, then of a row; the gradient goes to the pixel that is the median."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, images: Tensor) -> Tensor:
        """Return filtered images of the same shape."""
        border = (self.width // 2,) * 2
        for axis, padding in ((2, (0, 0, *border)), (3, (*border, 0, 0))):
            padded = F.pad(images, padding, mode="replicate")
            images = padded.unfold(axis, self.width, 1).median(dim=-1).values
        return images


def build(bits: int = 5, width: int = 11) -> nn.Module:
    """Return a purifier: ``2 ** bits`` grey levels and a median filter of an odd width."""
    largest = 2**bits - 1

    def squeeze(images: np.ndarray) -> tuple[np.ndarray, Any]:
        return np.rint(images * largest) / largest, None

    return nn.Sequential(BPDA(squeeze, f"{bits} bits"), Median(width))
