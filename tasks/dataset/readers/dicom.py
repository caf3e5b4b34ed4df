"""Frames of DICOM files, decoded by pydicom and its plug-in :mod:`tasks.dataset.readers.dicom_decoder`."""

import math
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.dataset.readers.completeness import (
    IncompleteImageError,
    check_byte_count,
    check_jpeg,
    check_rle,
)
from tasks.dataset.readers.dicom_file import (
    FUNCTIONAL_GROUPS,
    IMAGE_PIXEL_GROUP,
    cached_dataset,
    declared_frames,
    read_dataset,
    value_macros,
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

MAX_CHANNELS = 4
TAG_GROUPS = (0x0008, IMAGE_PIXEL_GROUP)
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


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
        dataset = read_dataset(path, with_pixels=True) if frame is None else cached_dataset(path, file_version(path))
        n_frames = declared_frames(dataset, path)
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
    macros = [tags for group in groups for tags in value_macros(group).values()]
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
