"""Reading image files as grey levels."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from tasks.dataset.images import ImageError, read_image

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (30, 50), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (30, 50)).astype(np.uint16)
EXIF_ORIENTATION, QUARTER_TURN = 0x0112, 6


def read_grey(path: Path, max_megapixels: float) -> np.ndarray:
    """Grey levels of an image file, uint8 ``(H, W)``."""
    return read_image(path, max_megapixels).pixels


def test_grey_pixels_are_read_exactly(tmp_path: Path) -> None:
    for suffix in ("png", "bmp", "tif"):
        Image.fromarray(GREY).save(tmp_path / f"a.{suffix}")
        np.testing.assert_array_equal(read_grey(tmp_path / f"a.{suffix}", 1), GREY)


def test_format_and_mode_are_detected_from_the_content(tmp_path: Path) -> None:
    Image.fromarray(GREY).convert("RGB").save(tmp_path / "a.png", format="BMP")
    image = read_image(tmp_path / "a.png", 1)
    assert (image.format, image.mode) == ("BMP", "RGB")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    grey=npst.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12))),
    mode=st.sampled_from(["L", "LA", "RGB", "RGBA", "P"]),
    suffix=st.sampled_from(["png", "tif"]),
)
def test_grey_stored_in_any_mode_gives_the_same_pixels(
    tmp_path: Path, grey: np.ndarray, mode: str, suffix: str
) -> None:
    file = tmp_path / f"a.{suffix}"
    Image.fromarray(grey).convert(mode).save(file)
    np.testing.assert_array_equal(read_grey(file, 1), grey)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_dropped(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(GREY).convert(mode)
    image.putalpha(Image.fromarray(255 - GREY))
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_grey(tmp_path / "a.png", 1), GREY)


def test_transparent_palette_keeps_its_colours(tmp_path: Path) -> None:
    Image.fromarray(GREY).convert("P").save(tmp_path / "a.png", transparency=bytes(range(256)))
    np.testing.assert_array_equal(read_grey(tmp_path / "a.png", 1), GREY)


def test_colours_become_luma(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], dtype=np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_grey(tmp_path / "a.png", 1), [[76, 150, 29]])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_to_8_bits(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(DEEP).save(tmp_path / f"a.{suffix}")
    pixels = read_grey(tmp_path / f"a.{suffix}", 1)
    assert pixels.dtype == np.uint8
    assert abs(pixels - DEEP / 257).max() <= 0.5


def test_white_is_zero_is_inverted(tmp_path: Path) -> None:
    photometric = 262
    Image.fromarray(DEEP).save(tmp_path / "a.tif", tiffinfo={photometric: 0})
    assert abs(read_grey(tmp_path / "a.tif", 1) - (65535 - DEEP.astype(float)) / 257).max() <= 0.5


def test_1_bit_becomes_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(GREY > 127).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_grey(tmp_path / "a.png", 1), np.where(GREY > 127, 255, 0))


@pytest.mark.parametrize("pixels", [GREY, DEEP], ids=["8 bits", "16 bits"])
def test_exif_orientation_is_applied(tmp_path: Path, pixels: np.ndarray) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = QUARTER_TURN
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "upright.png")
    np.testing.assert_array_equal(
        read_grey(tmp_path / "a.png", 1), np.rot90(read_grey(tmp_path / "upright.png", 1), k=-1)
    )


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
def test_truncated_image_is_rejected(tmp_path: Path, suffix: str, kept: float) -> None:
    file = tmp_path / f"a.{suffix}"
    Image.fromarray(GREY).save(file)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(
        ImageError, match=rf"a\.{suffix}: (the file cannot be decoded|the content is none of|incomplete)"
    ):
        read_grey(file, 1)


def test_damaged_png_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.fromarray(GREY).save(file)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.png: the file cannot be decoded \(.*checksum"):
        read_grey(file, 1)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "the file is empty"), (b"not an image", "the content is none of PNG, JPEG, BMP, TIFF")],
    ids=["empty", "text"],
)
def test_file_that_is_not_an_image_is_rejected(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=rf"a\.png: {reason}"):
        read_grey(tmp_path / "a.png", 1)


def write_bomb(file: Path, side: int) -> None:
    """Write a PNG of a few bytes whose header declares a large square of grey pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    image = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + image)


def test_decompression_bomb_is_rejected_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    write_bomb(tmp_path / "a.png", 20_000)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=r"20000 x 20000 pixels are more than validate\.max_megapixels 64 allows"):
        read_grey(tmp_path / "a.png", 64)
    assert not recwarn.list
    assert Image.MAX_IMAGE_PIXELS is not None, "the limit of Pillow is restored"


def test_limit_can_be_above_the_limit_of_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.fromarray(GREY).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_grey(tmp_path / "a.png", 1), GREY)


def test_file_that_is_much_larger_than_its_pixels_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.dataset.readers.MAX_METADATA_BYTES", 1000)
    (tmp_path / "a.png").write_bytes(bytes(1017))
    with pytest.raises(
        ImageError, match=r"too large: 1017 bytes\. validate\.max_megapixels 1e-06 .* at most 1016 bytes"
    ):
        read_grey(tmp_path / "a.png", 1e-6)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_several_frames_are_rejected(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(GREY)
    image.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[Image.fromarray(255 - GREY)])
    with pytest.raises(ImageError, match="holds several frames"):
        read_grey(tmp_path / f"a.{suffix}", 1)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_without_a_fixed_range_are_rejected(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(GREY.astype(dtype)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="has no fixed range of values"):
        read_grey(tmp_path / "a.tif", 1)
