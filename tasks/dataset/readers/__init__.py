"""Reading image files with the values that they store.

One module for each library: Pillow (PNG, JPEG, BMP), tifffile (TIFF), nibabel (NIfTI); three for pydicom (DICOM). The
format is detected from the content of the file, not from its name; only NIfTI files are detected by their suffix.

A file with several images has an image name for each: ``scan.nii.gz#12`` is number 12 of the file ``scan.nii.gz``.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import UnidentifiedImageError

from tasks.dataset.readers import dicom, dicom_file, nifti, raster, tiff
from tasks.dataset.readers.completeness import IncompleteImageError
from tasks.dataset.readers.nifti import Axis
from tasks.dataset.readers.stored import ADVICE, ImageError, StoredImage, UnknownFormatError

__all__ = ["FORMATS", "MODES", "SUFFIXES", "ImageError", "StoredImage", "Volumes", "image_names", "read_stored"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", *dicom_file.SUFFIXES, *nifti.SUFFIXES)
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "DICOM", "NIfTI")

_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64")
MODES = (*raster.MODES, *(f"{dtype}{colours}" for dtype in _DTYPES for colours in ("", " RGB")))
"""Pillow modes of PNG, JPEG and BMP, and types of the values of the other formats."""

MAX_BYTES_PER_PIXEL = 16
"""Maximum file size, in bytes for each allowed pixel, without metadata."""
MAX_METADATA_BYTES = 2**24
"""Further bytes that a file may have, for metadata."""

IMAGE_NAME = re.compile(r"(?s)(.+)#(\d{4,})")
"""File and number of one of its images."""


@dataclass(frozen=True)
class Volumes:
    """Settings for files with several images."""

    frames: Literal["refuse", "first", "all"] = "refuse"
    """Several frames of a DICOM file, pages of a TIFF, or volumes of a NIfTI file: refuse, or take the first or all."""
    axis: Axis = "axial"
    """Direction in which NIfTI volumes are cut into slices."""
    every: int = 1
    """Distance between two slices or frames that are taken."""


def image_names(path: Path, volumes: Volumes) -> list[Path]:
    """Names of the images of a file: the file itself if it holds one image, otherwise one name for each image.

    Raises:
        ImageError: the file cannot be read, or it holds several frames and these are refused.
    """
    kind, n_slices = _kind(path), 1
    with _content_errors(path):
        match kind:
            case "NIfTI":
                n_frames, n_slices = nifti.n_nifti_slices(path, volumes.axis)
            case "TIFF":
                n_frames = tiff.n_tiff_frames(path)
            case "DICOM":
                n_frames = dicom_file.n_dicom_frames(path)
            case _:
                return [path]
    if n_frames > 1 and volumes.frames == "refuse":
        # reading reports it
        return [path]
    n_frames = 1 if volumes.frames == "first" else n_frames
    if n_frames * n_slices == 1 and volumes.frames != "first":
        return [path]
    numbers = range(0, n_frames * n_slices, volumes.every)
    return [path.with_name(f"{path.name}#{number:04d}") for number in numbers]


def read_stored(path: Path, max_megapixels: float = math.inf, axis: Axis = "axial") -> StoredImage:
    """Decode a complete image with the values that its file stores.

    Args:
        path: image file, or the name of one image of a file, from :func:`image_names`.
        max_megapixels: limit on the number of pixels, in millions; it is checked before the pixels are decoded.
        axis: direction in which a NIfTI volume is cut.

    Raises:
        ImageError: the file has none of the formats of :data:`FORMATS`; it is truncated or damaged, as far as the
            format allows to detect it; it has other pixels than its header declares, or values that are not finite; it
            is larger than ``max_megapixels`` allows; or it has several frames and ``path`` names none.
    """
    file, number = split_name(path)
    _check_size(file, max_megapixels)
    kind = _kind(file)
    with _content_errors(path):
        match kind:
            case "NIfTI":
                image = nifti.read_nifti(file, max_megapixels, axis, number)
            case "TIFF":
                image = tiff.read_tiff(file, max_megapixels, number)
            case "DICOM":
                image = dicom.read_dicom(file, max_megapixels, number)
            case _:
                image = raster.read_raster(file, max_megapixels)
    for values in (image.values, image.displayed):
        if values is not None and not np.isfinite(values).all():
            raise ImageError(f"{path}: the image holds values that are not finite. Replace them by numbers.")
    return image


def split_name(path: Path) -> tuple[Path, int | None]:
    """File of an image name, and number of the image in it; None if the file holds one image."""
    found = IMAGE_NAME.fullmatch(path.name)
    if found is None or path.is_file():
        return path, None
    return path.with_name(found[1]), int(found[2])


def has_image_name(path: Path) -> bool:
    """Return whether a file is an image by its name, or a regular file that is a DICOM file by its content."""
    return path.name.lower().endswith(SUFFIXES) or (path.is_file() and dicom_file.has_dicom_magic(path))


def is_dicom(path: Path) -> bool:
    """Return whether a file has DICM after its preamble, or is read as a DICOM file without preamble."""
    return dicom_file.has_dicom_magic(path) or _kind(path) == "DICOM"


def _kind(path: Path) -> str:
    """Format by content, or by suffix for NIfTI; ``raster`` for PNG, JPEG, BMP and files that are not known."""
    if path.name.lower().endswith(nifti.SUFFIXES):
        return "NIfTI"
    with path.open("rb") as file:
        start = file.read(dicom_file.PREAMBLE + 4)
    # first, since the preamble of a DICOM file may be the header of a TIFF
    if start[dicom_file.PREAMBLE :] == b"DICM":
        return "DICOM"
    if start.startswith(tiff.MAGICS):
        return "TIFF"
    is_named_dicom = path.name.lower().endswith(dicom_file.SUFFIXES) and start and not raster.has_raster_magic(start)
    return "DICOM" if is_named_dicom else "raster"


def _check_size(file: Path, max_megapixels: float) -> None:
    n_bytes = file.stat().st_size
    if not n_bytes:
        raise ImageError(f"{file}: the file is empty. {ADVICE}")
    max_bytes = MAX_BYTES_PER_PIXEL * max_megapixels * 1e6 + MAX_METADATA_BYTES
    if n_bytes > max_bytes:
        raise ImageError(
            f"{file}: the file is too large: {n_bytes} bytes. validate.max_megapixels {max_megapixels:g} allows at "
            f"most {max_bytes:.0f} bytes. Raise this parameter, or remove the file."
        )


@contextmanager
def _content_errors(path: Path) -> Iterator[None]:
    """Turn every error of a reader about the content into an :class:`ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except IncompleteImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except UnidentifiedImageError:
        raise UnknownFormatError(
            f"{path}: the content is none of {', '.join(FORMATS)}. Convert the file to one of these formats."
        ) from None
    except Exception as error:
        # for damaged files, decoders raise errors of many types
        raise ImageError(f"{path}: the file cannot be decoded ({error}). {ADVICE}") from error
