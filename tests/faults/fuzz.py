"""Fuzzing of everything that reads a user's files: ``python -m tests.faults.fuzz images 300``.

The targets are image files, DICOM files, NIfTI files, params.yaml, tables of images, and requests to the model server.
If atheris is installed, the mutations are guided by the coverage of Pillow and of this project. Otherwise they are
random. A reader may raise only documented errors, and its time and memory are limited for each input.
"""

import argparse
import base64
import binascii
import io
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import nibabel
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, ErrorCode
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless
from torch import nn

from tasks.dataset.images import ImageError, LevelImage, Reading, read_image
from tasks.dataset.intensity import IntensityRange
from tasks.dataset.readers import FORMATS, MODES, Volumes, image_names
from tasks.dataset.readers.nifti import DIMENSION, Axis
from tasks.dataset.table import describe_images, read_table
from tasks.models.seeding import build_seeded
from tasks.params import ParamsError, Table, load_params, parse_params
from tasks.serving.bundle import Bundle
from tasks.serving.predictor import Predictor
from tasks.serving.pyfunc import Served
from tests.conftest import ROOT
from tests.faults.mutants import mutants, saved

MAX_MEGAPIXELS = 1.0
MAX_CPU_SECONDS, MAX_WALL_SECONDS = 10.0, 60
"""Limits on the CPU time and the wall time of one input; CharLS needs 4 s for a damaged frame of JPEG-LS."""
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
    suffix: str = ""
    """Suffix of the name of an input."""


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


def read_volume(path: Path) -> None:
    """Read slices in all directions."""
    for axis in DIMENSION:
        read_several(path, axis)


def read_several(path: Path, axis: Axis = "axial") -> None:
    """Read the first and the last image of a file twice."""
    reading = Reading(IntensityRange("window", low=-400.0, high=1000.0, unit="HU"), Volumes("all", axis))
    try:
        names = image_names(path, reading.volumes)
        images = {name: read_image(name, MAX_MEGAPIXELS, reading) for name in (names[0], names[-1])}
    except ImageError as error:
        message = str(error)
    else:
        for name, image in images.items():
            check_image(image)
            np.testing.assert_array_equal(read_image(name, MAX_MEGAPIXELS, reading).pixels, image.pixels)
        return
    assert message.startswith(str(path))


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


TABLE = Table(
    file="",
    path="file",
    label="finding",
    patient="patient",
    split="split",
    subgroups=("sex",),
    dicom_tags={},
    salt_file="salt",
)
TABLE_CLASSES = ("healthy", "ill")


def read_image_table(path: Path) -> None:
    """Read a table of two images, and check that it names only these and hashes their patients."""
    suffix = ".parquet" if path.read_bytes().startswith(b"PAR1") else ".csv"
    folder = path.parent / "images"
    folder.mkdir(exist_ok=True)
    for name in ("a.png", "b.png"):
        (folder / name).touch()
    (folder / f"table{suffix}").write_bytes(path.read_bytes())
    try:
        table = read_table(folder, TABLE.model_copy(update={"file": f"table{suffix}"}), TABLE_CLASSES)
        sources = {name: folder / name for name in table["path"]}
        described = describe_images(table, sources, TABLE, path.parent / "salt")
    except ValueError as error:
        # subclasses are errors of libraries
        kind, message = type(error), str(error)
    else:
        check_table(table, described, folder)
        return
    assert kind is ValueError
    assert message.startswith("acquire.table")


def check_table(table: pd.DataFrame, described: pd.DataFrame, folder: Path) -> None:
    """Check the properties of every table that is read."""
    assert set(table["class"]) <= set(TABLE_CLASSES)
    assert all((folder / name).resolve().is_relative_to(folder.resolve()) for name in table["path"])
    assert described["patient"].str.fullmatch("[0-9a-f]{16}").all()
    assert not described.isna().any(axis=None)


def served() -> Served:
    """A model of 32 x 32 pixels as the model server loads it, with random weights."""
    bundle = Bundle(
        target="undefended",
        digest="0" * 64,
        params={},
        dataset="drawn",
        is_phantom=True,
        classes=TABLE_CLASSES,
        positive_class="ill",
        image_size=(32, 32),
        value_range=(0.0, 1.0),
        aspect_ratios=(1.0, 1.0),
        max_megapixels=MAX_MEGAPIXELS,
        threads=1,
        detector=None,
    )
    model = Served()
    network = build_seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(1024, 2)))
    model.predictor = Predictor(bundle, network.eval())
    return model


def read_request(path: Path) -> None:
    """Answer a request: one row for each image, or an error that the server answers with status 400."""
    try:
        # as MLflow's server makes the table of a request
        rows = json.loads(path.read_bytes())["dataframe_split"]
        frame = pd.DataFrame(rows["data"], columns=rows["columns"])
        if "image" in frame:
            frame["image"] = [base64.b64decode(cell) for cell in frame["image"]]
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError, binascii.Error):
        return
    try:
        answer = served().predict(None, frame)
    except MlflowException as error:
        code = error.error_code
    else:
        assert len(answer) == len(frame)
        assert all(abs(sum(row["probabilities"].values()) - 1) < 1e-6 for row in answer)
        return
    assert code == ErrorCode.Name(INVALID_PARAMETER_VALUE)


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


def small_dicoms() -> Iterator[bytes]:
    """One frame and two, uncompressed and compressed."""
    for number_of_frames in (None, 2):
        for syntax in (ExplicitVRLittleEndian, *ENCODERS):
            yield small_dicom(number_of_frames, syntax)


ENCODERS: dict[str, Callable[[np.ndarray], bytes]] = {
    JPEGLSLossless: imagecodecs.jpegls_encode,
    JPEG2000Lossless: lambda frame: imagecodecs.jpeg2k_encode(frame, codecformat="j2k", reversible=True),
    JPEGLosslessSV1: imagecodecs.ljpeg_encode,
}
"""Encoder of a frame, by transfer syntax."""


def small_dicom(number_of_frames: int | None, syntax: str = ExplicitVRLittleEndian) -> bytes:
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
    if syntax in ENCODERS:
        frames = np.frombuffer(dataset.PixelData, dtype="<u2").reshape(-1, 6, 8)
        dataset.PixelData = encapsulate([ENCODERS[syntax](frame) for frame in frames])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax
    file = io.BytesIO()
    dataset.preamble = bytes(128)
    dataset.save_as(file, enforce_file_format=False)
    return file.getvalue()


def small_niftis() -> Iterator[bytes]:
    """Volumes of 5 x 4 x 3 voxels, with and without time, as integers and as floating point."""
    for dtype, shape in (("int16", (5, 4, 3)), ("uint8", (5, 4, 3, 2)), ("float32", (5, 4, 3)), ("uint16", (5, 4, 3))):
        image = nibabel.Nifti1Image(np.arange(np.prod(shape)).reshape(shape).astype(dtype), np.diag([-1, 2, 3, 1]))
        yield image.to_bytes()


def small_tables() -> Iterator[bytes]:
    """A table of two images as CSV and as Parquet, and other features of CSV files."""
    rows = {"file": ["a.png", "b.png"], "finding": ["healthy", "ill"], "patient": ["1", "2"]}
    table = pd.DataFrame(rows | {"split": ["train", "test"], "sex": ["", "f"]})
    text = table.to_csv(index=False)
    yield text.encode()
    yield text.encode("utf-16")
    yield b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()
    yield text.replace("a.png", '"../a.png"').encode()
    yield text.replace("healthy", '"heal\nthy"').replace(",1,", ',"=1+1",').encode()
    table.to_parquet(file := io.BytesIO())
    yield file.getvalue()


def small_requests() -> Iterator[bytes]:
    """Requests with image files, with pixels, and with both."""
    image = base64.b64encode(saved(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3, "PNG")).decode()
    pixels = (np.arange(1024).reshape(32, 32) // 32 / 32).tolist()
    for columns, rows in (
        (["image"], [[image], [image]]),
        (["image"], [[base64.b64encode(small_dicom(None)).decode()]]),
        (["pixels"], [[pixels], [pixels]]),
        (["pixels"], [[[pixels]]]),
        (["image", "pixels"], [[image, pixels]]),
        (["pixels"], [[[[1e400, -1, None], ["a", {}, []]]]]),
    ):
        yield json.dumps({"dataframe_split": {"columns": columns, "data": rows}}).encode()


def small_params() -> Iterator[bytes]:
    """The params.yaml of the repository, parts of 10 lines of it, and other features of YAML."""
    text = (ROOT / "params.yaml").read_bytes()
    yield text
    yield from (b"".join(part) for part in zip(*[iter(text.splitlines(keepends=True))] * 10, strict=False))
    yield b"a: &a [x, x]\nb: [*a, *a]\n<<: {c: !!binary aGVsbG8=}\n"
    yield b"seed: 2020-01-01\nx: !!set {a}\n? [1, 2]\n: !!python/name:os.system\n"
    yield b'%YAML 1.1\n---\nseed: 0x1F\nt: "\\u0041"\nn: .nan\ni: -.inf\nf: 1_0e3\n...\n'


TARGETS = {
    "images": Target(read_images, small_images, 4096),
    "dicom": Target(read_several, small_dicoms, 4096),
    "nifti": Target(read_volume, small_niftis, 4096, ".nii"),
    "params": Target(read_params, small_params, 16_384),
    "table": Target(read_image_table, small_tables, 8192),
    "request": Target(read_request, small_requests, 16_384),
}


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
    path = folder / f"input{target.suffix}"
    path.write_bytes(content)
    # readers keep the last file by its time, and the clock of a file system is coarse
    os.utime(path, ns=(time.time_ns(), time.time_ns()))
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
