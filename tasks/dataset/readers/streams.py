"""Sizes of compressed images within TIFF and DICOM files, from their own headers.

Decoders allocate memory for the size in the header of the compressed image, not for the one that the file declares.
"""

import struct

from tasks.dataset.readers.completeness import (
    START_OF_FRAME_MARKERS,
    START_OF_JPEG_LS_FRAME,
    IncompleteImageError,
    jpeg_segments,
)
from tasks.dataset.readers.stored import ADVICE

START_OF_JPEG = b"\xff\xd8"
"""First marker of a JPEG or JPEG-LS image."""
START_OF_CODESTREAM = b"\xff\x4f\xff\x51"
"""First two markers of a JPEG 2000 image."""
MAX_COMPONENTS = 8
"""Maximum number of channels of a JPEG 2000 image; its header can declare 16384."""


def check_stream(stream: bytes, width: int, height: int) -> None:
    """Check the size of a compressed image before it is decoded.

    Args:
        stream: the compressed image: JPEG, JPEG-LS, JPEG 2000, PNG or WebP.
        width: columns that the file declares for it.
        height: rows that the file declares for it.

    Raises:
        IncompleteImageError: the image is larger, has another format, or too many channels.
        struct.error: its header is incomplete.
    """
    sizes = _sizes(stream)
    if not sizes:
        raise IncompleteImageError(
            "the compressed image within the file is none of JPEG, JPEG-LS, JPEG 2000, PNG and WebP. Save the image "
            "uncompressed."
        )
    for found in sizes:
        if found[0] > width or found[1] > height:
            raise IncompleteImageError(
                f"wrong image size: the compressed image within the file has {found[0]} x {found[1]} pixels, but the "
                f"header of the file declares {width} x {height}. {ADVICE}"
            )


def _sizes(stream: bytes) -> list[tuple[int, int]]:
    """Width and height of each frame header; empty for another format."""
    if stream.startswith(START_OF_JPEG):
        markers = {*START_OF_FRAME_MARKERS, START_OF_JPEG_LS_FRAME}
        headers = [segment for marker, segment, _, _ in jpeg_segments(stream) if marker in markers]
        return [struct.unpack_from(">HH", header, 1)[::-1] for header in headers]
    if stream.startswith(b"\x89PNG\r\n\x1a\n"):
        return [struct.unpack_from(">II", stream, 16)]
    if stream.startswith(b"RIFF"):
        return _webp_sizes(stream)
    start = _start_of_codestream(stream)
    if stream[start : start + 4] != START_OF_CODESTREAM:
        return []
    right, bottom, left, top, n_components = struct.unpack_from(">4I16xH", stream, start + 8)
    if n_components > MAX_COMPONENTS:
        raise IncompleteImageError(
            f"the JPEG 2000 image within the file has {n_components} channels. At most {MAX_COMPONENTS} are allowed. "
            "Save the image again."
        )
    return [(right - left, bottom - top)]


def _webp_sizes(stream: bytes) -> list[tuple[int, int]]:
    match stream[8:16]:
        case b"WEBPVP8X":
            return [(1 + int.from_bytes(stream[24:27], "little"), 1 + int.from_bytes(stream[27:30], "little"))]
        case b"WEBPVP8L":
            bits = int.from_bytes(stream[21:25], "little")
            return [(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))]
        case b"WEBPVP8 ":
            width, height = struct.unpack_from("<HH", stream, 26)
            return [(width & 0x3FFF, height & 0x3FFF)]
    return []


def _start_of_codestream(stream: bytes) -> int:
    """Offset of the codestream: 0 without boxes around it (JP2); the length of ``stream`` if there is none."""
    position = 0
    if stream[4:8] != b"jP  ":
        return position
    while position + 8 <= len(stream):
        length, kind = struct.unpack_from(">I4s", stream, position)
        if kind == b"jp2c":
            # a palette would multiply the number of channels
            return len(stream) if b"pclr" in stream[:position] else position + (16 if length == 1 else 8)
        position += max(length, 8)
    return len(stream)
