"""Random changes of training images that leave the diagnosis as it is."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.params import Augmentation


def augment(images: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """Flip, rotate, scale, move and re-window every image by its own draw.

    Moves are by whole pixels and flips are exact; only rotation and scale resample (bilinearly), which softens
    the texture.

    Args:
        images: float32 ``(B, 1, H, W)`` in [0, 1].
        settings: how much of each, at most.
        generator: on the images' device.

    Returns:
        Float32 ``(B, 1, H, W)`` in [0, 1].
    """

    def draw(limit: float) -> Tensor:
        """``(B,)``, evenly from -limit to limit."""
        return (torch.rand(len(images), generator=generator, device=images.device) * 2 - 1) * limit

    def per_image(values: Tensor) -> Tensor:
        return values[:, None, None, None]

    if settings.flip:
        flipped = torch.rand(len(images), generator=generator, device=images.device) < settings.flip
        images = torch.where(per_image(flipped), images.flip(-1), images)
    if settings.translation:
        images = _move(images, draw(settings.translation), draw(settings.translation))
    if settings.rotation or settings.scale:
        angle, zoom = draw(math.radians(settings.rotation)), 1 + draw(settings.scale)
        cosine, sine, zero = torch.cos(angle) * zoom, torch.sin(angle) * zoom, torch.zeros_like(angle)
        matrices = torch.stack([torch.stack([cosine, -sine, zero], 1), torch.stack([sine, cosine, zero], 1)], 1)
        grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
        images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    if settings.contrast or settings.brightness:
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        images = (images - mean) * per_image(1 + draw(settings.contrast)) + mean + per_image(draw(settings.brightness))
        images = images.clamp(0, 1)
    return images


def _move(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Each image moved by its own whole number of pixels, given as shares of the side; the border is repeated."""
    _, _, height, width = images.shape
    rows = torch.arange(height, device=images.device) - (down * height).round().long()[:, None]
    columns = torch.arange(width, device=images.device) - (right * width).round().long()[:, None]
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return images[batch, 0, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]][:, None]
