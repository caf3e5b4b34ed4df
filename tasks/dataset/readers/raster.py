"""PNG, JPEG and BMP, decoded by Pillow."""

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from tasks.dataset.readers.completeness import check_bmp, check_jpeg, check_png
from tasks.dataset.readers.stored import (
    ImageError,
    StoredImage,
    check_pixels,
    range_of_bits,
    several_frames_error,
    upright,
)

FORMATS = ("PNG", "JPEG", "BMP")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow modes with 1, 8 or 16 bits per channel."""
ORIENTATION = 0x0112
PNG_COLOURS = {2, 4, 6}
"""Colour types of a PNG with several channels. Pillow reads only 8 of their 16 bits."""

_pillow_lock = Lock()
"""Held while an image is read, because Pillow's pixel limit and Python's warning filters are shared by all threads."""


def read_raster(path: Path, max_megapixels: float) -> StoredImage:
    """Decode a complete PNG, JPEG or BMP. An alpha channel is dropped; the EXIF orientation is applied.

    Args:
        path: image file.
        max_megapixels: limit on the number of pixels, in millions.

    Raises:
        ImageError: the file holds more pixels, several frames, or more than 16 bits per channel.
        IncompleteImageError: it has other pixels than its header declares.
        Exception: for damaged files, Pillow's decoders raise errors of many types.
    """
    n_bytes = path.stat().st_size
    # the file is opened here, because Pillow would map a path into memory
    with _pillow_lock, _without_pillow_limit(), _metadata_warnings_as_errors(), path.open("rb") as file:
        with Image.open(file, formats=FORMATS) as image:
            check_pixels(*image.size, path, max_megapixels)
            if image.mode not in MODES:
                raise ImageError(
                    f"{path}: mode {image.mode} has no fixed range of values. Images must have 1, 8 or 16 bits per "
                    "channel. Save the image with 8 or 16 bits per channel."
                )
            if getattr(image, "is_animated", False):
                raise several_frames_error(path, image.n_frames)  # type: ignore[attr-defined]  # only animated ones
            # verify compares the checksums, which decoding ignores
            image.verify()
            _check_complete(image, file, n_bytes)
        file.seek(0)
        with Image.open(file, formats=FORMATS) as image:
            format_, mode = str(image.format), image.mode
            values = _deep_colours(image, file) if format_ == "PNG" else None
            if values is None:
                values = _values(image, path)
    bits = 8 * values.dtype.itemsize
    return StoredImage(values, format_, mode, bits, range_of_bits(bits, is_signed=False))


def _check_complete(image: Image.Image, file: BinaryIO, n_bytes: int) -> None:
    """Check that a file has the pixels that its header declares.

    Raises:
        IncompleteImageError: it has other pixels.
    """
    match image.format:
        case "PNG":
            check_png(file)
        case "JPEG":
            file.seek(0)
            check_jpeg(file.read())
        case "BMP":
            check_bmp(image, file, n_bytes)


def _values(image: Image.Image, path: Path) -> np.ndarray:
    image.load()
    if image.mode == "P":
        _check_palette(image, path)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode in {"P", "PA"}:
        image = image.convert("RGBA")
    return np.array(image.convert("L" if image.mode in {"1", "L", "LA"} else "RGB"), dtype=np.uint8)


def _check_palette(image: Image.Image, path: Path) -> None:
    assert image.palette is not None
    n_colours = len(image.palette.palette) // len(image.palette.mode)
    largest = int(np.asarray(image).max())
    if largest >= n_colours:
        raise ImageError(
            f"{path}: a pixel has colour {largest} of a palette with {n_colours} colours. Colours are numbered from 0. "
            "Save the image again."
        )


def _deep_colours(image: Image.Image, file: BinaryIO) -> np.ndarray | None:
    """Values of a PNG with 16 bits and several channels, uint16; None for another PNG."""
    file.seek(24)
    depth, colour_type = struct.unpack(">BB", file.read(2))
    if depth < 16 or colour_type not in PNG_COLOURS:
        return None
    # imported here since it is slow
    import imagecodecs

    orientation = image.getexif().get(ORIENTATION, 1)
    file.seek(0)
    values = imagecodecs.png_decode(file.read())
    return upright(values[..., 0] if colour_type == 4 else values[..., :3], orientation)


def has_raster_magic(start: bytes) -> bool:
    """Return whether the first bytes of a file are those of a PNG, JPEG or BMP."""
    return start.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"BM"))


@contextmanager
def _metadata_warnings_as_errors() -> Iterator[None]:
    """Turn Pillow's warnings about damaged metadata into errors, because orientation or colours may be lost."""
    with warnings.catch_warnings():
        for start in (".*orrupt EXIF", "Truncated File", "Tag data larger", "Tag offset too large", "Invalid APNG"):
            warnings.filterwarnings("error", start, UserWarning)
        yield


@contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Disable Pillow's pixel limit; :func:`check_pixels` checks ``max_megapixels`` instead."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
