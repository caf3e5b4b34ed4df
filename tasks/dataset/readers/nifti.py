"""NIfTI volumes, cut into slices."""

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tasks.dataset.readers.completeness import IncompleteImageError
from tasks.dataset.readers.stored import (
    ADVICE,
    ImageError,
    StoredImage,
    check_pixels,
    file_version,
    range_of_bits,
    several_frames_error,
)

SUFFIXES = (".nii", ".nii.gz")
Axis = Literal["axial", "coronal", "sagittal"]
DIMENSION: dict[Axis, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Dimension of a canonical volume (right, anterior, superior) along which it is cut."""
MAX_VOLUME_MEGAPIXELS = 1024
"""Limit on the voxels of a file, in millions. A small compressed file can declare any number."""


def n_nifti_slices(path: Path, axis: Axis) -> tuple[int, int]:
    """Number of volumes of a NIfTI file, and number of slices of each.

    Raises:
        ImageError: the file is not a NIfTI file, or its voxels are not real numbers.
    """
    return _counts(_load(path), axis)


def _counts(image: Any, axis: Axis) -> tuple[int, int]:
    shape = image.shape
    return (shape[3] if len(shape) > 3 else 1), shape[DIMENSION[axis]]


def read_nifti(path: Path, max_megapixels: float, axis: Axis, number: int | None = None) -> StoredImage:
    """Read one slice of a NIfTI file in canonical orientation.

    The values are those of ``nibabel.as_closest_canonical(image).dataobj``. An axial slice shows the patient's right
    at the left and the front at the top, as DICOM does. A coronal and a sagittal slice have the head at the top; a
    sagittal slice has the front at the left. Voxels are not resampled.

    Args:
        path: image file, ``.nii`` or ``.nii.gz``.
        max_megapixels: limit on the number of pixels of a slice, in millions.
        axis: direction in which the volume is cut.
        number: of the slice; the slices of a second volume follow those of the first. None: the file must have one
            slice.

    Raises:
        ImageError: the file holds more pixels than allowed, or values that are not real.
        IncompleteImageError: voxels are missing.
        Exception: for damaged files, nibabel raises errors of many types.
    """
    image = _load(path)
    n_volumes, n_slices = _counts(image, axis)
    if number is None and n_volumes * n_slices > 1:
        raise several_frames_error(path, n_volumes * n_slices)
    volume = _canonical(path, file_version(path))
    shape = [length for i, length in enumerate(volume.shape[:3]) if i != DIMENSION[axis]]
    check_pixels(shape[0], shape[1], path, max_megapixels)
    which, position = divmod(number or 0, n_slices)
    values = volume[..., which] if volume.ndim == 4 else volume
    values = np.ascontiguousarray(cut(values, axis, position))
    stored = image.get_data_dtype()
    dtype = values.dtype
    bits, value_range = None, None
    if dtype.kind in "iu":
        bits = 8 * dtype.itemsize
        value_range = range_of_bits(bits, dtype.kind == "i")
    return StoredImage(values, "NIfTI", str(stored.newbyteorder("=")), bits, value_range)


def cut(volume: np.ndarray, axis: Axis, position: int) -> np.ndarray:
    """One slice ``(H, W)`` of a canonical volume ``(right, anterior, superior)``."""
    match axis:
        case "axial":
            return volume[::-1, ::-1, position].T
        case "coronal":
            return volume[::-1, position, ::-1].T
        case "sagittal":
            return volume[position, ::-1, ::-1].T


def _load(path: Path) -> Any:
    # imported here since it is slow
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        image: Any = nibabel.load(path)
    except (ImageFileError, HeaderDataError, EOFError, OSError) as error:
        raise ImageError(f"{path}: the content is no NIfTI file ({error}). {ADVICE}") from None
    # further dimensions of length 1 are allowed
    if image.ndim < 3 or np.prod(image.shape[4:]) != 1:
        raise ImageError(f"{path}: {image.ndim} dimensions. A NIfTI file must have 3, or 4 with time. Save a volume.")
    if image.get_data_dtype().kind not in "iuf":
        raise ImageError(
            f"{path}: values of type {image.get_data_dtype()}. A NIfTI file must have real numbers. Save grey values."
        )
    if np.prod([float(length) for length in image.shape]) > MAX_VOLUME_MEGAPIXELS * 1e6 or min(image.shape) < 1:
        raise ImageError(
            f"{path}: shape {image.shape}. A volume has at least one and at most {MAX_VOLUME_MEGAPIXELS} million "
            "voxels. Save a part of it."
        )
    return image


@lru_cache(maxsize=1)
def _canonical(path: Path, version: tuple[int, ...]) -> np.ndarray:
    """Voxels of a file in canonical orientation. The last file is kept, since its slices are read one after the other.

    Args:
        path: image file.
        version: from :func:`file_version`, so that a changed file is read again.
    """
    import nibabel

    try:
        # without a valid direction of an axis, nibabel divides by 0 before it raises an error
        with np.errstate(divide="ignore", invalid="ignore"):
            image = nibabel.as_closest_canonical(_load(path))
        voxels: np.ndarray = np.asanyarray(image.dataobj)
        return voxels.reshape(voxels.shape[:4])
    except (EOFError, OSError) as error:
        raise IncompleteImageError(f"incomplete image: {error}. {ADVICE}") from None
