"""Two hundred files for a folder of images: valid, damaged and foreign files, and files with wrong headers."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 72, 96
N_MUTANTS = 200
ORIENTATION = 0x0112
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.T,
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).T,
    8: np.rot90,
}
"""EXIF orientation -> function that turns the stored pixels upright."""
SIGNATURE = b"\x89PNG\r\n\x1a\n"
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


@dataclass(frozen=True)
class Mutant:
    """A file below a class folder, and the expected result of reading it."""

    name: str
    content: bytes = b""
    pixels: np.ndarray | None = None
    """The decoded pixels; None if the file is refused."""
    reason: str = ""
    """Pattern of the reason for which the file is refused."""
    tolerance: int = 0
    """Largest difference of a pixel in grey levels, since JPEG is lossy."""
    put: Callable[[Path], None] | None = None
    """Creates the file, if it is not a regular file with ``content``."""


def picture(seed: int) -> np.ndarray:
    """A smooth picture, uint8 ``(HEIGHT, WIDTH)``; every seed gives another one."""
    coarse = np.random.default_rng(seed).integers(10, 246, (6, 8), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(smooth), 5, 250)


def saved(image: Image.Image | np.ndarray, format_: str, **options: object) -> bytes:
    """Content of an image file."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG with the correct checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, rows: bytes, depth: int = 8, colour: int = 0, interlaced: int = 0) -> bytes:
    """A PNG with this header and these rows, which need not agree."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def rows_of(pixels: np.ndarray) -> bytes:
    """Rows of a PNG, unfiltered."""
    return b"".join(b"\0" + row.tobytes() for row in pixels)


def patched(content: bytes, offset: int, form: str, value: int) -> bytes:
    """The content with a number overwritten."""
    changed = bytearray(content)
    struct.pack_into(form, changed, offset, value)
    return bytes(changed)


def flipped(content: bytes, bit: int) -> bytes:
    """The content with one bit flipped."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def tiff_entry(content: bytes, tag: int) -> int:
    """Offset of the value of a tag in a little-endian TIFF."""
    directory = struct.unpack_from("<I", content, 4)[0]
    for i in range(struct.unpack_from("<H", content, directory)[0]):
        entry = directory + 2 + 12 * i
        if struct.unpack_from("<H", content, entry)[0] == tag:
            return entry + 8
    raise KeyError(tag)


def jpeg_size(content: bytes) -> int:
    """Offset of height and width in a baseline JPEG."""
    return content.index(b"\xff\xc0") + 5


def valid() -> Iterator[Mutant]:
    """Files that decode to known pixels."""
    seeds = iter(range(1000, 2000))
    for mode in ("L", "LA", "RGB", "RGBA", "P"):
        for suffix, format_ in (("png", "PNG"), ("tif", "TIFF")):
            pixels = picture(next(seeds))
            yield Mutant(f"{mode}.{suffix}", saved(Image.fromarray(pixels).convert(mode), format_), pixels)
    for mode in ("L", "RGB", "P"):
        pixels = picture(next(seeds))
        yield Mutant(f"{mode}.bmp", saved(Image.fromarray(pixels).convert(mode), "BMP"), pixels)
    for suffix, format_ in (("png", "PNG"), ("tif", "TIFF"), ("bmp", "BMP")):
        pixels = picture(next(seeds))
        two = Image.fromarray(pixels > 127)
        yield Mutant(f"one bit.{suffix}", saved(two, format_), np.where(pixels > 127, 255, 0).astype(np.uint8))
    for suffix, format_ in (("png", "PNG"), ("tif", "TIFF")):
        pixels = picture(next(seeds))
        yield Mutant(f"16 bits.{suffix}", saved(pixels.astype(np.uint16) * 257 + 40, format_), pixels)
    pixels = picture(next(seeds))
    inverted = 65535 - pixels.astype(np.uint16) * 257
    yield Mutant("16 bits, white is zero.tif", saved(inverted, "TIFF", tiffinfo={262: 0}), pixels)
    pixels = picture(next(seeds))
    colours = np.repeat((pixels.astype(">u2") * 257)[..., None], 3, axis=2)
    yield Mutant("48 bits.png", png(WIDTH, HEIGHT, rows_of(colours), depth=16, colour=2), pixels)
    pixels = picture(next(seeds))
    passes = b"".join(rows_of(pixels[top::down, left::across]) for left, top, across, down in ADAM7)
    yield Mutant("interlaced.png", png(WIDTH, HEIGHT, passes, interlaced=1), pixels)
    for compression in ("tiff_lzw", "tiff_deflate", "packbits"):
        pixels = picture(next(seeds))
        yield Mutant(f"{compression}.tif", saved(pixels, "TIFF", compression=compression), pixels)
    pixels = picture(next(seeds))
    yield Mutant("CMYK.tif", saved(Image.fromarray(pixels).convert("RGB").convert("CMYK"), "TIFF"), pixels)
    for name, mode, options in (
        ("baseline", "L", {}),
        ("colour", "RGB", {}),
        ("CMYK", "CMYK", {}),
        ("progressive", "L", {"progressive": True}),
        ("progressive colour", "RGB", {"progressive": True}),
        ("restarts", "L", {"restart_marker_blocks": 3}),
    ):
        pixels = picture(next(seeds))
        image = Image.fromarray(pixels).convert("RGB").convert(mode)
        yield Mutant(f"{name}.jpg", saved(image, "JPEG", quality=95, **options), pixels, tolerance=6)
    for orientation, upright in UPRIGHT.items():
        for suffix, format_ in (("png", "PNG"), ("tif", "TIFF"), ("jpg", "JPEG")):
            pixels, exif = picture(next(seeds)), Image.Exif()
            exif[ORIENTATION] = orientation
            options = {"quality": 95} if suffix == "jpg" else {}
            content = saved(pixels, format_, exif=exif, **options)
            tolerance = 6 if suffix == "jpg" else 0
            yield Mutant(f"turned {orientation}.{suffix}", content, upright(pixels), tolerance=tolerance)
    for format_ in ("PNG", "BMP", "TIFF"):
        for suffix in ("png", "jpg", "bmp", "tif"):
            if not format_.lower().startswith(suffix):
                pixels = picture(next(seeds))
                yield Mutant(f"a {format_} called.{suffix}", saved(pixels, format_), pixels)
    for name in (
        *("снимок.png", "切片 01.png", "スライス.png", "شريحة.png", "פרוסה.png", "स्लाइस.png", "τομή.png", "naïve.png"),
        *("🫁.png", "space [1] 100% #&'.png", "UPPER.PNG", "١٢.png", "deep/er/1.png", f"long {200 * 'x'}.png"),
    ):
        pixels = picture(next(seeds))
        yield Mutant(name, saved(pixels, "PNG"), pixels)
    pixels = picture(next(seeds))
    yield Mutant("linked within.png", pixels=picture(1000), put=lambda path: path.symlink_to(path.with_name("L.png")))


def wrong_sizes() -> Iterator[Mutant]:
    """Files whose header states another size than the pixels have."""
    pixels = picture(1)
    wrong = {"taller": (WIDTH, 2 * HEIGHT), "shorter": (WIDTH, HEIGHT // 2), "narrower": (WIDTH // 2, HEIGHT)}
    wrong |= {"wider": (2 * WIDTH, HEIGHT), "wider and shorter": (2 * WIDTH, HEIGHT // 2)}
    counted = "it holds|cannot be decoded"
    bmp, tiff, jpeg = saved(pixels, "BMP"), saved(pixels, "TIFF"), saved(pixels, "JPEG")
    for name, (width, height) in wrong.items():
        yield Mutant(f"{name}.png", png(width, height, rows_of(pixels)), reason=counted)
        if name != "wider and shorter":  # in an uncompressed file these are as many bytes
            yield Mutant(f"{name}.bmp", patched(patched(bmp, 18, "<i", width), 22, "<i", height), reason=counted)
            changed_header = patched(
                patched(tiff, tiff_entry(tiff, 256), "<I", width), tiff_entry(tiff, 257), "<I", height
            )
            yield Mutant(f"{name}.tif", changed_header, reason=counted)
        if name in ("taller", "wider"):
            size = struct.pack(">HH", height, width)
            changed_header = jpeg[: jpeg_size(jpeg)] + size + jpeg[jpeg_size(jpeg) + 4 :]
            yield Mutant(f"{name}.jpg", changed_header, reason="the data of a scan end early")
    huge = "60000 x 60000 pixels are more than validate.max_megapixels 1 allows"
    yield Mutant("huge.png", png(60_000, 60_000, b""), reason=huge)
    yield Mutant("huge.bmp", patched(patched(bmp, 18, "<i", 60_000), 22, "<i", 60_000), reason=huge)
    changed_header = patched(patched(tiff, tiff_entry(tiff, 256), "<I", 60_000), tiff_entry(tiff, 257), "<I", 60_000)
    yield Mutant("huge.tif", changed_header, reason=huge)
    changed_header = jpeg[: jpeg_size(jpeg)] + struct.pack(">HH", 60_000, 60_000) + jpeg[jpeg_size(jpeg) + 4 :]
    yield Mutant("huge.jpg", changed_header, reason=huge)
    progressive = saved(pixels, "JPEG", progressive=True)
    for kept in (0.4, 0.6):
        closed = jpeg[: int(kept * len(jpeg))] + b"\xff\xd9"
        yield Mutant(f"{kept} and an end.jpg", closed, reason="the data of a scan end early")
        closed = progressive[: int(kept * len(progressive))] + b"\xff\xd9"
        yield Mutant(f"{kept} and an end, progressive.jpg", closed, reason="scans end before the image is whole")
    runs = patched(patched(saved(Image.fromarray(pixels), "BMP"), 30, "<I", 1), 34, "<I", 0)
    yield Mutant("run-length encoded.bmp", runs, reason="run-length encoded")
    broken = saved(pixels, "PNG")[:33] + chunk(b"eXIf", b"II*\0\x08\0\0\0\x09\0\x12\x01") + saved(pixels, "PNG")[33:]
    yield Mutant("half an orientation.png", broken, reason="cannot be decoded .*EXIF")


def foreign() -> Iterator[Mutant]:
    """Files of other types, symbolic links and forbidden names."""
    pixels = picture(2)
    image, other = Image.fromarray(pixels), Image.fromarray(255 - pixels)
    several = {"save_all": True, "append_images": [other]}
    frames = "holds several frames: .* Save each frame as a separate file"
    yield Mutant("animated.png", saved(image, "PNG", **several), reason=frames)
    yield Mutant("pages.tif", saved(image, "TIFF", **several), reason=frames)
    yield Mutant("stereo.jpg", saved(image, "MPO", **several), reason=frames)
    none = "the content is none of PNG, JPEG, BMP, TIFF"
    yield Mutant("animated gif.png", saved(image, "GIF", **several), reason=none)
    yield Mutant("webp.png", saved(image, "WEBP"), reason=none)
    yield Mutant("page.png", b"<!doctype html><title>404 Not Found</title>", reason=none)
    yield Mutant("archive.jpg", b"PK\x03\x04" + bytes(60), reason=none)
    yield Mutant("scan.tif", bytes(128) + b"DICM" + bytes(100), reason="DICOM file")
    yield Mutant("zeros.bmp", bytes(4096), reason=none)
    yield Mutant("empty.png", b"", reason="the file is empty")
    yield Mutant("float.tif", saved(pixels.astype(np.float32), "TIFF"), reason="mode float32 has no fixed range")
    yield Mutant("32 bits.tif", saved(pixels.astype(np.int32), "TIFF"), reason="mode int32 has no fixed range")
    for suffix in ("gif", "webp", "txt", "npy"):
        yield Mutant(f"by its name.{suffix}", saved(image, "PNG"), reason="by its name; move it away")
    out, nowhere = "symbolic link out of the folder", "symbolic link whose target does not exist"
    yield Mutant("out.png", reason=out, put=lambda path: path.symlink_to("/etc/hostname"))
    yield Mutant("out by steps.png", reason=out, put=lambda path: path.symlink_to("../../../secret.png"))
    yield Mutant("to a folder", reason="symbolic link to a folder", put=lambda path: path.symlink_to(path.parent))
    yield Mutant("nowhere.png", reason=nowhere, put=lambda path: path.symlink_to(path.with_name("none.png")))
    yield Mutant("circle.png", reason=nowhere, put=lambda path: path.symlink_to(path))
    for name in ("Twin.png", "twin.png"):
        yield Mutant(name, saved(image, "PNG"), reason="differs from .* only in case")
    for name in ("cafe\u0301.png", "caf\u00e9.png"):
        yield Mutant(name, saved(image, "PNG"), reason="differs from .* only in case or in how accents are encoded")
    for name in ("line\nbreak.png", "latin-\udce9.png"):
        yield Mutant(name, saved(image, "PNG"), reason="undecodable or control characters")


def damaged() -> Iterator[Mutant]:
    """Truncated files, and files with one bit flipped."""
    pixels = picture(3)
    for suffix, format_ in (("png", "PNG"), ("jpg", "JPEG"), ("bmp", "BMP"), ("tif", "TIFF")):
        content = saved(pixels, format_)
        for kept in (0.02, 0.3, 0.6, 0.9, 0.99):
            refused = "cannot be decoded|the content is none of|it holds"
            yield Mutant(f"first {kept}.{suffix}", content[: int(kept * len(content))], reason=refused)
    rng, content = np.random.default_rng(0), saved(pixels, "PNG")
    # except in the last chunk, which holds no pixels and whose checksum is not read
    for bit in rng.permutation(8 * (len(content) - 12)):
        yield Mutant(f"bit {bit}.png", flipped(content, int(bit)), reason="cannot be decoded|the content is none of")


def mutants() -> list[Mutant]:
    """All files: those of the other kinds, and as many damaged files as are left."""
    found = [*valid(), *wrong_sizes(), *foreign()]
    rest = damaged()
    return [*found, *(next(rest) for _ in range(N_MUTANTS - len(found)))]


def write(mutant: Mutant, folder: Path) -> None:
    """Write a mutant below a class folder."""
    path = folder / mutant.name
    path.parent.mkdir(parents=True, exist_ok=True)
    if mutant.put:
        mutant.put(path)
    else:
        path.write_bytes(mutant.content)
