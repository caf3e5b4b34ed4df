"""Checks that an image file has all pixels that its header declares.

Decoders fill missing pixels with grey or black, and ignore extra data, without a warning. These checks count the bytes
of a PNG and of an uncompressed BMP, the strips or tiles of a TIFF, and the scans of a JPEG. A scan of a JPEG that ends
early is detected by decoding.
"""

import io
import math
import re
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image

PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""PNG colour type -> number of channels."""
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Passes of an interlaced PNG: first column, first row, step between columns, step between rows."""
BLOCK_BYTES = 1 << 20
"""Bytes that are read or decompressed at once."""

# JPEG markers
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
START_OF_FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
STANDALONE_MARKERS = {0x01, *range(0xD0, 0xD8)}
"""Markers without a length and content."""
MARKER_PATTERN = re.compile(rb"\xff+([^\x00\xff])")
RESTART_PATTERN = re.compile(rb"\xff+[\xd0-\xd7]")
END_OF_SCAN_PATTERN = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")
"""The next marker after the data of a scan; restart markers are part of the data."""
MAX_SCANS = 100
"""The decoding time is proportional to the number of scans. A small file with many scans would take minutes."""
FILLER = b"\xdb\x6d\xb6" * 20
"""Bytes that are put at the end of a scan. A decoder ignores them after a complete scan, and decodes them as pixels
after a scan that ends early."""
RESTARTS_AND_FILLER = FILLER + b"".join(bytes([0xFF, restart]) + FILLER for restart in range(0xD0, 0xD8))
"""The filler, also after each restart marker, for scans that end before a restart."""

# TIFF tags
IMAGE_WIDTH, IMAGE_LENGTH, BITS_PER_SAMPLE, COMPRESSION = 256, 257, 258, 259
STRIP_OFFSETS, SAMPLES_PER_PIXEL, ROWS_PER_STRIP, STRIP_BYTE_COUNTS, PLANAR_CONFIGURATION = 273, 277, 278, 279, 284
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS = 322, 323, 324

ADVICE = "Copy or save the file again."
"""End of the messages about incomplete images."""


class IncompleteImageError(ValueError):
    """A file has other pixels than its header declares; the message says which, and what to do."""


def check_png(file: BinaryIO) -> None:
    """Compare the size of the decompressed data of a PNG with the size that the header declares.

    Raises:
        IncompleteImageError: data are missing, or there is an extra row.
    """
    header, *pieces = _png_chunks(file)
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits_per_pixel: int = depth * PNG_CHANNELS[colour]

    def row_bytes(n_pixels: int) -> int:
        return 1 + math.ceil(n_pixels * bits_per_pixel / 8)

    declared = 0
    for left, top, column_step, row_step in ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = math.ceil((width - left) / column_step), math.ceil((height - top) / row_step)
        declared += rows * row_bytes(columns) if columns > 0 and rows > 0 else 0
    decompressor, found = zlib.decompressobj(), 0
    for piece in pieces:
        rest = piece
        while rest and found < declared + row_bytes(width):
            found += len(decompressor.decompress(rest, BLOCK_BYTES))
            rest = decompressor.unconsumed_tail
    _check_byte_count(found, declared, row_bytes(width))


def check_bmp(image: Image.Image, n_bytes: int) -> None:
    """Compare the length of a BMP with the length that the header declares.

    Args:
        image: opened file.
        n_bytes: size of the file.

    Raises:
        IncompleteImageError: data are missing, or there is an extra row; or the pixels are run-length encoded.
    """
    decoder, _, offset, arguments = image.tile[0]  # type: ignore[attr-defined]  # only images of files
    if decoder != "raw":
        raise IncompleteImageError(
            "the BMP is run-length encoded. A BMP must be uncompressed, because this encoding may leave out pixels. "
            "Save the image as PNG."
        )
    assert isinstance(arguments, tuple)
    stride = arguments[1]
    _check_byte_count(n_bytes - offset, stride * image.height, stride)


def check_tiff(image: Image.Image) -> None:
    """Compare the number of strips or tiles of a TIFF, and the bytes of uncompressed strips, with the header.

    Raises:
        IncompleteImageError: strips, tiles or bytes are missing, or there are too many.
    """
    tags = image.tag_v2  # type: ignore[attr-defined]  # TIFF only
    width, height = tags[IMAGE_WIDTH], tags[IMAGE_LENGTH]
    samples = tags.get(SAMPLES_PER_PIXEL, 1)
    n_planes = samples if tags.get(PLANAR_CONFIGURATION, 1) == 2 else 1
    if TILE_OFFSETS in tags:
        columns, rows = math.ceil(width / tags[TILE_WIDTH]), math.ceil(height / tags[TILE_LENGTH])
        _check_count(len(tags[TILE_OFFSETS]), columns * rows * n_planes, "tiles")
        return
    _check_count(len(tags[STRIP_OFFSETS]), math.ceil(height / tags.get(ROWS_PER_STRIP, height)) * n_planes, "strips")
    if tags.get(COMPRESSION, 1) == 1 and STRIP_BYTE_COUNTS in tags:
        bits_per_pixel = tags.get(BITS_PER_SAMPLE, (1,))[0] * samples // n_planes
        row_bytes = math.ceil(width * bits_per_pixel / 8)
        _check_byte_count(sum(tags[STRIP_BYTE_COUNTS]), row_bytes * height * n_planes, row_bytes)


def check_jpeg(content: bytes) -> None:
    """Check that a JPEG has all scans that its header declares, and that no scan ends early.

    Decoders fill the rest of a scan that ends early with grey, or leave it blurred. To detect this, the file is decoded
    a second time with :data:`FILLER` at the end of every scan. The pixels differ if a scan ends early.

    Raises:
        IncompleteImageError: a scan is missing, or ends early; or there are more than MAX_SCANS scans.
    """
    component_ids, n_scans = [], 0
    # number of missing bits of each coefficient of each component; -1: all bits are missing
    missing_bits = np.full((1, 64), -1)
    pieces, copied = [], 0
    for marker, segment, start, end in _jpeg_segments(content):
        if marker in START_OF_FRAME_MARKERS:
            component_ids = list(segment[6 : 6 + 3 * segment[5] : 3])
            missing_bits = np.full((len(component_ids), 64), -1)
        elif marker == START_OF_SCAN:
            n_scans += 1
            n_components = segment[0]
            first, last, bit_positions = segment[1 + 2 * n_components : 4 + 2 * n_components]
            rows = [component_ids.index(component) for component in segment[1 : 1 + 2 * n_components : 2]]
            missing_bits[rows, first : last + 1] = bit_positions & 15
            scan = RESTART_PATTERN.sub(lambda restart: FILLER + restart[0], content[start:end])
            pieces += [content[copied:start], scan, RESTARTS_AND_FILLER]
            copied = end
    if n_scans > MAX_SCANS:
        raise IncompleteImageError(
            f"too many scans in the JPEG: {n_scans}. At most {MAX_SCANS} are allowed. Save the image again."
        )
    if missing_bits.any():
        raise IncompleteImageError(f"incomplete JPEG: its scans end before the image is whole. {ADVICE}")
    filled = b"".join([*pieces, content[copied:]])
    if not np.array_equal(_jpeg_pixels(content), _jpeg_pixels(filled)):
        raise IncompleteImageError(f"incomplete JPEG: the data of a scan end early. {ADVICE}")


def _jpeg_pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
        return np.asarray(image)


def _png_chunks(file: BinaryIO) -> Iterator[bytes]:
    """Content of the header, then the compressed data in pieces."""
    file.seek(8)
    while len(start := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", start)
        if kind == b"IHDR":
            yield file.read(length)
        elif kind == b"IDAT":
            left = length
            while left and (piece := file.read(min(left, BLOCK_BYTES))):
                left -= len(piece)
                yield piece
        else:
            file.seek(length, io.SEEK_CUR)
        file.seek(4, io.SEEK_CUR)


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, bytes, int, int]]:
    """Marker and content of each segment, and start and end of the data after it. Only scans have such data."""
    position = 2
    while (found := MARKER_PATTERN.search(content, position)) and found[1][0] != END_OF_IMAGE:
        marker, start = found[1][0], found.end()
        position = start
        if marker in STANDALONE_MARKERS:
            continue
        position += int.from_bytes(content[start : start + 2], "big")
        segment, data_start = content[start + 2 : position], position
        if marker == START_OF_SCAN:
            next_marker = END_OF_SCAN_PATTERN.search(content, position)
            position = next_marker.start() if next_marker else len(content)
        yield marker, segment, data_start, position


def _check_byte_count(found: int, declared: int, row_bytes: int) -> None:
    """Raise an error if bytes of pixels are missing, or if there is an extra row."""
    if found < declared:
        raise IncompleteImageError(
            f"incomplete image: it holds {found} of the {declared} bytes of pixels that its header declares. {ADVICE}"
        )
    if found >= declared + row_bytes:
        raise IncompleteImageError(
            f"wrong image size: it holds rows beyond the {declared} bytes of pixels that its header declares. {ADVICE}"
        )


def _check_count(found: int, declared: int, name: str) -> None:
    if found != declared:
        raise IncompleteImageError(
            f"incomplete image: it holds {found} {name}, but its header declares {declared}. {ADVICE}"
        )
