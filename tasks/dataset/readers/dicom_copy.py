"""Copies of DICOM files without the tags of the patient."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.dataset.readers.dicom_file import (
    FUNCTIONAL_GROUPS,
    IMAGE_PIXEL_GROUP,
    PREAMBLE,
    read_dataset,
    value_macros,
)
from tasks.dataset.readers.stored import ADVICE, ImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PIXEL_GROUPS = (IMAGE_PIXEL_GROUP, 0x7FE0)
MODALITY, SOP_CLASS, COMMENTS = 0x00080060, 0x00080016, (0x00284000,)


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

    dataset = read_dataset(source, with_pixels=True)
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
            for macro, tags in value_macros(group).items():
                item = Dataset()
                item.update({tag: tags.get_item(tag) for tag in list(tags.keys()) if tag.group == IMAGE_PIXEL_GROUP})
                setattr(kept, macro, [item])
            groups.append(kept)
        if any(groups):
            setattr(copied, name, groups)
