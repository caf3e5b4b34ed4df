"""Image files: which count as images, and how one is read as grey levels."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tasks.dataset.completeness import Incomplete, check_bmp, check_jpeg, check_png, check_tiff

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes that have 1, 8 or 16 bits a channel."""

MAX_PIXEL_BYTES, MAX_METADATA_BYTES = 16, 2**24
"""Bytes that a pixel takes in a file, at most, and those of everything else in it: all of it may have to be read."""

TIFF_PHOTOMETRIC, WHITE_IS_ZERO = 262, 0

_reading = Lock()
"""Held while an image is read: Pillow's limit and Python's warnings belong to all threads."""


class ImageError(ValueError):
    """An image can't be read; the message names the file and the reason."""


@dataclass(frozen=True)
class GreyImage:
    """An image as grey levels, and what its file said."""

    pixels: np.ndarray
    """uint8 ``(H, W)``."""
    format: str
    """PNG, JPEG, BMP or TIFF, by content."""
    mode: str
    """Pillow's mode of the file, such as ``L`` or ``RGBA``."""


def read_image(path: Path, max_megapixels: float) -> GreyImage:
    """Decode a whole image and turn it into 8-bit grey.

    Colours become luma (ITU-R 601-2: 0.299 R + 0.587 G + 0.114 B, which leaves grey stored as colour
    untouched), an alpha channel is dropped, 16-bit grey is divided by 257 and rounded, and the
    orientation in EXIF is applied.

    Raises:
        ImageError: no PNG, JPEG, BMP or TIFF; truncated or damaged, as far as the format lets it be known; other pixels
            than the header claims; more than ``max_megapixels`` million pixels (found before decoding), or bytes than
            these can need; several frames; more than 16 bits a channel.
    """
    try:
        n_bytes = path.stat().st_size
        if not n_bytes:
            raise ImageError(f"{path}: the file is empty")
        if n_bytes > MAX_PIXEL_BYTES * max_megapixels * 1e6 + MAX_METADATA_BYTES:
            raise ImageError(f"{path}: {n_bytes} bytes are more than validate.max_megapixels {max_megapixels:g} takes")
        # not by its path: Pillow then maps the file into memory, and scrambles TIFFs that EXIF turns by a quarter
        with _reading, _own_pixel_limit(), _metadata_taken_seriously(), path.open("rb") as file:
            with Image.open(file, formats=FORMATS) as image:
                _check_header(image, path, max_megapixels)
                # checksums, which decoding ignores
                image.verify()
                _check_complete(image, file, n_bytes)
            file.seek(0)
            with Image.open(file, formats=FORMATS) as image:
                format_, mode = str(image.format), image.mode
                return GreyImage(_grey(image), format_, mode)
    except ImageError:
        raise
    except Incomplete as error:
        raise ImageError(f"{path}: {error}") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: the content is none of {', '.join(FORMATS)}") from None
    except Exception as error:
        # damaged files make Pillow's decoders raise nearly anything
        raise ImageError(f"{path}: can't be decoded ({error})") from error


def read_grey(path: Path, max_megapixels: float = math.inf) -> np.ndarray:
    """Pixels of :func:`read_image`, uint8 ``(H, W)``."""
    return read_image(path, max_megapixels).pixels


def read_square(path: Path, side: int, max_megapixels: float = math.inf) -> np.ndarray:
    """Pixels of :func:`read_image`, stretched to a square, uint8 ``(side, side)``."""
    return as_square(read_grey(path, max_megapixels), side)


def as_square(grey: np.ndarray, side: int) -> np.ndarray:
    """Pixels stretched to a square, uint8 ``(side, side)``, from uint8 ``(H, W)``."""
    # Pillow widens the filter when it shrinks, which is antialiasing
    return np.asarray(Image.fromarray(grey).resize((side, side), Image.Resampling.BILINEAR))


def _check_header(image: Image.Image, path: Path, max_megapixels: float) -> None:
    width, height = image.size
    if width * height > max_megapixels * 1e6:
        raise ImageError(
            f"{path}: {width} x {height} pixels are more than validate.max_megapixels {max_megapixels:g} allows"
        )
    if image.mode not in MODES:
        raise ImageError(f"{path}: mode {image.mode} has no fixed range of values; save it with 8 or 16 bits a channel")
    # not n_frames, which walks through a whole TIFF
    if getattr(image, "is_animated", False):
        raise ImageError(f"{path}: holds several frames; save each as a file of its own")


def _check_complete(image: Image.Image, file: BinaryIO, n_bytes: int) -> None:
    """Look whether a file holds the pixels that its header claims.

    Raises:
        Incomplete: it holds others.
    """
    match image.format:
        case "PNG":
            check_png(file)
        case "JPEG":
            file.seek(0)
            check_jpeg(file.read())
        case "BMP":
            check_bmp(image, n_bytes)
        case "TIFF":
            check_tiff(image)


def _grey(image: Image.Image) -> np.ndarray:
    inverted = image.format == "TIFF" and image.mode.startswith("I;16") and _white_is_zero(image)
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.uint32)
        grey = ((levels + 128) // 257).astype(np.uint8)
        return 255 - grey if inverted else grey
    if image.mode in {"P", "PA"}:
        image = image.convert("RGBA")
    if image.mode not in {"1", "L", "LA"}:
        image = image.convert("RGB")
    return np.array(image.convert("L"), dtype=np.uint8)


def _white_is_zero(image: Image.Image) -> bool:
    return bool(image.tag_v2.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO)  # type: ignore[attr-defined]  # TIFF only


@contextmanager
def _metadata_taken_seriously() -> Iterator[None]:
    """Pillow drops damaged metadata with a warning; the orientation or the colours may have been in them."""
    with warnings.catch_warnings():
        for start in (".*orrupt EXIF", "Truncated File", "Tag data larger", "Tag offset too large", "Invalid APNG"):
            warnings.filterwarnings("error", start, UserWarning)
        yield


@contextmanager
def _own_pixel_limit() -> Iterator[None]:
    """Pillow's own limit only warns; ours, checked on the header, stands in for it."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
