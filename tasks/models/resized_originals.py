"""Original images in the size of a network, by other filters, crops and borders than those of this project."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CROP_RATIOS = (1.0, 232 / 224, 1.1, 9 / 8, 8 / 7, 1.25)
"""Shorter side before a central crop, relative to the side of the crop."""


FILTERS = ("NEAREST", "BICUBIC", "LANCZOS", "BOX", "HAMMING", "BILINEAR")
"""Names of Pillow's filters."""


def resized_originals(paths: Sequence[Path], n_channels: int, size: tuple[int, int]) -> Iterator[tuple[str, Tensor]]:
    """Yield the original images in the size of a network as ``resize``, ``crop`` or ``border``.

    Args:
        paths: of the original files; nothing is yielded if one is missing or not of a format of Pillow.
        n_channels: 1 or 3.
        size: height and width.

    Yields:
        The kind, and the images, float32 ``(n, C, H, W)`` in [0, 1].
    """
    pictures = []
    for path in paths:
        try:
            with Image.open(path) as picture:
                pictures.append(picture.convert("L" if n_channels == 1 else "RGB"))
        except (OSError, ValueError):
            return
    if not pictures:
        return
    height, width = size
    for name in FILTERS:
        yield "resize", _stack([picture.resize((width, height), Image.Resampling[name]) for picture in pictures])
    for mode in ("bilinear", "bicubic"):
        yield "resize", torch.cat([_interpolated(picture, size, mode) for picture in pictures])
    # of pictures with the shape of the network's input, a crop to it and a border change nothing
    is_distorted = any(picture.width * height != picture.height * width for picture in pictures)
    for filter_ in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.NEAREST):
        for ratio in CROP_RATIOS[0 if is_distorted else 1 :]:
            yield "crop", _stack([_cropped(picture, height, width, ratio, filter_) for picture in pictures])
        if is_distorted:
            yield "border", _stack([_padded(picture, height, width, filter_) for picture in pictures])


def _stack(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as float32 ``(n, C, H, W)`` in [0, 1]."""
    arrays = np.stack([np.asarray(picture, dtype=np.float32) / 255 for picture in pictures])
    return torch.from_numpy(arrays[:, None] if arrays.ndim == 3 else arrays.transpose(0, 3, 1, 2).copy())


def _interpolated(picture: Image.Image, size: tuple[int, int], mode: str) -> Tensor:
    """A picture resized without antialiasing, as by torch and OpenCV."""
    return torch.nn.functional.interpolate(_stack([picture]), size, mode=mode).clamp(0, 1)


def _cropped(picture: Image.Image, height: int, width: int, ratio: float, name: Image.Resampling) -> Image.Image:
    # as torchvision: the shorter side is given, the longer one is cut to an integer
    wide = picture.width / width >= picture.height / height
    side = round((height if wide else width) * ratio)
    scale = side / (picture.height if wide else picture.width)
    size = (int(picture.width * scale + 1e-6), side) if wide else (side, int(picture.height * scale + 1e-6))
    resized = picture.resize(size, name)
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    return resized.crop((left, top, left + width, top + height))


def _padded(picture: Image.Image, height: int, width: int, name: Image.Resampling) -> Image.Image:
    scale = min(height / picture.height, width / picture.width)
    resized = picture.resize((max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)), name)
    canvas = Image.new(picture.mode, (width, height))
    canvas.paste(resized, ((width - resized.width) // 2, (height - resized.height) // 2))
    return canvas
