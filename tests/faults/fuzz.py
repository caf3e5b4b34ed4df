"""Fuzzing of what reads files of others: ``python -m tests.faults.fuzz images 300``.

With atheris, where it is installed, inputs are mutated by what they reach in Pillow's and our own Python; without it,
at random. Only documented errors may come out, and no input may take more than its share of time and memory.
"""

import argparse
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

from tasks.dataset.images import FORMATS, MODES, GreyImage, ImageError, read_image
from tasks.params import ParamsError, load_params, parse_params
from tests.conftest import ROOT
from tests.faults.mutants import mutants, saved

MAX_MEGAPIXELS = 1.0
SECONDS, WALL_SECONDS = 5.0, 60
"""Of a processor, and on the wall, that an input may take on a busy machine."""
MEGABYTES = 1024
"""That an input may add; for atheris, that the process may hold, the libraries themselves included."""


@dataclass(frozen=True)
class Target:
    """A reader, and files to begin with."""

    read: Callable[[Path], None]
    """Raises what is not documented, and where something read is not as it should be."""
    seeds: Callable[[], Iterator[bytes]]
    max_bytes: int


def read_images(path: Path) -> None:
    """Read an image twice: memory that nobody filled would differ."""
    try:
        image = read_image(path, MAX_MEGAPIXELS)
    except ImageError as error:
        told = str(error)
    else:
        check_image(image)
        np.testing.assert_array_equal(read_image(path, MAX_MEGAPIXELS).pixels, image.pixels)
        return
    assert told.startswith(f"{path}: ")
    assert len(told) > len(f"{path}: "), "no reason is given"


def check_image(image: GreyImage) -> None:
    """What every image is."""
    assert image.pixels.dtype == np.uint8
    assert image.pixels.ndim == 2
    assert 0 < image.pixels.size <= MAX_MEGAPIXELS * 1e6
    assert image.format in FORMATS
    assert image.mode in MODES


def read_params(path: Path) -> None:
    """Read parameters; what is valid says the same once it is written out again."""
    try:
        params = load_params(path)
    except ParamsError as error:
        told = str(error)
    else:
        assert parse_params(json.loads(params.model_dump_json(by_alias=True))) == params
        return
    assert told.startswith(f"{path} ")


def small_images() -> Iterator[bytes]:
    """Small files of every format and most modes, and those that tests know."""
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


def small_params() -> Iterator[bytes]:
    """The repository's parameters, whole and by section, and what YAML knows beside."""
    text = (ROOT / "params.yaml").read_bytes()
    yield text
    yield from (b"".join(part) for part in zip(*[iter(text.splitlines(keepends=True))] * 10, strict=False))
    yield b"a: &a [x, x]\nb: [*a, *a]\n<<: {c: !!binary aGVsbG8=}\n"
    yield b"seed: 2020-01-01\nx: !!set {a}\n? [1, 2]\n: !!python/name:os.system\n"
    yield b'%YAML 1.1\n---\nseed: 0x1F\nt: "\\u0041"\nn: .nan\ni: -.inf\nf: 1_0e3\n...\n'


TARGETS = {"images": Target(read_images, small_images, 4096), "params": Target(read_params, small_params, 16_384)}


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The content with a few bytes or pieces changed, at random."""
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
        AssertionError: it took too long, or what was read is not as it should be.
        Exception: an error that is not documented.
    """
    path = folder / "input"
    path.write_bytes(content)
    start, before = time.process_time(), _peak_megabytes()
    target.read(path)
    seconds = time.process_time() - start
    assert seconds < SECONDS, f"{seconds:.1f} s for {len(content)} bytes"
    megabytes = _peak_megabytes() - before
    assert megabytes < MEGABYTES, f"{megabytes:.0f} MB for {len(content)} bytes"


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def at_random(target: Target, seconds: float, folder: Path, seed: int = 0) -> int:
    """Read mutated inputs for so long; the one that fails is in ``folder``. How many were read."""
    rng, seeds, n = random.Random(seed), list(target.seeds()), 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        check(target, mutated(rng.choice(seeds), rng)[: target.max_bytes], folder)
        n += 1
    return n


def guided(name: str, seconds: int, folder: Path) -> None:
    """The same by libFuzzer; ends the process."""
    import atheris

    corpus = folder / "corpus"
    corpus.mkdir()
    for i, content in enumerate(TARGETS[name].seeds()):
        (corpus / str(i)).write_bytes(content)
    atheris.instrument_all()
    limits = [f"-max_total_time={seconds}", f"-max_len={TARGETS[name].max_bytes}", f"-rss_limit_mb={MEGABYTES}"]
    atheris.Setup(
        [sys.argv[0], str(corpus), *limits, f"-timeout={WALL_SECONDS}", f"-artifact_prefix={folder}/"],
        lambda content: check(TARGETS[name], content, folder),
    )
    atheris.Fuzz()


def main() -> None:
    """Fuzz a reader; what fails is left in the folder that is named at the start."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz", description=main.__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("seconds", type=int)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{given.target}-"))
    print(f"inputs in {folder}", flush=True)
    try:
        import atheris  # noqa: F401  guided() imports it when it is too late for a message
    except ModuleNotFoundError:
        print(f"without atheris: {at_random(TARGETS[given.target], given.seconds, folder)} inputs read, nothing found")
    else:
        guided(given.target, given.seconds, folder)


if __name__ == "__main__":
    main()
