"""JPEG compression before the classifier (Das et al. 2017, arXiv 1705.02900), broken by Shin and Song 2017.

Images are written and read by Pillow. The backward pass (BPDA) is that of a JPEG with a soft rounding.
"""

import io
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from tasks.defences.preprocessing import BPDA, DifferentiableJpeg


def build(quality: int = 30) -> nn.Module:
    """Return a purifier: JPEG of a quality from 1 to 95."""

    def compress(images: np.ndarray) -> tuple[np.ndarray, Any]:
        levels = np.rint(images * 255).astype(np.uint8)
        return np.stack([_compressed(image, quality) for image in levels]) / 255, None

    return BPDA(compress, f"quality {quality}", DifferentiableJpeg(quality))


def _compressed(image: np.ndarray, quality: int) -> np.ndarray:
    """One image ``(C, H, W)`` of 8 bits after JPEG."""
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(pixels).save(file := io.BytesIO(), "JPEG", quality=quality, subsampling=0)
    decoded = np.asarray(Image.open(file))
    return decoded[None] if decoded.ndim == 2 else decoded.transpose(2, 0, 1)
