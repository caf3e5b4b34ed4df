"""Readers of image files: their own values, unit and depth, and the reasons of refusals."""

import gzip
import io
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, apply_rescale, pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
)

from tasks.dataset.images import Reading, read_image
from tasks.dataset.intensity import IntensityRange
from tasks.dataset.readers import ImageError, Volumes, image_names, read_stored
from tasks.dataset.readers.dicom import copy_pixels
from tasks.dataset.readers.nifti import DIMENSION, Axis
from tests.faults.fuzz import ENCODERS, small_dicom

RNG = np.random.default_rng(0)
GREY_12 = RNG.integers(0, 4096, (30, 50)).astype(np.uint16)


def folder_of(variable: str) -> Path:
    """Folder of data that the repository does not contain, from an environment variable."""
    if variable not in os.environ:
        pytest.skip(f"the environment variable {variable} names no folder of data")
    return Path(os.environ[variable])


def write_dicom(path: Path, **tags: Any) -> pydicom.Dataset:
    """Write a DICOM file of 6 x 8 pixels with some tags changed; None removes a tag."""
    dataset = pydicom.dcmread(io.BytesIO(small_dicom(tags.pop("n_frames", None))))
    for keyword, value in tags.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=False)
    return dataset


def test_a_ct_is_read_in_hounsfield_units_with_the_range_of_its_stored_bits(tmp_path: Path) -> None:
    dataset = write_dicom(tmp_path / "1.2.840")
    image = read_stored(tmp_path / "1.2.840")
    np.testing.assert_array_equal(image.values, apply_rescale(pixel_array(dataset), dataset))
    assert (image.format, image.mode, image.bits, image.unit) == ("DICOM", "uint16", 12, "HU")
    assert image.value_range == (-1024, 3071)


def test_a_rescale_type_other_than_hu_and_another_modality_are_grey_levels(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", RescaleType="US")
    write_dicom(tmp_path / "b.dcm", Modality="MR")
    assert [read_stored(tmp_path / name).unit for name in ("a.dcm", "b.dcm")] == ["grey level", "grey level"]


def test_a_window_in_hu_gives_known_levels(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", PixelData=np.array([[24, 1024, 1524, 2024, 3000, 0, 0, 0]] * 6, "<u2").tobytes())
    window = Reading(IntensityRange("window", low=-1000, high=1000, unit="HU"))
    levels = read_image(tmp_path / "a.dcm", 1, window).pixels
    # -1000, 0, 500 and 1000 HU; below and above the window
    assert levels[0].tolist() == [0, 128, 191, 255, 255, 0, 0, 0]


def test_the_window_of_the_file_is_applied_as_pydicom_does(tmp_path: Path) -> None:
    dataset = write_dicom(tmp_path / "a.dcm", WindowCenter=-1000, WindowWidth=20)
    windowed = pydicom.pixels.apply_windowing(apply_rescale(pixel_array(dataset), dataset), dataset)
    levels = read_image(tmp_path / "a.dcm", 1, Reading(IntensityRange("file_window"))).pixels
    np.testing.assert_array_equal(levels, np.rint(255 * (windowed + 1024) / 4095))
    write_dicom(tmp_path / "b.dcm", WindowCenter=None)
    with pytest.raises(ImageError, match=r"b\.dcm: the file has no window and no VOI table"):
        read_image(tmp_path / "b.dcm", 1, Reading(IntensityRange("file_window")))


def test_monochrome1_keeps_its_values_and_is_inverted_when_it_is_mapped(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm")
    write_dicom(tmp_path / "b.dcm", PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_stored(tmp_path / "a.dcm").values, read_stored(tmp_path / "b.dcm").values)
    levels = [read_image(tmp_path / name, 1).pixels.astype(int) for name in ("a.dcm", "b.dcm")]
    np.testing.assert_array_equal(levels[0], 255 - levels[1])


def test_frames_are_refused_or_named_as_the_parameter_says(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    dataset = write_dicom(path, n_frames=3)
    assert image_names(path, Volumes("refuse")) == [path]
    with pytest.raises(ImageError, match=r"holds several frames: 3\. .*acquire\.volumes\.frames"):
        read_stored(path)
    assert [name.name for name in image_names(path, Volumes("first"))] == ["a.dcm#0000"]
    names = image_names(path, Volumes("all"))
    for name, frame in zip(names, apply_rescale(pixel_array(dataset), dataset), strict=True):
        np.testing.assert_array_equal(read_stored(name).values, frame)
    assert image_names(path, Volumes("all", every=2)) == [names[0], names[2]]


def test_all_frames_of_a_dicom_file_are_read_at_once_and_again_if_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, reads, read = tmp_path / "a.dcm", [], pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", lambda *args, **options: reads.append(1) or read(*args, **options))
    for n_frames in (3, 4):
        dataset = write_dicom(path, n_frames=n_frames)
        reads.clear()
        frames = [read_stored(path.with_name(f"a.dcm#000{number}")).values for number in range(n_frames)]
        assert len(reads) == 1
        np.testing.assert_array_equal(frames, apply_rescale(pixel_array(dataset), dataset))


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"PixelData": None}, "has no pixels: CT Image Storage"),
        ({"PixelData": bytes(90)}, "incomplete image: .*less than expected"),
        ({"NumberOfFrames": None, "n_frames": 2, "Rows": 60_000, "Columns": 60_000}, "more than validate.max_meg"),
    ],
    ids=["no pixels", "truncated", "huge"],
)
def test_dicom_without_usable_pixels_is_refused_with_the_reason(
    tmp_path: Path, tags: dict[str, Any], reason: str
) -> None:
    write_dicom(tmp_path / "a.dcm", **tags)
    with pytest.raises(ImageError, match=reason):
        read_stored(tmp_path / "a.dcm", 1)


def test_a_number_of_frames_that_is_no_number_is_refused_without_naming_it(tmp_path: Path) -> None:
    content = small_dicom(2)
    (tmp_path / "a.dcm").write_bytes(content.replace(b"IS\x02\x002 ", b"IS\x02\x00xy"))
    with pytest.raises(ImageError, match="number of frames of the DICOM file is no whole number"):
        image_names(tmp_path / "a.dcm", Volumes("all"))


def test_a_copy_without_other_tags_has_the_same_values_and_no_name(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", PatientName="Doe^Jane", PatientID="4711", InstitutionName="Clinic of Doe")
    copy_pixels(tmp_path / "a.dcm", tmp_path / "copy")
    copied, original = read_stored(tmp_path / "copy"), read_stored(tmp_path / "a.dcm")
    np.testing.assert_array_equal(copied.values, original.values)
    assert (copied.unit, copied.bits, copied.value_range) == (original.unit, original.bits, original.value_range)
    assert copied.displayed is not None
    np.testing.assert_array_equal(copied.displayed, original.displayed)
    content = (tmp_path / "copy").read_bytes()
    assert b"Doe" not in content
    assert b"4711" not in content


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int8, np.int16, np.float16, np.float32, np.uint32])
@pytest.mark.parametrize("options", [{}, {"byteorder": ">"}, {"compression": "zlib"}, {"tile": (16, 16)}], ids=str)
def test_a_tiff_keeps_its_values(tmp_path: Path, dtype: type, options: dict[str, Any]) -> None:
    values = GREY_12.astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    image = read_stored(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.values, values)
    assert image.values.dtype == dtype
    assert image.bits == (None if np.dtype(dtype).kind == "f" else 8 * np.dtype(dtype).itemsize)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("planarconfig", ["separate", "contig"])
def test_colours_of_16_bits_are_not_scrambled(tmp_path: Path, byteorder: Any, planarconfig: str) -> None:
    colours = np.stack([GREY_12, GREY_12.T.reshape(30, 50), 4095 - GREY_12], axis=2)
    planes = np.moveaxis(colours, 2, 0) if planarconfig == "separate" else colours
    tifffile.imwrite(
        tmp_path / "a.tif", planes, photometric="rgb", planarconfig=planarconfig, byteorder=byteorder, metadata=None
    )
    image = read_stored(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.values, colours)
    assert image.mode == "uint16 RGB"


def test_pages_of_a_tiff_are_refused_or_named_and_reduced_pages_do_not_count(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(GREY_12, metadata=None)
        tiff.write(GREY_12[::2, ::2], subfiletype=1, metadata=None)
    assert image_names(tmp_path / "a.tif", Volumes()) == [tmp_path / "a.tif"]
    np.testing.assert_array_equal(read_stored(tmp_path / "a.tif").values, GREY_12)
    tifffile.imwrite(tmp_path / "b.tif", np.stack([GREY_12, GREY_12 + 1]), photometric="minisblack", metadata=None)
    with pytest.raises(ImageError, match="holds several frames"):
        read_stored(tmp_path / "b.tif")
    second = image_names(tmp_path / "b.tif", Volumes("all"))[1]
    np.testing.assert_array_equal(read_stored(second).values, GREY_12 + 1)


def test_a_tiff_whose_pages_form_a_loop_is_refused_at_once(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.stack([GREY_12] * 3), photometric="minisblack", metadata=None)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        last, first = tiff.pages[2].offset, tiff.pages[0].offset
    next_page = last + 2 + 12 * struct.unpack_from("<H", content, last)[0]
    struct.pack_into("<I", content, next_page, first)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(ImageError, match="the pages of the TIFF form a loop"):
        read_stored(tmp_path / "a.tif")


def encoded(codec: str, height: int, width: int) -> bytes:
    import imagecodecs

    pixels = np.full((height, width, 3), 7, np.uint8) if codec == "webp" else np.full((height, width), 7, np.uint8)
    options = {"lossless": True} if codec == "webp" else {}
    return bytes(getattr(imagecodecs, f"{codec}_encode")(pixels, **options))


def tiff_with(stream: bytes, compression: int, tile: int | None = None) -> bytes:
    """A TIFF of 64 x 48 pixels in one strip, or in one tile with this side, which holds a compressed image."""
    n_channels = 3 if compression == 50001 else 1
    tags = [(256, 64), (257, 48), (258, 8), (259, compression), (262, 2 if n_channels == 3 else 1), (277, n_channels)]
    tags += [(322, tile), (323, tile), (324, 0), (325, len(stream))] if tile else []
    tags += [] if tile else [(273, 0), (278, 48), (279, len(stream))]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack("<HHII", tag, 4, 1, start if tag in (273, 324) else value) for tag, value in sorted(tags)
    )
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + stream


@pytest.mark.parametrize(("codec", "compression"), [("jpeg8", 7), ("jpeg2k", 34712), ("webp", 50001), ("png", 34933)])
def test_a_compressed_image_that_is_larger_than_its_tiff_declares_is_refused(
    tmp_path: Path, codec: str, compression: int
) -> None:
    path = tmp_path / "a.tif"
    for tile in (None, 64):
        path.write_bytes(tiff_with(encoded(codec, tile or 48, 64), compression, tile))
        assert (read_stored(path).values == 7).all()
        for height, width in ((96, 64), (48, 128), (480, 640)):
            path.write_bytes(tiff_with(encoded(codec, height, width), compression, tile))
            with pytest.raises(ImageError, match=f"wrong image size: .* {width} x {height} pixels, but the header"):
                read_stored(path)


def test_a_tiff_with_tiles_above_the_pixel_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff_with(zlib.compress(bytes(4096 * 4096)), 8, 4096))
    with pytest.raises(ImageError, match=r"4096 x 4096 pixels are more than validate\.max_megapixels 1 allows"):
        read_stored(tmp_path / "a.tif", 1)


def test_a_compressed_image_without_a_known_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff_with(encoded("jpegxl", 48, 64), 50002))
    with pytest.raises(
        ImageError, match=r"none of JPEG, JPEG-LS, JPEG 2000, PNG and WebP\. Save the image uncompressed"
    ):
        read_stored(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("codec", "syntax"),
    [("jpeg8", JPEGBaseline8Bit), ("jpegls", JPEGLSLossless), ("jpeg2k", JPEG2000Lossless)],
    ids=["JPEG", "JPEG-LS", "JPEG 2000"],
)
def test_a_compressed_image_that_is_larger_than_its_dicom_file_declares_is_refused(
    tmp_path: Path, codec: str, syntax: str
) -> None:
    dataset = pydicom.dcmread(io.BytesIO(small_dicom(None)))
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.RescaleIntercept = 8, 8, 7, 0
    for height, width in ((6, 8), (12, 8), (6, 16), (600, 800)):
        dataset.PixelData = encapsulate([encoded(codec, height, width)])
        dataset["PixelData"].VR = "OB"
        dataset.save_as(tmp_path / "a.dcm", enforce_file_format=False)
        if (height, width) == (6, 8):
            assert (read_stored(tmp_path / "a.dcm").values == 7).all()
        else:
            with pytest.raises(ImageError, match=f"wrong image size: .* {width} x {height} pixels, but the header"):
                read_stored(tmp_path / "a.dcm")


@pytest.mark.parametrize("syntax", ENCODERS)
@pytest.mark.parametrize("n_frames", [None, 2])
def test_losslessly_compressed_dicom_files_have_the_values_of_the_uncompressed_one(
    tmp_path: Path, syntax: str, n_frames: int | None
) -> None:
    for name, content in {"a": small_dicom(n_frames), "b": small_dicom(n_frames, syntax)}.items():
        (tmp_path / f"{name}.dcm").write_bytes(content)
    names = zip(*(image_names(tmp_path / name, Volumes("all")) for name in ("a.dcm", "b.dcm")), strict=True)
    for plain, compressed in names:
        np.testing.assert_array_equal(read_stored(compressed).values, read_stored(plain).values)


def test_a_damaged_frame_of_lossless_jpeg_is_refused_and_does_not_end_the_process(tmp_path: Path) -> None:
    # without the marker of its Huffman table; GDCM ends the process
    content, table = small_dicom(None, JPEGLosslessSV1), bytes.fromhex("ffc40017")
    assert content.count(table) == 1
    (tmp_path / "a.dcm").write_bytes(content.replace(table, bytes(4)))
    with pytest.raises(ImageError):
        read_stored(tmp_path / "a.dcm")


def test_a_jpeg_2000_image_with_a_palette_or_many_channels_is_refused(tmp_path: Path) -> None:
    stream = bytearray(encoded("jpeg2k", 48, 64))
    start = stream.index(b"\xff\x4f\xff\x51")
    boxes = struct.pack(">I4sI", 12, b"jP  ", 0x0D0A870A) + struct.pack(">I4s", 8, b"pclr")
    (tmp_path / "a.tif").write_bytes(tiff_with(boxes + struct.pack(">I4s", 0, b"jp2c") + stream[start:], 34712))
    with pytest.raises(ImageError, match="within the file is none of JPEG"):
        read_stored(tmp_path / "a.tif")
    struct.pack_into(">H", stream, start + 40, 16384)
    (tmp_path / "a.tif").write_bytes(tiff_with(bytes(stream), 34712))
    with pytest.raises(ImageError, match=r"16384 channels\. At most 8 are allowed"):
        read_stored(tmp_path / "a.tif")


def test_a_deflated_dicom_file_is_read_up_to_the_maximum_size_and_refused_beyond(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(io.BytesIO(small_dicom(None)))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=False)
    assert read_stored(tmp_path / "a.dcm").shape == (6, 8)
    content, identifier = (tmp_path / "a.dcm").read_bytes(), DeflatedExplicitVRLittleEndian.encode()
    start = content.index(identifier) + len(identifier)
    tags = zlib.decompress(content[start:], -zlib.MAX_WBITS)
    compressor = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    deflated = compressor.compress(tags + struct.pack("<HH2sHI", 0x7FE1, 0x1010, b"OB", 0, 2**29))
    deflated += compressor.flush(zlib.Z_FULL_FLUSH)
    block = compressor.compress(bytes(2**20)) + compressor.flush(zlib.Z_FULL_FLUSH)
    (tmp_path / "b.dcm").write_bytes(content[:start] + deflated + 2**9 * block + b"\x03\x00")
    for read in (read_stored, lambda path: image_names(path, Volumes("all"))):
        with pytest.raises(ImageError, match="deflated DICOM file is larger than 536870912 bytes after decompression"):
            read(tmp_path / "b.dcm")


@pytest.mark.parametrize("compression", ["zlib", "lzw", "packbits", "zstd"])
def test_a_tiff_with_a_damaged_strip_is_refused(tmp_path: Path, compression: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY_12, compression=compression, rowsperstrip=10, metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        start, n_bytes = tiff.pages[0].dataoffsets[1], tiff.pages[0].databytecounts[1]
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[start : start + n_bytes] = b"\xee" * n_bytes
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(ImageError, match=r"cannot be decoded|incomplete"):
        read_stored(tmp_path / "a.tif")


def test_deep_colours_of_a_png_keep_their_16_bits(tmp_path: Path) -> None:
    import imagecodecs

    colours = RNG.integers(0, 65536, (20, 30, 3)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(colours))
    np.testing.assert_array_equal(read_stored(tmp_path / "a.png").values, colours)


def test_bits_of_the_parameter_scale_a_12_bit_scan_in_a_16_bit_file(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY_12)
    levels = read_image(tmp_path / "a.tif", 1, Reading(IntensityRange(bits=12))).pixels
    np.testing.assert_array_equal(levels, np.rint(GREY_12 * (255 / 4095)))
    with pytest.raises(ImageError, match=r"do not fit into prepare\.intensity\.bits 11"):
        read_image(tmp_path / "a.tif", 1, Reading(IntensityRange(bits=11)))


AXES: tuple[Axis, ...] = ("axial", "coronal", "sagittal")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("axis", AXES)
def test_slices_of_a_volume_are_those_of_nibabel_in_canonical_orientation(
    tmp_path: Path, axis: Axis, suffix: str
) -> None:
    volume = RNG.integers(-1000, 2000, (5, 6, 7)).astype(np.int16)
    # stored as left, posterior, superior
    path = tmp_path / f"a{suffix}"
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([-1, -1, 1, 1])), path)
    canonical = np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)
    names = image_names(path, Volumes(axis=axis))
    assert len(names) == canonical.shape[DIMENSION[axis]]
    for position, name in enumerate(names):
        image = read_stored(name, axis=axis)
        expected = canonical.take(position, DIMENSION[axis])
        # rows from top to bottom and columns from left to right are the two other axes, reversed
        np.testing.assert_array_equal(image.values, expected[::-1, ::-1].T)
        assert (image.format, image.mode, image.bits) == ("NIfTI", "int16", 16)


def test_an_axial_slice_has_the_front_at_the_top_and_the_patients_right_at_the_left(tmp_path: Path) -> None:
    volume = np.zeros((4, 4, 1), dtype=np.uint8)
    volume[3, 3, 0] = 7  # right and front, in a volume whose axes point to the right, the front and the head
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii")
    assert read_stored(tmp_path / "a.nii").values[0, 0] == 7


def test_volumes_over_time_are_refused_or_taken_as_the_parameter_says(tmp_path: Path) -> None:
    volumes = RNG.integers(0, 255, (4, 5, 3, 2)).astype(np.uint8)
    path = tmp_path / "a.nii"
    nibabel.save(nibabel.Nifti1Image(volumes, np.eye(4)), path)
    assert image_names(path, Volumes()) == [path]
    with pytest.raises(ImageError, match="holds several frames"):
        read_stored(path)
    assert len(image_names(path, Volumes("first"))) == 3
    names = image_names(path, Volumes("all"))
    np.testing.assert_array_equal(read_stored(names[4]).values, volumes[::-1, ::-1, 1, 1].T)


@pytest.mark.parametrize(("shape", "n_slices"), [((4, 5, 3, 2, 1), 6), ((4, 5, 3, 1, 1), 3), ((4, 5, 3, 1), 3)])
def test_further_dimensions_of_length_1_do_not_change_the_slices(
    shape: tuple[int, ...], n_slices: int, tmp_path: Path
) -> None:
    volumes = RNG.integers(0, 255, shape).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(volumes, np.eye(4)), path := tmp_path / "a.nii")
    names = image_names(path, Volumes("all"))
    assert len(names) == n_slices
    expected = volumes.reshape(4, 5, 3, -1)[::-1, ::-1, :, -1]
    np.testing.assert_array_equal(read_stored(names[-1]).values, expected[..., -1].T)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3, 1, 3)])
def test_a_nifti_file_of_other_dimensions_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4)), path := tmp_path / "a.nii")
    with pytest.raises(ImageError, match=f"{len(shape)} dimensions. A NIfTI file must have 3, or 4 with time"):
        image_names(path, Volumes("all"))


@pytest.mark.parametrize("kept", [0.2, 0.6, 0.95])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_truncated_volume_is_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    volume = nibabel.Nifti1Image(RNG.integers(0, 255, (20, 20, 9)).astype(np.uint8), np.eye(4)).to_bytes()
    content = gzip.compress(volume) if suffix == ".nii.gz" else volume
    (tmp_path / f"a{suffix}").write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ImageError):
        read_stored(image_names(tmp_path / f"a{suffix}", Volumes())[-1])


def test_a_small_file_that_declares_a_huge_volume_is_refused(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((30_000, 30_000, 30_000))
    header["vox_offset"], header["magic"] = 352, b"n+1"
    (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(4))
    with pytest.raises(ImageError, match=r"shape .* at most 1024 million voxels"):
        read_stored(tmp_path / "a.nii#0000")


def test_every_dicom_file_has_the_values_of_pydicom_or_is_refused_with_the_reason() -> None:
    refused = {}
    for path in sorted(folder_of("CT_ROBUSTNESS_DICOM").rglob("*")):
        if not path.is_file():
            continue
        try:
            names = image_names(path, Volumes("all"))
            images = [read_stored(name) for name in names]
        except ImageError as error:
            refused[path.name] = str(error)
            continue
        dataset = pydicom.dcmread(path)
        values = pixel_array(dataset)
        is_palette = dataset.PhotometricInterpretation == "PALETTE COLOR"
        values = apply_color_lut(values, dataset) if is_palette else apply_rescale(values, dataset)
        frames = values if len(images) > 1 else values[None]
        for image, frame in zip(images, frames, strict=True):
            np.testing.assert_array_equal(image.values, frame, err_msg=path.name)
    for name, reason in {
        "MR_truncated.dcm": "incomplete image: The number of bytes of pixel data is less than expected",
        "badVR.dcm": "number of frames",
        "no_meta_group_length.dcm": "has no pixels|no DICOM file",
        "reportsi.dcm": "has no pixels: Basic Text SR Storage",
        "rtplan.dcm": "has no pixels: RT Plan Storage",
    }.items():
        assert re.search(reason, refused.pop(name)), name
    assert refused == {}


def test_every_nifti_file_has_the_values_of_nibabel() -> None:
    n_files = 0
    for path in sorted(folder_of("CT_ROBUSTNESS_NIFTI").iterdir()):
        canonical = np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)
        stacked = canonical if canonical.ndim == 4 else canonical[..., None]
        names = image_names(path, Volumes("all"))
        assert len(names) == stacked.shape[2] * stacked.shape[3]
        for number, name in enumerate(names):
            volume, position = divmod(number, stacked.shape[2])
            expected = stacked[::-1, ::-1, position, volume].T
            np.testing.assert_array_equal(read_stored(name).values, expected, err_msg=path.name)
        n_files += 1
    assert n_files >= 5


UNEQUAL = ("imagetiff", "pillow", "twelve", "g_bool", "g_int16_hu")
"""Files of other pictures, or whose full range is not that of the picture."""
REFUSED = {
    "g_float16.tif": "no fixed range",
    "g_float32.tif": "no fixed range",
    "g_uint32.tif": "no fixed range",
    "imagej_one_of_stack.tif": "several frames",
    "pillow__bmp__b__pal8badindex.bmp": "colour 252 of a palette with 101 colours",
}


def test_every_case_is_read_right_or_refused_with_the_reason() -> None:
    folder = folder_of("CT_ROBUSTNESS_CASES")
    picture, refused = read_image(folder / "g8.png", 64).pixels.astype(int), {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".md":
            continue
        try:
            levels = read_image(path, 64).pixels
        except ImageError as error:
            refused[path.name] = str(error)
            continue
        if not path.name.startswith(UNEQUAL):
            is_lossy = "q95" in path.name or "jpeg" in path.name
            assert abs(levels - picture).max() <= (3 if is_lossy else 0), path.name
    assert set(refused) == set(REFUSED)
    for name, reason in REFUSED.items():
        assert reason in refused[name]
    means = {"twelve__tiff__jpeg-lossless-12bit-gray.tif": 120, "twelve__jpeg-lossless__8_ls.jpg": 147}
    for name, mean in means.items():
        assert abs(read_image(folder / name, 64).pixels.mean() - mean) < 1
    reference = read_stored(folder / "rgb16_planar_lzw.tif").values
    for name in ("rgb16_planar_le.tif", "rgb16_planar_be.tif", "rgb16_contig_be.tif"):
        np.testing.assert_array_equal(read_stored(folder / name).values, reference)
