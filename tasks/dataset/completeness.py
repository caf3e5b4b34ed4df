"""Whether a file holds the pixels that its header claims.

Decoders fill what is missing with grey or black and leave what is too much, without a word. What can be counted is
counted here: the bytes of a PNG and an uncompressed BMP, the strips of a TIFF, the scans of a JPEG. Whether a scan of a
JPEG is whole takes decoding it.
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

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Of a pixel, by PNG's colour type."""
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row, and the steps between them, of each pass of an interlaced PNG."""
BLOCK = 1 << 20

START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
FRAMES, WITHOUT_LENGTH = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}, {0x01, *range(0xD0, 0xD8)}
"""JPEG's markers."""
MARKER, AFTER_A_SCAN = (
    re.compile(rb"\xff+([^\x00\xff])"),
    re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]"),
)
RESTART = re.compile(rb"\xff+[\xd0-\xd7]")
MAX_SCANS = 100
"""Each scan goes over the whole image, so that a small file with many of them would take minutes."""
FILLER = b"\xdb\x6d\xb6" * 20
"""What a whole scan leaves unread; a scan that ends early takes it for pixels, where it would take no data for grey."""
FILLERS = FILLER + b"".join(bytes([0xFF, restart]) + FILLER for restart in range(0xD0, 0xD8))
"""The same for a scan that lacks whole intervals between restarts, whose numbers go round."""

IMAGE_WIDTH, IMAGE_LENGTH, BITS_PER_SAMPLE, COMPRESSION = 256, 257, 258, 259
STRIP_OFFSETS, SAMPLES_PER_PIXEL, ROWS_PER_STRIP, STRIP_BYTE_COUNTS, PLANAR = 273, 277, 278, 279, 284
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS = 322, 323, 324
"""TIFF's tags."""


class Incomplete(ValueError):
    """A file holds other pixels than its header claims; the message says which."""


def check_png(file: BinaryIO) -> None:
    """Compare what the compressed data of a PNG inflate to with what the header claims.

    Raises:
        Incomplete: a row or more is missing, or too much.
    """
    header, *pieces = _png_chunks(file)
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits: int = depth * CHANNELS[colour]

    def row_bytes(n: int) -> int:
        return 1 + math.ceil(n * bits / 8)

    needed = 0
    for left, top, across, down in ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = math.ceil((width - left) / across), math.ceil((height - top) / down)
        needed += rows * row_bytes(columns) if columns > 0 and rows > 0 else 0
    inflater, stored = zlib.decompressobj(), 0
    for piece in pieces:
        rest = piece
        while rest and stored < needed + row_bytes(width):
            stored += len(inflater.decompress(rest, BLOCK))
            rest = inflater.unconsumed_tail
    _compare(stored, needed, row_bytes(width))


def check_bmp(image: Image.Image, n_bytes: int) -> None:
    """Compare the length of a BMP with what the header claims.

    Raises:
        Incomplete: a row or more is missing, or too much; or rows are run-length encoded, which may leave some out.
    """
    decoder, _, offset, arguments = image.tile[0]  # type: ignore[attr-defined]  # files only
    if decoder != "raw":
        raise Incomplete("its pixels are run-length encoded, which may leave some out; save it as PNG")
    assert isinstance(arguments, tuple)
    stride = arguments[1]
    _compare(n_bytes - offset, stride * image.height, stride)


def check_tiff(image: Image.Image) -> None:
    """Compare the number of strips or tiles of a TIFF, and their bytes if uncompressed, with what the header claims.

    Raises:
        Incomplete: some are missing, or too many.
    """
    tags = image.tag_v2  # type: ignore[attr-defined]  # TIFF only
    width, height = tags[IMAGE_WIDTH], tags[IMAGE_LENGTH]
    samples = tags.get(SAMPLES_PER_PIXEL, 1)
    n_planes = samples if tags.get(PLANAR, 1) == 2 else 1
    if TILE_OFFSETS in tags:
        across, down = math.ceil(width / tags[TILE_WIDTH]), math.ceil(height / tags[TILE_LENGTH])
        _count(len(tags[TILE_OFFSETS]), across * down * n_planes, "tiles")
        return
    _count(len(tags[STRIP_OFFSETS]), math.ceil(height / tags.get(ROWS_PER_STRIP, height)) * n_planes, "strips")
    if tags.get(COMPRESSION, 1) == 1 and STRIP_BYTE_COUNTS in tags:
        bits = tags.get(BITS_PER_SAMPLE, (1,))[0] * samples // n_planes
        row = math.ceil(width * bits / 8)
        _compare(sum(tags[STRIP_BYTE_COUNTS]), row * height * n_planes, row)


def check_jpeg(content: bytes) -> None:
    """Look whether the scans of a JPEG hold what its header announces, each to its last pixel.

    Where a scan ends early decoders fill the rest with grey, or leave it blurred. Such a scan is found by decoding a
    second time, with :data:`FILLER` at the end of every scan: it gives other pixels.

    Raises:
        Incomplete: scans are missing, or end early; or there are hundreds.
    """
    names, n_scans = [], 0
    # bits that are still missing of each coefficient of each component; -1: all
    missing = np.full((1, 64), -1)
    pieces, done = [], 0
    for marker, segment, start, end in _jpeg_segments(content):
        if marker in FRAMES:
            names = list(segment[6 : 6 + 3 * segment[5] : 3])
            missing = np.full((len(names), 64), -1)
        elif marker == START_OF_SCAN:
            n_scans += 1
            n = segment[0]
            first, last, bits = segment[1 + 2 * n : 4 + 2 * n]
            rows = [names.index(name) for name in segment[1 : 1 + 2 * n : 2]]
            missing[rows, first : last + 1] = bits & 15
            scan = RESTART.sub(lambda found: FILLER + found[0], content[start:end])
            pieces += [content[done:start], scan, FILLERS]
            done = end
    if n_scans > MAX_SCANS:
        raise Incomplete(f"{n_scans} scans are more than any program writes; save it anew")
    if missing.any():
        raise Incomplete("its scans end before the image is whole")
    filled = b"".join([*pieces, content[done:]])
    if not np.array_equal(_jpeg_pixels(content), _jpeg_pixels(filled)):
        raise Incomplete("the data of a scan end early")


def _jpeg_pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
        return np.asarray(image)


def _png_chunks(file: BinaryIO) -> Iterator[bytes]:
    """Content of the header, then of the compressed data in pieces."""
    file.seek(8)
    while len(start := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", start)
        if kind == b"IHDR":
            yield file.read(length)
        elif kind == b"IDAT":
            left = length
            while left and (piece := file.read(min(left, BLOCK))):
                left -= len(piece)
                yield piece
        else:
            file.seek(length, io.SEEK_CUR)
        file.seek(4, io.SEEK_CUR)


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, bytes, int, int]]:
    """Marker and content of each segment, and where it ends; with a scan, where the pixels after it end, too."""
    position = 2
    while (found := MARKER.search(content, position)) and found[1][0] != END_OF_IMAGE:
        marker, start = found[1][0], found.end()
        position = start
        if marker in WITHOUT_LENGTH:
            continue
        position += int.from_bytes(content[start : start + 2], "big")
        segment, end = content[start + 2 : position], position
        if marker == START_OF_SCAN:
            after = AFTER_A_SCAN.search(content, position)
            position = after.start() if after else len(content)
        yield marker, segment, end, position


def _compare(stored: int, needed: int, row: int) -> None:
    if stored < needed:
        raise Incomplete(f"it holds {stored} of the {needed} bytes of pixels that its header claims")
    if stored >= needed + row:
        raise Incomplete(f"it holds rows beyond the {needed} bytes of pixels that its header claims")


def _count(found: int, claimed: int, what: str) -> None:
    if found != claimed:
        raise Incomplete(f"it holds {found} {what} where its header claims {claimed}")
