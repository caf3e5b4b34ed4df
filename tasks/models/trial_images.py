"""Images with which an imported network is tried before any image of the data set."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

N_NOISE, N_SMOOTH = 2, 4
GREY_LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)


def trial_images(shape: tuple[int, int, int]) -> Tensor:
    """Return noise, smooth random images, gradients of grey and flat grey, float32 ``(13, C, H, W)`` in [0, 1].

    Each channel of the noise and of the smooth images differs. The images depend on the shape alone.

    Args:
        shape: ``(C, H, W)``.
    """
    channels, height, width = shape
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.random((N_NOISE, *shape), dtype=np.float32))
    coarse = torch.from_numpy(rng.random((N_SMOOTH, channels, 5, 5), dtype=np.float32))
    smooth = F.interpolate(coarse, (height, width), mode="bilinear")
    down = torch.linspace(0, 1, height)[:, None].expand(height, width)
    right = torch.linspace(1, 0, width).expand(height, width)
    flat = [torch.full((height, width), level) for level in GREY_LEVELS]
    grey = torch.stack([down, right, *flat])[:, None].expand(-1, channels, -1, -1)
    return torch.cat([noise, smooth, grey])
