"""Noise for the training of denoising autoencoders.

Vincent et al. 2008, "Extracting and composing robust features with denoising autoencoders" (ICML).
"""

import math

import torch
from torch import Tensor

from tasks.params import Noise

_SATURATION_OFFSET = 2.0**32
"""Factor that moves a pixel out of [0, 1] even if it multiplies the smallest float32 difference near 1, 2^-24."""


def add_noise(
    images: Tensor, noise_types: tuple[Noise, ...], clean_fraction: float, generator: torch.Generator
) -> Tensor:
    """Add noise to images. Each image gets one random type, with a random strength from 0 to the maximum of that type.

    Args:
        images: float32 ``(N, C, H, W)`` in [0, 1].
        noise_types: types to choose from, with their maximum strengths.
        clean_fraction: probability that an image stays unchanged.
        generator: random generator on the device of the images.

    Returns:
        Noisy images, float32 ``(N, C, H, W)`` in [0, 1].
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=images.device)

    n_images = len(images)
    chosen = torch.randint(len(noise_types), (n_images,), generator=generator, device=images.device)
    chosen = torch.where(uniform(n_images) < clean_fraction, -1, chosen)[:, None, None, None]
    relative_strength = uniform(n_images, 1, 1, 1)
    # one uniform number for each pixel serves all types: an image has strength 0 of all types but its own
    uniform_noise = torch.empty_like(images).uniform_(-1, 1, generator=generator)
    needs_normal = any(noise.kind in {"gaussian", "speckle"} for noise in noise_types)
    normal_noise = _uniform_to_normal(uniform_noise) if needs_normal else uniform_noise
    noisy = images.clone()
    for index, noise in enumerate(noise_types):
        strength = torch.where(chosen == index, relative_strength * noise.max_strength, 0)
        match noise.kind:
            case "gaussian":
                noisy.addcmul_(normal_noise, strength)
            case "uniform":
                noisy.addcmul_(uniform_noise, strength)
            case "speckle":
                noisy.addcmul_(normal_noise * images, strength)
            case "salt_pepper":
                # numbers beyond +-(1 - strength) move a pixel far out of [0, 1]; it is clamped below. Masks are slower
                inside = uniform_noise.clamp_min(strength - 1).clamp_max_(1 - strength)
                noisy.add_(inside.sub_(uniform_noise), alpha=-_SATURATION_OFFSET)
    return noisy.clamp_(0, 1)


def _uniform_to_normal(uniform_noise: Tensor) -> Tensor:
    """Transform uniform numbers in [-1, 1) to standard normal ones by the inverse of the distribution function."""
    # the factor avoids minus infinity at -1
    return uniform_noise.mul(1 - 2**-24).erfinv_().mul_(math.sqrt(2))
