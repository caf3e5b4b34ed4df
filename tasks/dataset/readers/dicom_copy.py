"""Copies of DICOM files without the tags of the patient."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.dataset.readers.dicom_file import FUNCTIONAL_GROUPS, PREAMBLE, read_dataset, value_macros
from tasks.dataset.readers.stored import ADVICE, ImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PALETTES = [
    f"{name}PaletteColorLookupTable{part}"
    for colour in ("Red", "Green", "Blue")
    for name, part in ((colour, "Descriptor"), (colour, "Data"), (f"Segmented{colour}", "Data"))
]
COPIED = frozenset(
    (
        *("SOPClassUID", "Modality"),
        *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
        *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", *PALETTES),
        *("RescaleIntercept", "RescaleSlope", "RescaleType", "ModalityLUTSequence"),
        *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "LUTDescriptor", "LUTData"),
        *("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "EncapsulatedPixelDataValueTotalLength"),
        *("PixelData", "FloatPixelData", "DoubleFloatPixelData"),
    )
)
"""Tags that the values or the unit of the pixels depend on. No other tag is copied, since it may identify a patient."""


def copy_pixels(source: Path, target: Path) -> None:
    """Copy a DICOM file with its pixels and the tags that their values depend on, and without every other tag.

    The copied tags are those of :data:`COPIED`, also within sequences and of the frames of an enhanced multi-frame
    file. So the copy holds no name, no id and no date of a patient. The pixel data are not decoded.

    Args:
        source: DICOM file.
        target: file that is written.

    Raises:
        ImageError: the file cannot be read or written as DICOM.
    """
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    dataset = read_dataset(source, with_pixels=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            copied = _copied_tags(dataset)
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


def _copied_tags(dataset: "Dataset") -> "Dataset":
    """Tags of :data:`COPIED`, also within the items of sequences."""
    from pydicom.datadict import keyword_for_tag
    from pydicom.dataset import Dataset

    copied = Dataset()
    for tag in list(dataset.keys()):  # iterating the data set would decode every value
        keyword = keyword_for_tag(tag)
        if keyword in COPIED and keyword.endswith("Sequence"):
            setattr(copied, keyword, [_copied_tags(item) for item in dataset[tag].value or []])
        elif keyword in COPIED:
            copied[tag] = dataset.get_item(tag)
    return copied


def _copy_functional_groups(dataset: "Dataset", copied: "Dataset") -> None:
    """Copy the rescaling and the window of the frames of an enhanced multi-frame file, and nothing else of them."""
    from pydicom.dataset import Dataset

    for name in FUNCTIONAL_GROUPS:
        groups = []
        for group in dataset.get(name) or []:
            kept = Dataset()
            for macro, tags in value_macros(group).items():
                setattr(kept, macro, [_copied_tags(tags)])
            groups.append(kept)
        if any(groups):
            setattr(copied, name, groups)
