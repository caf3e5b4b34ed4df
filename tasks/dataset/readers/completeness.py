"""Checks that an image file has all pixels that its header declares.

Decoders fill missing pixels with grey or black, and ignore extra data, without a warning. These checks count the bytes
of a PNG and of an uncompressed BMP, and the scans of a JPEG. A scan of a JPEG that ends early is detected by decoding.
"""

import io
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image

from tasks.dataset.readers.stored import ADVICE

PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""PNG colour type -> number of channels."""
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Passes of an interlaced PNG: first column, first row, step between columns, step between rows."""
BLOCK_BYTES = 1 << 20
"""Bytes that are read or decompressed at once."""

BMP_HEADER, BMP_V5_BYTES = 14, 124
"""Offset of the header of a BMP, and length of the header of version 5."""

# JPEG markers
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
LOSSLESS_FRAME, START_OF_JPEG_LS_FRAME = 0xC3, 0xF7
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
    check_byte_count(n_inflated(pieces, declared + row_bytes(width)), declared, row_bytes(width))


def check_bmp(image: Image.Image, file: BinaryIO, n_bytes: int) -> None:
    """Compare the length of a BMP with the length that the header declares. A colour profile may follow the pixels.

    Args:
        image: opened file.
        file: the same file.
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
    n_pixel_bytes = stride * image.height
    check_byte_count(n_bytes - offset - _profile_bytes(file, offset + n_pixel_bytes), n_pixel_bytes, stride)


def pillow_pixels(content: bytes) -> np.ndarray:
    """Pixels of a JPEG file."""
    with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
        return np.asarray(image)


def check_jpeg(content: bytes, decode: Callable[[bytes], np.ndarray] = pillow_pixels) -> None:
    """Check that a JPEG has all scans that its header declares, and that no scan ends early.

    If a scan ends early, decoders fill the rest with grey, or leave it blurred. To detect this, the JPEG is decoded a
    second time with :data:`FILLER` at the end of every scan. The pixels differ if a scan ends early.

    Args:
        content: JPEG file, or the compressed image within a TIFF or DICOM file.
        decode: decoder of the pixels.

    Raises:
        IncompleteImageError: a scan is missing, or ends early; or there are more than MAX_SCANS scans.
    """
    component_ids, n_scans, is_lossless = [], 0, False
    # number of missing bits of each coefficient of each component; -1: all bits are missing
    missing_bits = np.full((1, 64), -1)
    pieces, copied = [], 0
    for marker, segment, start, end in jpeg_segments(content):
        if marker == START_OF_JPEG_LS_FRAME:
            # its decoder refuses a scan that ends early
            return
        if marker in START_OF_FRAME_MARKERS:
            is_lossless = marker == LOSSLESS_FRAME
            component_ids = list(segment[6 : 6 + 3 * segment[5] : 3])
            missing_bits = np.full((len(component_ids), 64), -1)
        elif marker == START_OF_SCAN:
            n_scans += 1
            n_components = segment[0]
            first, last, bit_positions = segment[1 + 2 * n_components : 4 + 2 * n_components]
            rows = [component_ids.index(component) for component in segment[1 : 1 + 2 * n_components : 2]]
            if is_lossless:
                # a scan holds all bits of its components; its numbers are a predictor and a shift
                missing_bits[rows] = 0
            else:
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
    if not np.array_equal(decode(content), decode(filled)):
        raise IncompleteImageError(f"incomplete JPEG: the data of a scan end early. {ADVICE}")


def _profile_bytes(file: BinaryIO, end_of_pixels: int) -> int:
    """Bytes of a colour profile behind the pixels of a BMP with a header of version 5; 0 without such a profile."""
    file.seek(BMP_HEADER)
    header = file.read(BMP_V5_BYTES)
    if len(header) < BMP_V5_BYTES or struct.unpack_from("<I", header)[0] != BMP_V5_BYTES:
        return 0
    colour_space, (start, n_bytes) = header[56:60][::-1], struct.unpack_from("<II", header, 112)
    has_profile = colour_space in (b"MBED", b"LINK") and BMP_HEADER + start >= end_of_pixels
    return int(BMP_HEADER + start + n_bytes - end_of_pixels) if has_profile else 0


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


def jpeg_segments(content: bytes) -> Iterator[tuple[int, bytes, int, int]]:
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


def n_inflated(pieces: Iterable[bytes], enough: int, window_bits: int = zlib.MAX_WBITS) -> int:
    """Size of compressed data after decompression, in bytes; at ``enough`` bytes the count stops.

    Args:
        pieces: the data; a small piece at a time is decompressed, in blocks of :data:`BLOCK_BYTES`.
        enough: the count ends with the block that reaches this number.
        window_bits: as for :func:`zlib.decompressobj`; negative for data without a header.
    """
    decompressor, found = zlib.decompressobj(window_bits), 0
    for piece in pieces:
        rest = piece
        while rest and found < enough:
            found += len(decompressor.decompress(rest, BLOCK_BYTES))
            rest = decompressor.unconsumed_tail
    return found


def check_rle(frame: bytes, declared: int, row_bytes: int) -> None:
    """Compare the size of each segment of a run-length encoded DICOM frame with the size that the header declares.

    Raises:
        IncompleteImageError: data are missing, or there is an extra row.
    """
    n_segments, *starts = struct.unpack_from("<16I", frame)
    starts = starts[:n_segments]
    for start, end in zip(starts, [*starts[1:], len(frame)], strict=True):
        position, found = start, 0
        while position < end - 1:
            # up to 127: literal bytes; from 129: repetitions of one byte; 128: nothing (DICOM PS3.5 G.3.1)
            control = frame[position]
            n_bytes = control + 1 if control < 128 else 257 - control if control > 128 else 0
            position += 1 + (n_bytes if control < 128 else control > 128)
            found += n_bytes
        check_byte_count(found, declared, row_bytes)


def check_byte_count(found: int, declared: int, row_bytes: int) -> None:
    """Raise an error if bytes of pixels are missing, or if there is an extra row."""
    if found < declared:
        raise IncompleteImageError(
            f"incomplete image: it holds {found} of the {declared} bytes of pixels that its header declares. {ADVICE}"
        )
    if found >= declared + row_bytes:
        raise IncompleteImageError(
            f"wrong image size: it holds rows beyond the {declared} bytes of pixels that its header declares. {ADVICE}"
        )


def check_count(found: int, declared: int, name: str) -> None:
    """Raise an error if strips or tiles are missing, or if there are too many."""
    if found != declared:
        raise IncompleteImageError(
            f"incomplete image: it holds {found} {name}, but its header declares {declared}. {ADVICE}"
        )
