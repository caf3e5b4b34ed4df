"""Data augmentation: random changes of training images that keep their class."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.params import Augmentation


def augment(images: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """Flip, translate, rotate and scale each image and change its contrast and brightness, all at random.

    Flips and translations are exact: translations are by whole pixels. Rotation and scale interpolate bilinearly, which
    smooths the texture.

    Args:
        images: float32 ``(N, C, H, W)`` in [0, 1].
        settings: probability of a flip, and the upper bound of each other change.
        generator: random generator on the device of the images.

    Returns:
        Augmented images, float32 ``(N, C, H, W)`` in [0, 1].
    """

    def draw(limit: float) -> Tensor:
        """Return uniform random numbers from -limit to limit, ``(N,)``."""
        return (torch.rand(len(images), generator=generator, device=images.device) * 2 - 1) * limit

    def per_image(values: Tensor) -> Tensor:
        return values[:, None, None, None]

    if settings.horizontal_flip_probability or settings.translation:
        flipped = (
            torch.rand(len(images), generator=generator, device=images.device) < settings.horizontal_flip_probability
        )
        images = _flip_and_translate(images, flipped, draw(settings.translation), draw(settings.translation))
    if settings.rotation or settings.scale:
        angle, zoom = draw(math.radians(settings.rotation)), 1 + draw(settings.scale)
        cosine, sine, zero = torch.cos(angle) * zoom, torch.sin(angle) * zoom, torch.zeros_like(angle)
        # the grid has the range -1 to 1 along both sides, whatever their lengths
        aspect = images.shape[2] / images.shape[3]
        rows = [cosine, -sine * aspect, zero], [sine / aspect, cosine, zero]
        matrices = torch.stack([torch.stack(row, 1) for row in rows], 1)
        grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
        images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    if settings.contrast or settings.brightness:
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        images = (images - mean) * per_image(1 + draw(settings.contrast)) + mean + per_image(draw(settings.brightness))
        images = images.clamp(0, 1)
    return images


def _flip_and_translate(images: Tensor, flipped: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Flip some of the images, then translate each by whole pixels; border pixels fill the gap.

    Args:
        images: ``(N, C, H, W)``.
        flipped: True for images to flip, bool ``(N,)``.
        down: translation as a fraction of the height, ``(N,)``.
        right: translation as a fraction of the width, ``(N,)``.
    """
    n_images, n_channels, height, width = images.shape
    rows = torch.arange(height, device=images.device) - (down * height).round().long()[:, None]
    columns = torch.arange(width, device=images.device) - (right * width).round().long()[:, None]
    columns = columns.clamp(0, width - 1)
    columns = torch.where(flipped[:, None], width - 1 - columns, columns)
    batch = torch.arange(n_images, device=images.device)[:, None, None]
    channels = torch.arange(n_channels, device=images.device)[:, None]
    # rows first, then pixels within rows: three times as fast as one index for each pixel
    translated = images[batch, channels, rows.clamp(0, height - 1)[:, None]]
    return translated.gather(3, columns[:, None, None].expand(translated.shape))
