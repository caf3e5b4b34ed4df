"""Reading image files as 8-bit levels, as the models receive them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from tasks.dataset.intensity import FULL_RANGE, IntensityRange, percentile_range, to_levels
from tasks.dataset.readers import ImageError, StoredImage, Volumes, read_stored
from tasks.params import Acquire, Channels, Intensity, Prepare, Resize

__all__ = ["ImageError", "LevelImage", "Reading", "read_image", "read_prepared", "resize"]


@dataclass(frozen=True)
class Reading:
    """Settings with which files become images. The defaults are those for 8-bit grey images."""

    intensity: IntensityRange = FULL_RANGE
    volumes: Volumes = field(default_factory=Volumes)
    channels: Channels = 1
    resize: Resize = "stretch"
    crop_ratio: float = 1.0


DEFAULT_READING = Reading()
"""The reading of 8-bit grey images."""


def reading_of(acquire: Acquire, settings: Prepare) -> Reading:
    """Return the reading that the parameters define. The range of percentiles is not known yet.

    Args:
        acquire: section ``acquire``.
        settings: section ``prepare``.
    """
    volumes = Volumes(acquire.volumes.frames, acquire.volumes.axis, acquire.volumes.every)
    intensity = settings.intensity
    match intensity.kind:
        case "window":
            centre, width = intensity.window
            levels = IntensityRange("window", low=centre - width / 2, high=centre + width / 2, unit=intensity.unit)
        case "full_range":
            levels = IntensityRange(bits=intensity.bits)
        case _:
            levels = IntensityRange(intensity.kind, unit=intensity.unit)
    return Reading(levels, volumes, settings.channels, settings.resize, settings.crop_ratio)


def with_percentiles(
    reading: Reading, intensity: Intensity, paths: Iterable[Path], max_megapixels: float = math.inf
) -> Reading:
    """The same reading, with the range of percentiles of these images if the parameters need it.

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
    """uint8 ``(H, W)``, or ``(H, W, 3)`` for a reading with three channels."""
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

    @property
    def grey(self) -> np.ndarray:
        """Grey levels, uint8 ``(H, W)``; colours become luma."""
        return luma(self.pixels) if self.pixels.ndim == 3 else self.pixels


def read_image(path: Path, max_megapixels: float, reading: Reading = DEFAULT_READING) -> LevelImage:
    """Decode a complete image, map its values to [0, 1], and convert it to 8-bit levels.

    For one channel, colours become luma (ITU-R 601-2: 0.299 R + 0.587 G + 0.114 B), and grey that is stored as colour
    keeps its values. For three channels, grey gets three equal ones. An alpha channel is dropped. The EXIF orientation
    is applied.

    Args:
        path: image file, or the name of one image of a file; see :mod:`tasks.dataset.readers`.
        max_megapixels: limit on the number of pixels, in millions; it is checked before the pixels are decoded.
        reading: how the file becomes an image.

    Raises:
        ImageError: the file cannot be read; see :func:`tasks.dataset.readers.read_stored`. Or its values have no fixed
            range, and ``reading`` names none.
    """
    stored = read_stored(path, max_megapixels, reading.volumes.axis)
    levels = to_levels(stored, reading.intensity, path)
    if reading.channels == 3:
        return LevelImage(levels if levels.ndim == 3 else np.repeat(levels[..., None], 3, axis=2), stored)
    return LevelImage(luma(levels) if levels.ndim == 3 else levels, stored)


def luma(levels: np.ndarray) -> np.ndarray:
    """Brightness of colours, uint8 ``(H, W)``; colours with equal channels keep their level.

    Args:
        levels: uint8 ``(H, W, 3)``.
    """
    return np.array(Image.fromarray(np.ascontiguousarray(levels)).convert("L"), dtype=np.uint8)


def read_prepared(
    path: Path, size: tuple[int, int], max_megapixels: float = math.inf, reading: Reading = DEFAULT_READING
) -> np.ndarray:
    """Levels of :func:`read_image` in the size of the prepared images, uint8 ``(C, H, W)``."""
    return resize(read_image(path, max_megapixels, reading).pixels, size, reading.resize, reading.crop_ratio)


def resize(levels: np.ndarray, size: tuple[int, int], mode: Resize = "stretch", crop_ratio: float = 1.0) -> np.ndarray:
    """Resize levels, uint8 ``(h, w)`` or ``(h, w, 3)``, to uint8 ``(C, H, W)``.

    ``stretch`` does not keep the aspect ratio. ``pad`` centres the largest image that fits on level 0. ``crop`` takes
    the centre of the smallest image that covers the size times ``crop_ratio``, as torchvision's ``Resize`` and
    ``CenterCrop`` do.

    Args:
        levels: of the image.
        size: H and W.
        mode: ``stretch``, ``pad`` or ``crop``.
        crop_ratio: size that the image covers before the crop, divided by ``size``.
    """
    picture = Image.fromarray(np.ascontiguousarray(levels))
    (height, width), inner = size, (size[1], size[0])
    if mode == "pad":
        scale = min(height / picture.height, width / picture.width)
        inner = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
    elif mode == "crop":
        scale = max(round(height * crop_ratio) / picture.height, round(width * crop_ratio) / picture.width)
        # as torchvision, the longer side is cut to an integer; the term keeps exact multiples
        inner = int(picture.width * scale + 1e-6), int(picture.height * scale + 1e-6)
    # Pillow's filter is antialiased when it reduces an image
    resized = picture.resize(inner, Image.Resampling.BILINEAR)
    if mode == "pad":
        canvas = Image.new(picture.mode, (width, height))
        canvas.paste(resized, ((width - inner[0]) // 2, (height - inner[1]) // 2))
        resized = canvas
    elif mode == "crop":
        left, top = round((inner[0] - width) / 2), round((inner[1] - height) / 2)
        resized = resized.crop((left, top, left + width, top + height))
    prepared = np.asarray(resized)
    return prepared[None] if prepared.ndim == 2 else prepared.transpose(2, 0, 1)
