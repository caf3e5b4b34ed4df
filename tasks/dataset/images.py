"""Supported image files, and reading them as 8-bit grey levels."""

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

from tasks.dataset.completeness import ADVICE, IncompleteImageError, check_bmp, check_jpeg, check_png, check_tiff

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow modes with 1, 8 or 16 bits per channel."""

MAX_BYTES_PER_PIXEL = 16
"""Maximum file size, in bytes for each allowed pixel, without metadata."""
MAX_METADATA_BYTES = 2**24
"""Further bytes that a file may have, for metadata."""

TIFF_PHOTOMETRIC, WHITE_IS_ZERO = 262, 0

_pillow_lock = Lock()
"""Held while an image is read, because Pillow's pixel limit and Python's warning filters are shared by all threads."""


class ImageError(ValueError):
    """An image can't be read. The message names the file, the reason and what to do."""


@dataclass(frozen=True)
class GreyImage:
    """An image as grey levels, with the format and mode of its file."""

    pixels: np.ndarray
    """uint8 ``(H, W)``."""
    format: str
    """PNG, JPEG, BMP or TIFF, detected from the content."""
    mode: str
    """Pillow mode of the file, such as ``L`` or ``RGBA``."""


def read_image(path: Path, max_megapixels: float) -> GreyImage:
    """Decode a complete image and convert it to 8-bit grey.

    Colours become luma (ITU-R 601-2: 0.299 R + 0.587 G + 0.114 B). Grey that is stored as colour keeps its values. An
    alpha channel is dropped. 16-bit grey is divided by 257 and rounded. The EXIF orientation is applied.

    Args:
        path: image file.
        max_megapixels: limit on the number of pixels, in millions; it is checked before the pixels are decoded.

    Raises:
        ImageError: the file is not a PNG, JPEG, BMP or TIFF; it is truncated or damaged, as far as the format allows to
            detect it; it has other pixels than its header declares; it is larger than ``max_megapixels`` allows; it has
            several frames; or it has more than 16 bits per channel.
    """
    try:
        n_bytes = path.stat().st_size
        if not n_bytes:
            raise ImageError(f"{path}: the file is empty. {ADVICE}")
        max_bytes = MAX_BYTES_PER_PIXEL * max_megapixels * 1e6 + MAX_METADATA_BYTES
        if n_bytes > max_bytes:
            raise ImageError(
                f"{path}: the file is too large: {n_bytes} bytes. validate.max_megapixels {max_megapixels:g} allows at "
                f"most {max_bytes:.0f} bytes. Raise this parameter, or remove the file."
            )
        # the file is opened here, because Pillow would map a path into memory and then scramble the pixels of TIFFs
        # whose EXIF orientation is a quarter turn
        with _pillow_lock, _without_pillow_limit(), _metadata_warnings_as_errors(), path.open("rb") as file:
            with Image.open(file, formats=FORMATS) as image:
                _check_header(image, path, max_megapixels)
                # verify compares the checksums, which decoding ignores
                image.verify()
                _check_complete(image, file, n_bytes)
            file.seek(0)
            with Image.open(file, formats=FORMATS) as image:
                format_, mode = str(image.format), image.mode
                return GreyImage(_to_grey(image), format_, mode)
    except ImageError:
        raise
    except IncompleteImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{path}: the content is none of {', '.join(FORMATS)}. Convert the file to one of these formats."
        ) from None
    except Exception as error:
        # for damaged files, Pillow's decoders raise errors of many types
        raise ImageError(f"{path}: the file can't be decoded ({error}). {ADVICE}") from error


def read_grey(path: Path, max_megapixels: float = math.inf) -> np.ndarray:
    """Grey levels of :func:`read_image`, uint8 ``(H, W)``."""
    return read_image(path, max_megapixels).pixels


def read_square(path: Path, side: int, max_megapixels: float = math.inf) -> np.ndarray:
    """Grey levels of :func:`read_image`, resized to a square, uint8 ``(side, side)``."""
    return as_square(read_grey(path, max_megapixels), side)


def as_square(grey: np.ndarray, side: int) -> np.ndarray:
    """Resize grey levels, uint8 ``(H, W)``, to a square, uint8 ``(side, side)``. The aspect ratio is not kept."""
    # Pillow's filter is antialiased when it reduces an image
    return np.asarray(Image.fromarray(grey).resize((side, side), Image.Resampling.BILINEAR))


def _check_header(image: Image.Image, path: Path, max_megapixels: float) -> None:
    width, height = image.size
    if width * height > max_megapixels * 1e6:
        raise ImageError(
            f"{path}: {width} x {height} pixels are more than validate.max_megapixels {max_megapixels:g} allows. Raise "
            "this parameter, or remove the file."
        )
    if image.mode not in MODES:
        raise ImageError(
            f"{path}: mode {image.mode} has no fixed range of values. Images must have 1, 8 or 16 bits per channel. "
            "Save the image with 8 or 16 bits per channel."
        )
    # n_frames would read a complete TIFF
    if getattr(image, "is_animated", False):
        raise ImageError(f"{path}: the file holds several frames; save each as a file of its own.")


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
            check_bmp(image, n_bytes)
        case "TIFF":
            check_tiff(image)


def _to_grey(image: Image.Image) -> np.ndarray:
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
def _metadata_warnings_as_errors() -> Iterator[None]:
    """Turn Pillow's warnings about damaged metadata into errors, because orientation or colours may be lost."""
    with warnings.catch_warnings():
        for start in (".*orrupt EXIF", "Truncated File", "Tag data larger", "Tag offset too large", "Invalid APNG"):
            warnings.filterwarnings("error", start, UserWarning)
        yield


@contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Disable Pillow's pixel limit; :func:`_check_header` checks ``max_megapixels`` instead."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
