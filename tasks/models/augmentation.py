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

    if settings.flip or settings.translation:
        flipped = torch.rand(len(images), generator=generator, device=images.device) < settings.flip
        images = _flip_and_move(images, flipped, draw(settings.translation), draw(settings.translation))
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


def _flip_and_move(images: Tensor, flipped: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Some images flipped, then each moved by its own whole number of pixels; the border is repeated.

    Args:
        images: ``(B, 1, H, W)``.
        flipped: bool ``(B,)``.
        down: share of the height, ``(B,)``.
        right: share of the width, ``(B,)``.
    """
    n_images, _, height, width = images.shape
    rows = torch.arange(height, device=images.device) - (down * height).round().long()[:, None]
    columns = torch.arange(width, device=images.device) - (right * width).round().long()[:, None]
    columns = columns.clamp(0, width - 1)
    columns = torch.where(flipped[:, None], width - 1 - columns, columns)
    batch = torch.arange(n_images, device=images.device)[:, None]
    # whole rows first, then pixels in them: three times as fast as one look-up of every pixel
    moved = images[batch, 0, rows.clamp(0, height - 1)]
    return moved.gather(2, columns[:, None, :].expand(n_images, height, width))[:, None]
