"""An image as its file stores it, and the errors of files that cannot be read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

ADVICE = "Copy or save the file again."
"""End of the messages about damaged files."""

Unit = Literal["grey level", "HU"]
"""Unit of the values: grey levels of the file, or Hounsfield units."""


class ImageError(ValueError):
    """An image cannot be read. The message names the file, the reason and what to do."""


class UnknownFormatError(ImageError):
    """The content of a file is no image of a supported format."""


@dataclass(frozen=True)
class StoredImage:
    """One image with the values that its file stores, before they are mapped to [0, 1]."""

    values: np.ndarray
    """``(H, W)``, or ``(H, W, 3)`` for colours (red, green, blue), upright, without alpha.

    The dtype is that of the file. In a DICOM file with a rescale slope or a modality table, and in a NIfTI file with a
    slope, the values are those after this conversion, as pydicom and nibabel compute them.
    """
    format: str
    """PNG, JPEG, BMP, TIFF, DICOM or NIfTI, detected from the content."""
    mode: str
    """Pillow mode of a PNG, JPEG or BMP; for other files the dtype of the stored values, and RGB for colours."""
    bits: int | None
    """Significant bits of a stored value; None for floating point."""
    value_range: tuple[float, float] | None
    """Smallest and largest value that these bits can hold, in the unit of ``values``; None for floating point."""
    unit: Unit = "grey level"
    is_inverted: bool = False
    """True if the smallest value is white: DICOM MONOCHROME1, TIFF WhiteIsZero."""
    displayed: np.ndarray | None = None
    """The values after the window or table (VOI LUT) of a DICOM file, in [0, 1]; None if the file has none."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.values.shape[0], self.values.shape[1]


def range_of_bits(bits: int, is_signed: bool) -> tuple[float, float]:
    """Smallest and largest whole number of some bits."""
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if is_signed else (0.0, 2.0**bits - 1)


def file_version(path: Path) -> tuple[int, ...]:
    """Numbers that differ if a file is replaced or written again: inode, size, and times of its content and status.

    A copy can have the time and the size of the former file. The time of its status is that of the machine.
    """
    state = path.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def check_pixels(width: int, height: int, path: Path, max_megapixels: float) -> None:
    """Check the size of an image before its pixels are decoded.

    Raises:
        ImageError: it has more pixels than ``max_megapixels`` allows.
    """
    if width * height > max_megapixels * 1e6:
        raise ImageError(
            f"{path}: {width} x {height} pixels are more than validate.max_megapixels {max_megapixels:g} allows. Raise "
            "this parameter, or remove the file."
        )


def several_frames_error(path: Path, n: int) -> ImageError:
    """Error for a file with several frames, if one image is expected."""
    return ImageError(
        f"{path}: the file holds several frames: {n}. One is allowed. Save each frame as a separate file. For "
        "TIFF, DICOM and NIfTI acquire.volumes.frames can be first or all."
    )


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels ``(H, W, ...)`` upright by their EXIF or TIFF orientation, 1 to 8."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
