"""Noise for denoising autoencoders (Vincent et al. 2008, "Extracting and composing robust features")."""

import math

import torch
from torch import Tensor

from tasks.params import Noise

_FAR = 2.0**32
"""Takes the smallest difference of two float32 near 1, 2^-24, out of [0, 1]."""


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
    # one draw a pixel, evenly from -1 to 1, serves all kinds: an image has one of them and strength 0 of the others
    even = torch.empty_like(images).uniform_(-1, 1, generator=generator)
    normal = _normal(even) if any(noise.kind in {"gaussian", "speckle"} for noise in noises) else even
    noisy = images.clone()
    for number, noise in enumerate(noises):
        scale = torch.where(kind == number, strength * noise.strength, 0)
        match noise.kind:
            case "gaussian":
                noisy.addcmul_(normal, scale)
            case "uniform":
                noisy.addcmul_(even, scale)
            case "speckle":
                noisy.addcmul_(normal * images, scale)
            case "salt_pepper":
                # what lies beyond the bounds goes far beyond [0, 1], to which all is cut below: masks are slower
                noisy.add_(even.clamp_min(scale - 1).clamp_max_(1 - scale).sub_(even), alpha=-_FAR)
    return noisy.clamp_(0, 1)


def _normal(even: Tensor) -> Tensor:
    """Standard normal numbers from those that are even in [-1, 1), by the inverse of the distribution function."""
    # -1 itself would give minus infinity
    return even.mul(1 - 2**-24).erfinv_().mul_(math.sqrt(2))
