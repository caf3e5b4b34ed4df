"""A DICOM file: its data set and its tags, read by pydicom without decoding the pixels."""

import io
import logging
import warnings
import zlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.dataset.readers.completeness import BLOCK_BYTES, n_inflated
from tasks.dataset.readers.stored import ADVICE, ImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SUFFIXES = (".dcm", ".dicom")
PREAMBLE = 128
"""Bytes before the characters DICM."""
MAX_INFLATED_BYTES = 2**29
"""Maximum size of a deflated file (transfer syntax 1.2.840.10008.1.2.1.99) after decompression."""
IMAGE_PIXEL_GROUP = 0x0028
FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
"""Tags of an enhanced multi-frame file: of all frames, and of each frame."""


def has_dicom_magic(path: Path) -> bool:
    """Return whether a file is a DICOM file by its content, not by its name. It must be a regular file."""
    with path.open("rb") as file:
        return file.read(PREAMBLE + 4)[PREAMBLE:] == b"DICM"


def n_dicom_frames(path: Path) -> int:
    """Number of frames of a DICOM file.

    Raises:
        ImageError: the file is not a DICOM file, or its number of frames is no number.
    """
    return declared_frames(read_dataset(path, with_pixels=False), path)


def read_tags(path: Path, keywords: Iterable[str]) -> dict[str, str]:
    """Values of some DICOM tags as text; the empty text for a tag that the file lacks. No other tag is returned.

    Args:
        path: DICOM file.
        keywords: of the tags, such as ``PatientID``.

    Raises:
        ImageError: the file is not a DICOM file.
    """
    dataset = read_dataset(path, with_pixels=False)
    return {keyword: str(dataset.get(keyword) or "").strip() for keyword in keywords}


def read_dataset(path: Path, with_pixels: bool) -> "Dataset":
    """All tags of a DICOM file, or all before its pixels.

    Raises:
        ImageError: the file is not a DICOM file, or is too large after decompression.
    """
    # imported here since it is slow
    import pydicom
    from pydicom.errors import InvalidDicomError

    # its messages about unusual tags become errors here, or have no influence on the pixels; they may contain values
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _BoundedReader(io.FileIO(path)) as file:
                # force: files of old scanners have no preamble
                dataset = pydicom.dcmread(file, force=True, stop_before_pixels=not with_pixels)
        except (InvalidDicomError, EOFError):
            dataset = None
    if dataset is None or not (has_dicom_magic(path) or "SOPClassUID" in dataset):
        raise ImageError(f"{path}: the content is no DICOM file: it has no DICM and no SOPClassUID. {ADVICE}")
    return dataset


class _BoundedReader(io.BufferedReader):
    """A file that is checked before pydicom inflates it. Only for this does pydicom read a file to its end at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes.

        Raises:
            ImageError: all bytes are read, and are larger than :data:`MAX_INFLATED_BYTES` after decompression.
        """
        content = super().read(size)
        if size is None or size < 0:
            pieces = (content[start : start + BLOCK_BYTES] for start in range(0, len(content), BLOCK_BYTES))
            if n_inflated(pieces, MAX_INFLATED_BYTES + 1, -zlib.MAX_WBITS) > MAX_INFLATED_BYTES:
                raise ImageError(
                    f"{self.name}: the deflated DICOM file is larger than {MAX_INFLATED_BYTES} bytes after "
                    "decompression, which is the maximum. Save the file uncompressed, or remove it."
                )
        return content


@lru_cache(maxsize=1)
def cached_dataset(path: Path, version: tuple[int, ...]) -> "Dataset":
    """A file with its pixels. The last file is kept, since its frames are read one after the other.

    Args:
        path: image file.
        version: from :func:`file_version`, so that a changed file is read again.
    """
    return read_dataset(path, with_pixels=True)


def declared_frames(dataset: "Dataset", path: Path) -> int:
    """Number of frames that the header declares; 1 if it declares none.

    Raises:
        ImageError: it is no whole number.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return max(int(dataset.get("NumberOfFrames") or 1), 1)
    except (TypeError, ValueError):
        # not with the value: in a damaged file it may identify a patient
        raise ImageError(f"{path}: the number of frames of the DICOM file is no whole number. {ADVICE}") from None


def value_macros(functional_group: "Dataset") -> dict[str, "Dataset"]:
    """Parts of a functional group that the values of a frame depend on: the rescaling and the window, by tag."""
    names = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
    return {name: functional_group[name][0] for name in names if functional_group.get(name)}
