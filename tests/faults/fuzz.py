"""Fuzzing of the readers of image files and of params.yaml: ``python -m tests.faults.fuzz images 300``.

If atheris is installed, the mutations are guided by the coverage of Pillow and of this project. Otherwise they are
random. A reader may raise only documented errors, and its time and memory are limited for each input.
"""

import argparse
import io
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from tasks.dataset.images import ImageError, LevelImage, read_image
from tasks.dataset.readers import FORMATS, MODES
from tasks.params import ParamsError, load_params, parse_params
from tests.conftest import ROOT
from tests.faults.mutants import mutants, saved

MAX_MEGAPIXELS = 1.0
MAX_CPU_SECONDS, MAX_WALL_SECONDS = 5.0, 60
"""Limits on the CPU time and the wall time of one input; the machine may be busy."""
MAX_MEGABYTES = 1024
"""Limit on the memory that one input adds. With atheris: limit on the memory of the process, including libraries."""


@dataclass(frozen=True)
class Target:
    """A reader and its seed inputs."""

    read: Callable[[Path], None]
    """Reads a file; raises an exception if the reader raises an undocumented error or returns a wrong result."""
    seeds: Callable[[], Iterator[bytes]]
    max_bytes: int
    """Maximum length of an input."""


def read_images(path: Path) -> None:
    """Read an image twice, because uninitialized memory in the pixels would differ."""
    try:
        image = read_image(path, MAX_MEGAPIXELS)
    except ImageError as error:
        message = str(error)
    else:
        check_image(image)
        np.testing.assert_array_equal(read_image(path, MAX_MEGAPIXELS).pixels, image.pixels)
        return
    assert message.startswith(f"{path}: ")
    assert len(message) > len(f"{path}: "), "the reason is missing"


def check_image(image: LevelImage) -> None:
    """Check the properties of every image that is read."""
    assert image.pixels.dtype == np.uint8
    assert image.pixels.ndim == 2
    assert 0 < image.pixels.size <= MAX_MEGAPIXELS * 1e6
    assert image.format in FORMATS
    assert image.mode in MODES


def read_params(path: Path) -> None:
    """Read parameters, and check that valid ones are equal after they are written and read again."""
    try:
        params = load_params(path)
    except ParamsError as error:
        message = str(error)
    else:
        assert parse_params(json.loads(params.model_dump_json(by_alias=True))) == params
        return
    assert message.startswith(f"{path} ")


def small_images() -> Iterator[bytes]:
    """Small files of every format and most modes, and the small files of :mod:`tests.faults.mutants`."""
    grey = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) * 5)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        for format_ in ("PNG", "TIFF", *(("BMP",) if mode not in ("LA",) else ())):
            yield saved(grey.convert(mode), format_)
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        yield saved(grey, "TIFF", compression=compression)
    yield saved(grey.convert("1"), "TIFF", compression="group4")
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 1}):
        yield saved(grey, "JPEG", **options)
        yield saved(grey.convert("RGB").convert("CMYK"), "JPEG", **options)
    yield from (mutant.content for mutant in mutants() if 0 < len(mutant.content) < 4096)
    for number_of_frames in (None, 2):
        yield small_dicom(number_of_frames)


def small_dicom(number_of_frames: int | None) -> bytes:
    """A DICOM file with 8 x 6 pixels of 12 bits in each frame, a rescale slope, an intercept and a window."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = CTImageStorage
    dataset.Modality = "CT"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 6, 8, 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.WindowCenter, dataset.WindowWidth = 1, -1024, 40, 400
    if number_of_frames:
        dataset.NumberOfFrames = number_of_frames
    dataset.PixelData = np.arange(48 * (number_of_frames or 1), dtype="<u2").tobytes()
    file = io.BytesIO()
    dataset.preamble = bytes(128)
    dataset.save_as(file, enforce_file_format=False)
    return file.getvalue()


def small_params() -> Iterator[bytes]:
    """The params.yaml of the repository, parts of 10 lines of it, and other features of YAML."""
    text = (ROOT / "params.yaml").read_bytes()
    yield text
    yield from (b"".join(part) for part in zip(*[iter(text.splitlines(keepends=True))] * 10, strict=False))
    yield b"a: &a [x, x]\nb: [*a, *a]\n<<: {c: !!binary aGVsbG8=}\n"
    yield b"seed: 2020-01-01\nx: !!set {a}\n? [1, 2]\n: !!python/name:os.system\n"
    yield b'%YAML 1.1\n---\nseed: 0x1F\nt: "\\u0041"\nn: .nan\ni: -.inf\nf: 1_0e3\n...\n'


TARGETS = {"images": Target(read_images, small_images, 4096), "params": Target(read_params, small_params, 16_384)}


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Change up to eight random bytes or pieces of a content."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        if not changed:
            changed += rng.randbytes(4)
        at = rng.randrange(len(changed))
        match rng.randrange(6):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
            case 2:
                number = rng.choice([0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, rng.randrange(2**32)])
                changed[at : at + 4] = number.to_bytes(4, rng.choice(["little", "big"]))
            case 3:
                del changed[at : at + rng.randrange(1, 64)]
            case 4:
                start = rng.randrange(len(changed))
                changed[at:at] = changed[start : start + rng.randrange(1, 64)]
            case _:
                changed = changed[: at + 1]
    return bytes(changed)


def check(target: Target, content: bytes, folder: Path) -> None:
    """Read one input.

    Raises:
        AssertionError: a limit of time or memory is exceeded, or the result is wrong.
        Exception: the reader raised an undocumented error.
    """
    path = folder / "input"
    path.write_bytes(content)
    start, before = time.process_time(), _peak_megabytes()
    target.read(path)
    seconds = time.process_time() - start
    assert seconds < MAX_CPU_SECONDS, f"{seconds:.1f} s for {len(content)} bytes"
    megabytes = _peak_megabytes() - before
    assert megabytes < MAX_MEGABYTES, f"{megabytes:.0f} MB for {len(content)} bytes"


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fuzz_randomly(target: Target, seconds: float, folder: Path, seed: int = 0) -> int:
    """Read random mutations of the seed inputs, and return their number.

    If an input fails, it stays in ``folder``.
    """
    rng, seeds, n = random.Random(seed), list(target.seeds()), 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        check(target, mutate(rng.choice(seeds), rng)[: target.max_bytes], folder)
        n += 1
    return n


def fuzz_by_coverage(name: str, seconds: int, folder: Path) -> None:
    """Read mutations that are guided by coverage, with atheris. It ends the process."""
    import atheris

    corpus = folder / "corpus"
    corpus.mkdir()
    for i, content in enumerate(TARGETS[name].seeds()):
        (corpus / str(i)).write_bytes(content)
    atheris.instrument_all()
    limits = [f"-max_total_time={seconds}", f"-max_len={TARGETS[name].max_bytes}", f"-rss_limit_mb={MAX_MEGABYTES}"]
    atheris.Setup(
        [sys.argv[0], str(corpus), *limits, f"-timeout={MAX_WALL_SECONDS}", f"-artifact_prefix={folder}/"],
        lambda content: check(TARGETS[name], content, folder),
    )
    atheris.Fuzz()


def main() -> None:
    """Fuzz a reader. An input that fails stays in the folder that is printed at the start."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz", description=main.__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("seconds", type=int)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{arguments.target}-"))
    print(f"inputs in {folder}", flush=True)
    try:
        import atheris  # noqa: F401  only to check that it is installed
    except ModuleNotFoundError:
        n = fuzz_randomly(TARGETS[arguments.target], arguments.seconds, folder)
        print(f"atheris is not installed: {n} random inputs read without a failure")
    else:
        fuzz_by_coverage(arguments.target, arguments.seconds, folder)


if __name__ == "__main__":
    main()
