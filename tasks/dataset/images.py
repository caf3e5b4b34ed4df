"""Reading image files as 8-bit levels, as the models receive them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from tasks.dataset.intensity import FULL_RANGE, IntensityRange, percentile_range, to_grey_levels
from tasks.dataset.readers import ImageError, StoredImage, Volumes, read_stored
from tasks.params import Acquire, Intensity

__all__ = ["ImageError", "LevelImage", "Reading", "as_square", "read_grey", "read_image"]


@dataclass(frozen=True)
class Reading:
    """Settings with which files become images. The defaults are those for 8-bit grey images."""

    intensity: IntensityRange = FULL_RANGE
    volumes: Volumes = field(default_factory=Volumes)


DEFAULT = Reading()


def reading_of(acquire: Acquire, intensity: Intensity) -> Reading:
    """Return the reading that the parameters ask for. The range of percentiles is not known yet.

    Args:
        acquire: section ``acquire``.
        intensity: section ``prepare.intensity``.
    """
    volumes = Volumes(acquire.volumes.frames, acquire.volumes.axis, acquire.volumes.every)
    match intensity.kind:
        case "window":
            centre, width = intensity.window
            low, high = centre - width / 2, centre + width / 2
            return Reading(IntensityRange("window", low=low, high=high, unit=intensity.unit), volumes)
        case "full_range":
            return Reading(IntensityRange(bits=intensity.bits), volumes)
        case _:
            return Reading(IntensityRange(intensity.kind, unit=intensity.unit), volumes)


def with_percentiles(
    reading: Reading, intensity: Intensity, paths: Iterable[Path], max_megapixels: float = math.inf
) -> Reading:
    """The same reading, with the range of percentiles of these images if the parameters ask for it.

    Args:
        reading: from :func:`reading_of`.
        intensity: section ``prepare.intensity``.
        paths: of the images.
        max_megapixels: limit on the number of pixels, in millions.

    Raises:
        ValueError: both percentiles are the same value.
    """
    if intensity.kind != "percentiles":
        return reading
    found = percentile_range(
        paths,
        lambda path: read_stored(path, max_megapixels, reading.volumes.axis),
        intensity.percentiles,
        intensity.unit,
    )
    return replace(reading, intensity=found)


@dataclass(frozen=True)
class LevelImage:
    """An image as 8-bit levels, with the properties of its file."""

    pixels: np.ndarray
    """uint8, ``(H, W)``."""
    stored: StoredImage
    """The image with the values of the file."""

    @property
    def format(self) -> str:
        """Format of the file, detected from the content."""
        return self.stored.format

    @property
    def mode(self) -> str:
        """Mode of the file, such as ``L``, ``RGBA`` or ``int16``."""
        return self.stored.mode


def read_image(path: Path, max_megapixels: float, reading: Reading = DEFAULT) -> LevelImage:
    """Decode a complete image, map its values to [0, 1], and convert it to 8-bit levels.

    Colours become luma (ITU-R 601-2: 0.299 R + 0.587 G + 0.114 B). Grey that is stored as colour
    keeps its values. An alpha channel is dropped. The EXIF orientation is applied.

    Args:
        path: image file, or the name of one image of a file; see :mod:`tasks.dataset.readers`.
        max_megapixels: limit on the number of pixels, in millions; it is checked before the pixels are decoded.
        reading: how the file becomes an image.

    Raises:
        ImageError: the file can't be read; see :func:`tasks.dataset.readers.read_stored`. Or its values have no fixed
            range, and ``reading`` names none.
    """
    stored = read_stored(path, max_megapixels, reading.volumes.axis)
    levels = to_grey_levels(stored, reading.intensity, path)
    return LevelImage(luma(levels) if levels.ndim == 3 else levels, stored)


def luma(levels: np.ndarray) -> np.ndarray:
    """Brightness of colours, uint8 ``(H, W)``; colours with equal channels keep their level.

    Args:
        levels: uint8 ``(H, W, 3)``.
    """
    return np.array(Image.fromarray(np.ascontiguousarray(levels)).convert("L"), dtype=np.uint8)


def read_grey(path: Path, max_megapixels: float = math.inf) -> np.ndarray:
    """Grey levels of :func:`read_image`, uint8 ``(H, W)``."""
    return read_image(path, max_megapixels).pixels


def read_square(path: Path, side: int, max_megapixels: float = math.inf, reading: Reading = DEFAULT) -> np.ndarray:
    """Levels of :func:`read_image`, resized to a square, uint8 ``(side, side)``."""
    return as_square(read_image(path, max_megapixels, reading).pixels, side)


def as_square(levels: np.ndarray, side: int) -> np.ndarray:
    """Resize levels, uint8 ``(H, W)`` or ``(H, W, 3)``, to a square. The aspect ratio is not kept."""
    # Pillow's filter is antialiased when it reduces an image
    return np.asarray(Image.fromarray(np.ascontiguousarray(levels)).resize((side, side), Image.Resampling.BILINEAR))
