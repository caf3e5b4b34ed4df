"""TIFF, decoded by tifffile and imagecodecs."""

import logging
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tasks.dataset.readers.completeness import IncompleteImageError, check_byte_count, check_count, check_jpeg
from tasks.dataset.readers.stored import (
    ADVICE,
    ImageError,
    StoredImage,
    check_pixels,
    range_of_bits,
    several_frames_error,
    upright,
)
from tasks.dataset.readers.streams import START_OF_JPEG, check_stream

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF, little and big endian."""
MAX_SAMPLES = 8
"""Maximum number of channels, alpha and others included. More would only cost memory."""
MAX_FRAMES = 4096
ORIENTATION = 274
BOUNDED = {1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 34926, 50000, 50013}
"""Compressions whose decoder stops at the declared size: none, CCITT, LZW, deflate, PackBits, LZMA, Zstandard, PIXTIFF.
All others are whole images with a size of their own."""
JPEG = {6, 7, 33007, 34892}
"""Compressions as JPEG, whose decoder converts YCbCr to RGB."""
APERIO_YCBCR = 33003
"""JPEG 2000 with YCbCr colours, also if the header declares RGB."""
GREY, COLOUR = ("MINISWHITE", "MINISBLACK"), ("RGB", "PALETTE", "SEPARATED", "YCBCR")
COLOUR_CHANNELS = {"RGB": 3, "YCBCR": 3, "SEPARATED": 4}
"""Photometric interpretations that are read."""


def n_tiff_frames(path: Path) -> int:
    """Number of full-size pages of a TIFF. Thumbnails and other reduced pages are not counted."""
    with _open(path) as tiff:
        return len(_frames(tiff))


def read_tiff(path: Path, max_megapixels: float, frame: int | None = None) -> StoredImage:
    """Decode one page of a TIFF. Alpha and further channels are dropped; the orientation is applied.

    Args:
        path: image file.
        max_megapixels: limit on the number of pixels, in millions.
        frame: number of the full-size page; None: the file must have one.

    Raises:
        ImageError: the file holds more pixels, several frames, or colours that are not read.
        IncompleteImageError: strips, tiles or bytes of pixels are missing, or there are too many.
        Exception: for damaged files, decoders raise errors of many types.
    """
    with _open(path) as tiff:
        frames = _frames(tiff)
        n_frames = len(frames)
        if tiff.is_imagej and n_frames == 1:
            # ImageJ writes one page for a whole stack
            n_frames = int((tiff.imagej_metadata or {}).get("images", 1))
        if n_frames > 1 and (frame is None or len(frames) == 1):
            raise several_frames_error(path, n_frames)
        page: Any = frames[frame or 0]
        check_pixels(page.imagewidth, page.imagelength, path, max_megapixels)
        if page.is_tiled:
            check_pixels(page.tilewidth, page.tilelength, path, max_megapixels)
        _check_supported(page, path)
        _check_complete(page, path.stat().st_size)
        if page.compression not in BOUNDED:
            _check_streams(page, path)
        values = page.asarray(maxworkers=1).reshape(page.shaped)
        # planes, depth, rows, columns, samples of a pixel -> rows, columns, channels
        values = np.moveaxis(values[:, 0], 0, 2).reshape(*values.shape[2:4], -1)
        orientation = page.tags.valueof(ORIENTATION, 1)
        values = upright(_without_extra_channels(values, page), orientation if orientation in range(1, 9) else 1)
        bits = None if values.dtype.kind == "f" else 8 if values.dtype.kind == "b" else int(page.bitspersample)
        if values.dtype.kind == "b":
            values = np.where(values, np.uint8(255), np.uint8(0))
        elif page.photometric.name in ("PALETTE", "SEPARATED", "YCBCR"):
            bits = 8
        is_signed = values.dtype.kind == "i"
        mode = str(values.dtype) if values.ndim == 2 else f"{values.dtype} RGB"
        return StoredImage(
            values=values,
            format="TIFF",
            mode=mode,
            bits=bits,
            value_range=None if bits is None else range_of_bits(bits, is_signed),
            is_inverted=page.photometric.name == "MINISWHITE",
        )


def _open(path: Path) -> "TiffFile":
    # imported here since it is slow
    from tifffile import TiffFile

    # its messages about damaged files become errors here, or have no influence on the pixels
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    return TiffFile(path)


def _frames(tiff: "TiffFile") -> list[Any]:
    pages: list[Any] = []
    offsets = set()
    for page in tiff.pages:
        if page.offset in offsets:
            raise IncompleteImageError(f"the pages of the TIFF form a loop. {ADVICE}")
        offsets.add(page.offset)
        pages.append(page)
        if len(pages) > MAX_FRAMES:
            raise IncompleteImageError(f"more than {MAX_FRAMES} pages in one TIFF. Save fewer pages in each file.")
    full = [page for page in pages if not page.is_reduced]
    return full or pages[:1]


def _check_supported(page: "TiffPage", path: Path) -> None:
    known = GREY + COLOUR
    name = getattr(page.photometric, "name", str(page.photometric))
    if name not in known:
        raise ImageError(
            f"{path}: the colours of the TIFF are {name}. They must be {', '.join(known)}. Save it as RGB or grey."
        )
    if page.imagedepth != 1 or page.samplesperpixel > MAX_SAMPLES:
        raise ImageError(
            f"{path}: the TIFF has depth {page.imagedepth} and {page.samplesperpixel} channels. Depth 1 and at most "
            f"{MAX_SAMPLES} channels are allowed. Save each image as a file of its own."
        )
    if page.samplesperpixel < (needed := COLOUR_CHANNELS.get(name, 1)):
        raise ImageError(
            f"{path}: the TIFF has {name} colours with {page.samplesperpixel} channels. They need {needed}. Save the "
            "image again."
        )
    if page.compression == APERIO_YCBCR or (name == "YCBCR" and page.compression not in BOUNDED | JPEG):
        raise ImageError(
            f"{path}: the TIFF has YCbCr colours with compression {page.compression:d}. They are read without or with "
            "lossless compression, and as JPEG. Save the image as RGB."
        )
    if not isinstance(page.bitspersample, int) or page.dtype is None:
        raise ImageError(
            f"{path}: the TIFF has {page.bitspersample} bits per channel in sample format {page.sampleformat}. All "
            "channels must have equal bits, of whole numbers or floating point. Save the image again."
        )
    if page.dtype.kind not in "biuf":
        raise ImageError(f"{path}: the TIFF has values of type {page.dtype}. Save the image as real numbers.")
    if name in ("PALETTE", "SEPARATED", "YCBCR") and page.dtype != np.uint8:
        raise ImageError(
            f"{path}: the TIFF has {name} colours with {page.bitspersample} bits. They are read with 8 bits. Save the "
            "image as RGB."
        )


def _check_complete(page: "TiffPage", n_bytes: int) -> None:
    """Compare the number of strips or tiles, and the bytes of uncompressed strips, with the header."""
    offsets, counts = page.dataoffsets, page.databytecounts
    ends = [offset + count for offset, count in zip(offsets, counts, strict=False)]
    if not ends or not all(counts):
        raise IncompleteImageError(f"incomplete image: it holds strips or tiles without content. {ADVICE}")
    if max(ends) > n_bytes:
        raise IncompleteImageError(
            f"incomplete image: it holds {n_bytes} bytes, but its header places pixels up to byte {max(ends)}. {ADVICE}"
        )
    n_planes = page.samplesperpixel if page.planarconfig == 2 else 1
    if page.is_tiled:
        columns, rows = math.ceil(page.imagewidth / page.tilewidth), math.ceil(page.imagelength / page.tilelength)
        check_count(len(offsets), columns * rows * n_planes, "tiles")
        return
    rows_per_strip = min(page.rowsperstrip or page.imagelength, page.imagelength)
    check_count(len(offsets), math.ceil(page.imagelength / rows_per_strip) * n_planes, "strips")
    if page.compression == 1:
        row_bytes = math.ceil(page.imagewidth * page.bitspersample * page.samplesperpixel / n_planes / 8)
        check_byte_count(sum(counts), row_bytes * page.imagelength * n_planes, row_bytes)


def _check_streams(page: "TiffPage", path: Path) -> None:
    """Check the size of every compressed strip or tile before it is decoded, and that a JPEG is complete."""
    rows = min(page.rowsperstrip or page.imagelength, page.imagelength)
    width, height = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, rows)
    with path.open("rb") as file:
        for index, (offset, count) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
            file.seek(offset)
            stream = file.read(count)
            check_stream(stream, width, height)
            if stream.startswith(START_OF_JPEG):
                check_jpeg(stream, partial(_decoded, page, index))


def _decoded(page: "TiffPage", index: int, stream: bytes) -> np.ndarray:
    """Pixels of a strip or tile."""
    pixels, _, _ = page.decode(stream, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)
    assert pixels is not None
    return pixels


def _without_extra_channels(values: np.ndarray, page: Any) -> np.ndarray:
    """Grey ``(H, W)`` or colours ``(H, W, 3)`` from all channels, ``(H, W, C)``."""
    match page.photometric.name:
        case "MINISWHITE" | "MINISBLACK":
            return values[..., 0]
        case "PALETTE":
            # as libtiff: the high byte of each colour
            colours = (np.asarray(page.colormap) >> 8).astype(np.uint8)
            rgb: np.ndarray = colours[:, values[..., 0]].transpose(1, 2, 0)
            return rgb
        case "SEPARATED":
            return np.asarray(Image.fromarray(np.ascontiguousarray(values[..., :4]), "CMYK").convert("RGB"))
        case "YCBCR" if page.compression not in JPEG:
            return np.asarray(Image.fromarray(np.ascontiguousarray(values[..., :3]), "YCbCr").convert("RGB"))
    return values[..., :3]
