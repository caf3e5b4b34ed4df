"""Readers of image files: their own values, unit and depth, and the reasons of refusals."""

import gzip
import io
import math
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, apply_rescale, pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tasks.dataset.images import Reading, read_image, with_percentiles
from tasks.dataset.intensity import IntensityRange
from tasks.dataset.readers import ImageError, Volumes, image_names, read_stored
from tasks.dataset.readers.dicom_copy import copy_pixels
from tasks.dataset.readers.nifti import DIMENSION, Axis
from tasks.params import Intensity
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
        ({"PixelData": bytes(90)}, "incomplete image: it holds 90 of the 96 bytes of pixels"),
        ({"PixelData": bytes(112)}, "rows beyond the 96 bytes"),
        ({"Rows": 3}, "rows beyond the 48 bytes"),
        ({"HighBit": 15}, "bit 15. It must be bit 11"),
        ({"NumberOfFrames": None, "n_frames": 2, "Rows": 60_000, "Columns": 60_000}, "more than validate.max_meg"),
    ],
    ids=["no pixels", "truncated", "an extra row", "fewer rows", "other bits", "huge"],
)
def test_dicom_without_usable_pixels_is_refused_with_the_reason(
    tmp_path: Path, tags: dict[str, Any], reason: str
) -> None:
    write_dicom(tmp_path / "a.dcm", **tags)
    with pytest.raises(ImageError, match=reason):
        read_stored(tmp_path / "a.dcm", 1)


def test_a_damaged_tag_is_not_printed(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    write_dicom(tmp_path / "a.dcm", PixelData=None)
    content = (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "a.dcm").write_bytes(content.replace(b"1.2.840.10008.5.1.4.1.1.2", b"1.2.840.Doe^Jane.1.4.1.1."))
    with pytest.raises(ImageError, match="no pixels: unknown kind"):
        read_stored(tmp_path / "a.dcm")
    assert not recwarn.list


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


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
def test_a_copy_has_no_text_and_no_id_also_not_within_a_table_of_values(
    sequence: str, syntax: Any, tmp_path: Path
) -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTExplanation, table.PatientID = [96, 0, 16], "Doe", "4711"
    table.add_new("LUTData", "US", list(range(5, 965, 10)))
    dataset = pydicom.dcmread(io.BytesIO(small_dicom(None)))
    for keyword in ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"):
        del dataset[keyword]
    setattr(dataset, sequence, [table])
    dataset.PixelSpacingCalibrationDescription = dataset.WindowCenterWidthExplanation = "of Doe"
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(tmp_path / "a.dcm", implicit_vr=syntax.is_implicit_VR, little_endian=True)
    copy_pixels(tmp_path / "a.dcm", tmp_path / "copy")
    content = (tmp_path / "copy").read_bytes()
    assert not [text for text in (b"Doe", b"4711") if text in content]
    copied, original = read_stored(tmp_path / "copy"), read_stored(tmp_path / "a.dcm")
    np.testing.assert_array_equal(copied.values, original.values)
    assert copied.value_range == original.value_range
    if sequence == "VOILUTSequence":
        assert copied.displayed is not None
        np.testing.assert_array_equal(copied.displayed, original.displayed)


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


@pytest.mark.parametrize("n_channels", [1, 2])
def test_a_tiff_with_fewer_channels_than_its_colours_need_is_refused(n_channels: int, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((6, 8, 3), dtype=np.uint8), photometric="rgb", metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tiff:
        tiff.pages[0].tags["SamplesPerPixel"].overwrite(n_channels)
    with pytest.raises(ImageError, match=rf"RGB colours with {n_channels} channels\. They need 3\."):
        read_stored(tmp_path / "a.tif")


@pytest.mark.parametrize(
    "compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "zstd", "jpeg", "webp"]
)
def test_ycbcr_colours_of_a_tiff_are_those_of_pillow_for_every_compression(
    compression: str | None, tmp_path: Path
) -> None:
    rows, columns = np.mgrid[:64, :80]
    colours = np.stack([3 * columns, 4 * rows, 255 - rows - columns], axis=2).astype(np.uint8)
    ycbcr = Image.fromarray(colours).convert("YCbCr")
    try:
        ycbcr.save(tmp_path / "a.tif", **({"compression": compression} if compression else {}))
    except (OSError, RuntimeError) as error:
        pytest.skip(f"Pillow cannot write it here: {error}")
    expected = np.asarray(Image.open(tmp_path / "a.tif").convert("RGB")).astype(int)
    image = read_stored(tmp_path / "a.tif")
    # rounding differs by the decoder of JPEG, and by the conversion of libtiff
    assert abs(image.values - expected).max() <= (2 if compression == "jpeg" else 1)


@pytest.mark.parametrize("compression", ["jpeg2000", "aperio_jp2000_ycbc"])
def test_ycbcr_colours_in_jpeg_2000_are_refused(compression: str, tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, compression="jpeg2000", photometric="rgb", metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tiff:
        if compression == "jpeg2000":
            tiff.pages[0].tags["PhotometricInterpretation"].overwrite(6)
        else:
            tiff.pages[0].tags["Compression"].overwrite(33003)
    with pytest.raises(ImageError, match=r"YCbCr colours with compression \d+\. .*Save the image as RGB"):
        read_stored(tmp_path / "a.tif")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("suffix", [".tif", ".dcm", ".nii.gz"])
def test_values_that_are_not_finite_are_refused_in_every_format(suffix: str, value: float, tmp_path: Path) -> None:
    values = np.ones((6, 8), dtype=np.float32)
    values[2, 3] = value
    path = tmp_path / f"a{suffix}"
    if suffix == ".tif":
        tifffile.imwrite(path, values)
    elif suffix == ".dcm":
        removed: dict[str, Any] = dict.fromkeys(("PixelData", "HighBit"))
        write_dicom(path, **removed, BitsAllocated=32, BitsStored=32, FloatPixelData=values.tobytes())
    else:
        nibabel.save(nibabel.Nifti1Image(values[..., None], np.eye(4)), path)
    reading = Reading(IntensityRange("window", low=0, high=2))
    with pytest.raises(ImageError, match=r"a\..*: the image holds values that are not finite\. Replace them"):
        read_image(path, 1, reading)
    # it has no influence on the range of the other images either
    tifffile.imwrite(tmp_path / "other.tif", GREY_12)
    settings = Intensity(kind="percentiles", bits=0, window=(0, 1), percentiles=(0, 100), unit="grey level")
    found = with_percentiles(reading, settings, [path, tmp_path / "other.tif"]).intensity
    assert 0 <= found.low < found.high <= 4095


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


def write_compressed(
    path: Path, streams: list[bytes], syntax: str, shape: tuple[int, int], bits: int, **tags: Any
) -> None:
    """Write a DICOM file with compressed frames."""
    dataset = write_dicom(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.Rows, dataset.Columns = shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * math.ceil(bits / 8), bits, bits - 1
    dataset.RescaleIntercept = 0
    dataset.PixelData = encapsulate(streams)
    dataset["PixelData"].is_undefined_length = True
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=False)


@pytest.mark.parametrize("end", [b"", b"\xff\xd9"], ids=["without end marker", "with end marker"])
@pytest.mark.parametrize(
    ("bits", "syntax", "options"),
    [
        (8, JPEGBaseline8Bit, {"level": 90}),
        (12, JPEGLosslessSV1, {"lossless": True}),
        (16, JPEGLosslessSV1, {"lossless": True}),
    ],
    ids=["lossy", "lossless", "16 bits"],
)
def test_a_jpeg_in_a_dicom_file_that_ends_early_is_refused(
    tmp_path: Path, bits: int, syntax: str, options: dict[str, Any], end: bytes
) -> None:
    grey = (GREY_12.astype(int) * 2**bits >> 14) + np.arange(50) * 2**bits // 128
    grey = grey.astype(np.uint8 if bits == 8 else np.uint16)
    stream = imagecodecs.jpeg8_encode(grey, bitspersample=bits, **options)
    write_compressed(tmp_path / "a.dcm", [stream], syntax, grey.shape, bits)
    assert np.abs(read_stored(tmp_path / "a.dcm").values - grey.astype(int)).max() <= (20 if bits == 8 else 0)
    for part in (0.4, 0.6, 0.9):
        write_compressed(tmp_path / "a.dcm", [stream[: int(part * len(stream))] + end], syntax, grey.shape, bits)
        with pytest.raises(ImageError, match=r"incomplete JPEG|cannot be decoded"):
            read_stored(tmp_path / "a.dcm")


@pytest.mark.parametrize("options", [{}, {"tile": (32, 32)}], ids=["strips", "tiles"])
def test_a_jpeg_in_a_tiff_that_ends_early_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    grey = (GREY_12 >> 4).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", grey, compression="jpeg", **options)
    assert read_stored(tmp_path / "a.tif").shape == grey.shape
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        page = tiff.pages[0]
        start, n_bytes = page.dataoffsets[-1], page.databytecounts[-1]
    content = bytearray((tmp_path / "a.tif").read_bytes())
    # the second half of the last strip or tile, behind its marker for the end
    content[start + n_bytes // 2 : start + n_bytes // 2 + 2] = b"\xff\xd9"
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(ImageError, match="incomplete JPEG"):
        read_stored(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        (JPEG2000Lossless, lambda frame: imagecodecs.jpeg2k_encode(frame, codecformat="j2k", reversible=True)),
        (JPEGLSLossless, imagecodecs.jpegls_encode),
        (JPEGLosslessSV1, imagecodecs.ljpeg_encode),
    ],
    ids=["JPEG 2000", "JPEG-LS", "lossless JPEG"],
)
@pytest.mark.parametrize("bits", [8, 12])
def test_a_compressed_frame_with_more_bits_than_its_dicom_file_is_refused(
    tmp_path: Path, syntax: str, encode: Callable[[np.ndarray], bytes], bits: int
) -> None:
    write_compressed(tmp_path / "a.dcm", [encode(GREY_12 * np.uint16(16))], syntax, GREY_12.shape, bits)
    with pytest.raises(ImageError, match=r"more bits than the DICOM file|do not fit into"):
        read_stored(tmp_path / "a.dcm")


@pytest.mark.parametrize("syntax", ENCODERS)
def test_more_compressed_images_than_frames_are_refused(tmp_path: Path, syntax: str) -> None:
    streams = [ENCODERS[syntax](GREY_12), ENCODERS[syntax](GREY_12[::-1].copy())]
    write_compressed(tmp_path / "a.dcm", streams, syntax, GREY_12.shape, 16)
    with pytest.raises(ImageError, match="holds 2 compressed images, but its header declares 1"):
        read_stored(tmp_path / "a.dcm")


def test_a_run_length_encoded_dicom_file_with_fewer_rows_is_refused(tmp_path: Path) -> None:
    dataset = write_dicom(tmp_path / "a.dcm", SOPInstanceUID="1.2.3")
    values = pixel_array(dataset)
    dataset.compress(RLELossless)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=False)
    np.testing.assert_array_equal(read_stored(tmp_path / "a.dcm").values, values - 1024.0)
    dataset.Rows = 3
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=False)
    with pytest.raises(ImageError, match="rows beyond the 24 bytes"):
        read_stored(tmp_path / "a.dcm")


def test_frames_of_an_enhanced_file_have_their_own_rescaling_and_window_also_in_a_copy(tmp_path: Path) -> None:
    def group(slope: float | None, centre: int | None) -> pydicom.Dataset:
        rescaling, window, item = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        item.FrameAcquisitionNumber = 7
        if slope:
            rescaling.RescaleSlope, rescaling.RescaleIntercept, rescaling.RescaleType = slope, -1000, "HU"
            rescaling.PatientComments = "Doe"
            item.PixelValueTransformationSequence = [rescaling]
        if centre:
            window.WindowCenter, window.WindowWidth = centre, 20
            item.FrameVOILUTSequence = [window]
        return item

    removed: dict[str, Any] = dict.fromkeys(("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"))
    groups = {
        "SharedFunctionalGroupsSequence": [group(None, -990)],
        "PerFrameFunctionalGroupsSequence": [group(1, None), group(3, -850)],
    }
    write_dicom(tmp_path / "a.dcm", n_frames=2, **removed, **groups)
    copy_pixels(tmp_path / "a.dcm", tmp_path / "b.dcm")
    assert b"Doe" not in (tmp_path / "b.dcm").read_bytes()
    stored = np.arange(96).reshape(2, 6, 8)
    for file in ("a.dcm", "b.dcm"):
        images = [read_stored(name) for name in image_names(tmp_path / file, Volumes("all"))]
        np.testing.assert_array_equal([image.values for image in images], stored * [[[1]], [[3]]] - 1000)
        assert [image.unit for image in images] == ["HU", "HU"]
        assert [image.value_range for image in images] == [(-1000, 3095), (-1000, 11285)]
        assert all(image.displayed is not None and 0 < image.displayed.mean() < 1 for image in images)


def test_a_replaced_file_of_the_same_time_and_size_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    write_dicom(path, n_frames=2)
    before, first = path.stat(), read_stored(tmp_path / "a.dcm#0000").values
    write_dicom(path, n_frames=2, PixelData=np.arange(96, dtype="<u2")[::-1].tobytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    np.testing.assert_array_equal(read_stored(tmp_path / "a.dcm#0000").values, first[::-1, ::-1] + 48)


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
        "MR_truncated.dcm": "incomplete image",
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
