"""DICOM, read by pydicom and decoded by its plug-in :mod:`tasks.dataset.readers.dicom_decoder`."""

import io
import logging
import math
import warnings
import zlib
from collections.abc import Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.dataset.readers.completeness import (
    BLOCK_BYTES,
    IncompleteImageError,
    check_byte_count,
    check_jpeg,
    check_rle,
    n_inflated,
)
from tasks.dataset.readers.stored import (
    ADVICE,
    ImageError,
    StoredImage,
    check_pixels,
    file_version,
    range_of_bits,
    several_frames_error,
)
from tasks.dataset.readers.streams import START_OF_CODESTREAM, START_OF_JPEG, check_stream

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SUFFIXES = (".dcm", ".dicom")
PREAMBLE = 128
"""Bytes before the characters DICM."""
MAX_CHANNELS = 4
MAX_INFLATED_BYTES = 2**29
"""Maximum size of a deflated file (transfer syntax 1.2.840.10008.1.2.1.99) after decompression."""
TAG_GROUPS = (0x0008, 0x0028)
PIXEL_GROUPS = (0x0028, 0x7FE0)
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
"""Tags of an enhanced multi-frame file: of all frames, and of each frame."""
FRAME_MACROS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
"""Parts of the functional groups that the values of a frame depend on: the rescaling and the window."""
MODALITY, SOP_CLASS, COMMENTS = 0x00080060, 0x00080016, (0x00284000,)


def has_dicom_magic(path: Path) -> bool:
    """Return whether a file is a DICOM file by its content, not by its name. It must be a regular file."""
    with path.open("rb") as file:
        return file.read(PREAMBLE + 4)[PREAMBLE:] == b"DICM"


def n_dicom_frames(path: Path) -> int:
    """Number of frames of a DICOM file.

    Raises:
        ImageError: the file is not a DICOM file, or its number of frames is no number.
    """
    return _n_frames(_read(path, with_pixels=False), path)


def read_dicom(path: Path, max_megapixels: float, frame: int | None = None) -> StoredImage:
    """Decode one frame of a DICOM file.

    The values are those of ``pydicom.pixels.pixel_array`` after ``apply_rescale`` (rescale slope and intercept, or
    modality table) and, for a palette, after ``apply_color_lut``. They are in HU if the file is a CT and its rescale
    type is HU or absent. MONOCHROME1 is marked as inverted; the values are not changed.

    Args:
        path: image file.
        max_megapixels: limit on the number of pixels of a frame, in millions.
        frame: number of the frame; None: the file must have one.

    Raises:
        ImageError: the file has no pixels, more pixels than allowed, several frames, or a compression without decoder.
        IncompleteImageError: pixels are missing.
        Exception: for damaged files, decoders raise errors of many types.
    """
    from pydicom.pixels import apply_color_lut, apply_rescale

    with warnings.catch_warnings():
        # of unusual tags; they may contain values
        warnings.simplefilter("ignore")
        dataset = _read(path, with_pixels=True) if frame is None else _cached_dataset(path, file_version(path))
        n_frames = _n_frames(dataset, path)
        if n_frames > 1 and frame is None:
            raise several_frames_error(path, n_frames)
        _check_readable(dataset, path, max_megapixels)
        _check_bits(dataset, path)
        _check_complete(dataset, frame or 0, n_frames)
        tags = _tags_of_frame(dataset, frame or 0)
        stored = _decode(dataset, path, frame or 0)
        is_palette = dataset.get("PhotometricInterpretation") == "PALETTE COLOR"
        values = apply_color_lut(stored, tags) if is_palette else apply_rescale(stored, tags)
        values = values[..., :3] if values.ndim == 3 else values
        is_grey = values.ndim == 2
        displayed = _displayed(values, tags) if is_grey else None
    dtype = values.dtype if is_palette else stored.dtype
    bits = 8 * dtype.itemsize if is_palette else int(dataset.get("BitsStored", 0))
    value_range = None
    if dtype.kind in "biu":
        value_range = range_of_bits(bits, dtype.kind == "i")
        if not is_palette and not value_range[0] <= stored.min() <= stored.max() <= value_range[1]:
            raise ImageError(f"{path}: the file holds values that do not fit into its {bits} bits. Convert the file.")
        if is_grey and values is not stored:
            ends = [float(_rescaled(tags, value)) for value in value_range]
            value_range = (min(ends), max(ends))
    is_hu = tags.get("Modality") == "CT" and "RescaleIntercept" in tags and _rescale_type(tags) in ("HU", "")
    return StoredImage(
        values=values,
        format="DICOM",
        mode=str(dtype) if is_grey else f"{dtype} RGB",
        bits=bits if value_range else None,
        value_range=value_range,
        unit="HU" if is_hu else "grey level",
        is_inverted=dataset.get("PhotometricInterpretation") == "MONOCHROME1",
        displayed=displayed,
    )


def _check_readable(dataset: "Dataset", path: Path, max_megapixels: float) -> None:
    """Check that a file has pixels, few enough, and that a decoder for their compression is installed.

    Raises:
        ImageError: it has not.
    """
    from pydicom.uid import UID_dictionary

    from tasks.dataset.readers import dicom_decoder

    if not any(name in dataset for name in PIXELS):
        kind = dataset.get("SOPClassUID")
        # an unknown kind is not named: in a damaged file its value may identify a patient
        name = kind.name if kind in UID_dictionary else "unknown kind"
        raise ImageError(
            f"{path}: the DICOM file has no pixels: {name}. Images must have pixel data. Move the file away."
        )
    check_pixels(int(dataset.Columns), int(dataset.Rows), path, max_megapixels)
    if int(dataset.get("SamplesPerPixel", 1)) > MAX_CHANNELS:
        raise ImageError(f"{path}: {dataset.SamplesPerPixel} samples per pixel. A DICOM image has 1 or 3. {ADVICE}")
    if _is_compressed(dataset) and not dicom_decoder.is_available(syntax := dataset.file_meta.TransferSyntaxUID):
        raise ImageError(f"{path}: no decoder for the compression {syntax.name}. Save the file uncompressed.")


def _is_compressed(dataset: "Dataset") -> bool:
    """Return whether :mod:`tasks.dataset.readers.dicom_decoder` must decode the frames; pydicom decodes RLE."""
    from pydicom.uid import RLELossless

    syntax = dataset.file_meta.get("TransferSyntaxUID")
    return syntax is not None and syntax.is_encapsulated and syntax != RLELossless


def _check_bits(dataset: "Dataset", path: Path) -> None:
    """Check that the stored bits are the lowest ones, because pydicom would decode others as such.

    Raises:
        ImageError: they are not.
    """
    if "HighBit" in dataset and "BitsStored" in dataset and int(dataset.HighBit) != int(dataset.BitsStored) - 1:
        raise ImageError(
            f"{path}: the highest of the {dataset.BitsStored} bits of a value is bit {dataset.HighBit}. It must be bit "
            f"{int(dataset.BitsStored) - 1}, as the present DICOM standard says. Convert the file."
        )


def _check_complete(dataset: "Dataset", frame: int, n_frames: int) -> None:
    """Compare the pixel data of one frame with the header before they are decoded.

    Raises:
        IncompleteImageError: pixels are missing, or there are more rows or frames than the header declares; or a
            compressed frame has another format.
    """
    from pydicom.encaps import get_frame
    from pydicom.pixels.utils import get_expected_length

    from tasks.dataset.readers import dicom_decoder

    n_samples = int(dataset.get("SamplesPerPixel", 1))
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None or not syntax.is_encapsulated:
        name = next(name for name in PIXELS if name in dataset)
        row_bits = int(dataset.Columns) * n_samples * int(dataset.BitsAllocated)
        check_byte_count(len(dataset[name].value), get_expected_length(dataset), math.ceil(row_bits / 8))
        return
    if frame == 0:
        _check_number_of_streams(dataset, n_frames)
    tables = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    offsets = None if None in tables else tables
    stream = get_frame(dataset.PixelData, frame, number_of_frames=n_frames, extended_offsets=offsets)
    if not _is_compressed(dataset):
        check_rle(stream, int(dataset.Rows) * int(dataset.Columns), int(dataset.Columns))
        return
    check_stream(stream, int(dataset.Columns), int(dataset.Rows))
    if syntax in (*dicom_decoder.JPEG, *dicom_decoder.LOSSLESS_JPEG):
        check_jpeg(stream, partial(dicom_decoder.decode_jpeg, n_samples=n_samples))


def _check_number_of_streams(dataset: "Dataset", n_frames: int) -> None:
    """Check that there are not more compressed images than frames, since the further ones would be ignored.

    Raises:
        IncompleteImageError: there are more.
    """
    from pydicom.encaps import generate_fragments

    starts = START_OF_JPEG, START_OF_CODESTREAM
    n_streams = sum(fragment.startswith(starts) for fragment in generate_fragments(dataset.PixelData))
    if n_streams > n_frames:
        raise IncompleteImageError(
            f"wrong number of frames: the file holds {n_streams} compressed images, but its header declares "
            f"{n_frames}. {ADVICE}"
        )


def _tags_of_frame(dataset: "Dataset", frame: int) -> "Dataset":
    """Tags with the rescaling and the window of one frame of an enhanced multi-frame file (DICOM PS3.3 C.7.6.16)."""
    from pydicom.dataset import Dataset

    shared, of_frames = (dataset.get(name) or [] for name in FUNCTIONAL_GROUPS)
    groups = [*shared[:1], *of_frames[frame : frame + 1]]
    macros = [group[name][0] for group in groups for name in FRAME_MACROS if group.get(name)]
    if not macros:
        return dataset
    tags = Dataset()
    for each in (dataset, *macros):
        tags.update({tag: each.get_item(tag) for tag in list(each.keys()) if tag.group in TAG_GROUPS})
    return tags


def _decode(dataset: "Dataset", path: Path, frame: int) -> np.ndarray:
    """Decode the stored values of one frame.

    Raises:
        ImageError: 12-bit lossy JPEG has no decoder in this environment.
        Exception: for damaged files, decoders raise errors of many types.
    """
    from pydicom.pixels import pixel_array
    from pydicom.uid import JPEGExtended12Bit

    from tasks.dataset.readers import dicom_decoder

    is_deep_jpeg = dataset.file_meta.get("TransferSyntaxUID") == JPEGExtended12Bit and int(dataset.BitsStored) > 8
    plugin = "pylibjpeg" if is_deep_jpeg else dicom_decoder.NAME if _is_compressed(dataset) else ""
    try:
        return pixel_array(dataset, index=frame, decoding_plugin=plugin)
    except RuntimeError as error:
        if is_deep_jpeg and "missing dependencies" in str(error):
            raise ImageError(
                f"{path}: 12-bit lossy JPEG has no decoder in this environment. Install the extra jpeg12 (`pip "
                "install pylibjpeg pylibjpeg-libjpeg`), or save the file uncompressed."
            ) from None
        raise


def copy_pixels(source: Path, target: Path) -> None:
    """Copy a DICOM file with its pixels and the tags that their values depend on, and without every other tag.

    The copied tags are those of the group "image pixel" (0028) without comments, also of the frames of an enhanced
    multi-frame file, the modality and the SOP class. So the copy holds no name, no id and no date of a patient. The
    pixel data are not decoded.

    Args:
        source: DICOM file.
        target: file that is written.

    Raises:
        ImageError: the file cannot be read or written as DICOM.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    dataset = _read(source, with_pixels=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            copied = Dataset()
            for tag in list(dataset.keys()):  # iterating the data set would decode every value
                is_pixel_tag = tag.group in PIXEL_GROUPS and tag not in COMMENTS
                if is_pixel_tag or tag in (MODALITY, SOP_CLASS):
                    copied[tag] = dataset.get_item(tag)
            _copy_functional_groups(dataset, copied)
            is_implicit, is_little_endian = dataset.original_encoding
            explicit = ExplicitVRLittleEndian if is_little_endian else ExplicitVRBigEndian
            syntax = dataset.file_meta.get("TransferSyntaxUID") or (ImplicitVRLittleEndian if is_implicit else explicit)
            copied.file_meta = FileMetaDataset()
            copied.file_meta.TransferSyntaxUID = syntax
            copied.preamble = bytes(PREAMBLE)
            copied.set_original_encoding(is_implicit, is_little_endian, dataset.original_character_set)
            copied.save_as(target, enforce_file_format=False)
        except Exception as error:
            # for damaged files, pydicom raises errors of many types
            target.unlink(missing_ok=True)
            raise ImageError(
                f"{source}: the DICOM file cannot be copied without the tags of the patient ({error}). {ADVICE}"
            ) from None


def _copy_functional_groups(dataset: "Dataset", copied: "Dataset") -> None:
    """Copy the rescaling and the window of the frames of an enhanced multi-frame file, and nothing else of them."""
    from pydicom.dataset import Dataset

    for name in FUNCTIONAL_GROUPS:
        groups = []
        for group in dataset.get(name) or []:
            kept = Dataset()
            for macro in FRAME_MACROS:
                if items := group.get(macro):
                    tags = {tag: items[0].get_item(tag) for tag in list(items[0].keys()) if tag.group == TAG_GROUPS[1]}
                    item = Dataset()
                    item.update(tags)
                    setattr(kept, macro, [item])
            groups.append(kept)
        if any(groups):
            setattr(copied, name, groups)


def read_tags(path: Path, keywords: Iterable[str]) -> dict[str, str]:
    """Values of some DICOM tags as text; the empty text for a tag that the file lacks. No other tag is returned.

    Args:
        path: DICOM file.
        keywords: of the tags, such as ``PatientID``.

    Raises:
        ImageError: the file is not a DICOM file.
    """
    dataset = _read(path, with_pixels=False)
    return {keyword: str(dataset.get(keyword) or "").strip() for keyword in keywords}


def _read(path: Path, with_pixels: bool) -> "Dataset":
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
def _cached_dataset(path: Path, version: tuple[int, ...]) -> "Dataset":
    """A file with its pixels. The last file is kept, since its frames are read one after the other.

    Args:
        path: image file.
        version: from :func:`file_version`, so that a changed file is read again.
    """
    return _read(path, with_pixels=True)


def _n_frames(dataset: "Dataset", path: Path) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return max(int(dataset.get("NumberOfFrames") or 1), 1)
    except (TypeError, ValueError):
        # not with the value: in a damaged file it may identify a patient
        raise ImageError(f"{path}: the number of frames of the DICOM file is no whole number. {ADVICE}") from None


def _rescaled(dataset: "Dataset", value: float) -> float:
    """One stored value after the rescale slope and intercept; a modality table has its own range."""
    from pydicom.pixels import apply_rescale

    if "ModalityLUTSequence" in dataset:
        data = dataset.ModalityLUTSequence[0].LUTDescriptor
        return 0.0 if value <= 0 else 2.0 ** int(data[2]) - 1
    rescaled: Any = apply_rescale(np.array([value]), dataset)
    return float(rescaled[0])


def _rescale_type(dataset: "Dataset") -> str:
    return str(dataset.get("RescaleType") or "").strip()


def _displayed(values: np.ndarray, dataset: "Dataset") -> np.ndarray | None:
    """Values after the file's own window or VOI table, float64 ``(H, W)`` in [0, 1]; None if it has neither.

    For a table the range is that of its bits; for a window (linear, linear exact or sigmoid) the range that pydicom
    returns (DICOM PS3.3 C.11.2).
    """
    from pydicom.pixels import apply_voi, apply_windowing

    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return np.asarray(apply_voi(values, dataset) / (2.0**bits - 1))
    if dataset.get("WindowCenter") is None or dataset.get("WindowWidth") is None:
        return None
    # the window maps to the range of the stored bits after the rescaling
    windowed = np.asarray(apply_windowing(values, dataset), dtype=np.float64)
    low, high = sorted(
        _rescaled(dataset, value)
        for value in range_of_bits(int(dataset.BitsStored), dataset.get("PixelRepresentation") == 1)
    )
    return np.asarray(np.clip((windowed - low) / (high - low), 0, 1))
