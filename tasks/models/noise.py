"""Noise for denoising autoencoders (Vincent et al. 2008, "Extracting and composing robust features")."""

import torch
from torch import Tensor

from tasks.params import Noise


def add_noise(images: Tensor, noises: tuple[Noise, ...], clean_share: float, generator: torch.Generator) -> Tensor:
    """Images with noise of one kind each, drawn at random with a strength from zero to its greatest.

    Args:
        images: float32 ``(B, 1, H, W)`` in [0, 1].
        noises: kinds to draw from, with their greatest strengths.
        clean_share: probability that an image is left as it is.
        generator: on the images' device.

    Returns:
        Float32 ``(B, 1, H, W)`` in [0, 1].
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=images.device)

    n_images = len(images)
    kind = torch.randint(len(noises), (n_images,), generator=generator, device=images.device)
    kind = torch.where(uniform(n_images) < clean_share, -1, kind)[:, None, None, None]
    strength = uniform(n_images, 1, 1, 1)
    even = uniform(*images.shape)
    noisy = images
    for number, noise in enumerate(noises):
        scale = strength * noise.strength
        if noise.kind == "uniform":
            changed = images + (even * 2 - 1) * scale
        elif noise.kind == "salt_pepper":
            changed = torch.where(even < scale / 2, 0.0, torch.where(even > 1 - scale / 2, 1.0, images))
        else:
            normal = torch.randn(images.shape, generator=generator, device=images.device)
            changed = images + normal * scale * (images if noise.kind == "speckle" else 1)
        noisy = torch.where(kind == number, changed, noisy)
    return noisy.clamp(0, 1)
