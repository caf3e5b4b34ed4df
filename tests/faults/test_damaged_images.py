"""Two hundred valid and damaged files as input of the steps ``acquire`` and ``validate``, and of a pool."""

import ast
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.acquire import acquire
from tasks.core.workspace import Workspace
from tasks.dataset.folder import printable
from tasks.dataset.images import ImageError, read_image, resize
from tasks.dataset.readers import SUFFIXES
from tasks.labelling.human import pool_files, read_pool
from tasks.tracking import Tracker
from tasks.validate import ValidationFailed, validate
from tests.conftest import ROOT
from tests.faults.mutants import N_MUTANTS, Mutant, flipped, mutants, picture, saved, write

CLASSES = ("non-COVID", "COVID")


def read_grey(path: Path, max_megapixels: float = math.inf) -> np.ndarray:
    """Grey levels of an image file, uint8 ``(H, W)``."""
    return read_image(path, max_megapixels).pixels


@pytest.fixture(scope="module")
def files() -> list[Mutant]:
    return mutants()


@pytest.fixture
def source(files: list[Mutant], tmp_path: Path) -> Path:
    """A folder with two classes, each with about half of the files."""
    (tmp_path / "secret.png").write_bytes(saved(picture(0), "PNG"))
    for mutant in files:
        write(mutant, tmp_path / "scans" / class_of(mutant))
    if not {"Twin.png", "twin.png"} <= {path.name for path in (tmp_path / "scans" / "COVID").iterdir()}:
        pytest.skip("this file system ignores case")
    return tmp_path / "scans"


def class_of(mutant: Mutant) -> str:
    """Pseudo-random class of a file. Files that are compared with each other have the same class."""
    related = mutant.name in ("L.png", "linked within.png") or "twin" in mutant.name.lower() or "caf" in mutant.name
    number = hashlib.md5(mutant.name.encode("utf-8", "surrogateescape")).digest()[0]
    return CLASSES[1 if related else number % 2]


def printed_path(mutant: Mutant) -> str:
    return printable(Path("scans") / class_of(mutant) / mutant.name, Path("scans"))


def test_each_file_is_decoded_correctly_or_rejected_with_its_reason(
    source: Path, files: list[Mutant], tmp_path: Path, params_with: Any
) -> None:
    assert len({printed_path(mutant) for mutant in files}) == N_MUTANTS
    params = params_with(
        {
            "acquire.source": "folder",
            "acquire.folder": str(source),
            "validate.max_megapixels": 1,
            "validate.min_side": 32,
        }
    )
    workspace = Workspace(tmp_path)
    for folder in (workspace.acquire, workspace.validate):
        folder.mkdir(parents=True)
    acquire(workspace, params, Tracker())
    with pytest.raises(ValidationFailed) as raised:
        validate(workspace, params, Tracker())

    validation = json.loads(workspace.validation.read_text(encoding="utf-8"))
    rejected = {entry["path"]: entry["reason"] for entry in validation["unreadable"]}
    table = pd.read_parquet(workspace.manifest).set_index("path")
    assert not set(rejected) & set(table.index)
    assert set(rejected) | set(table.index) == {printed_path(mutant) for mutant in files}
    for mutant in files:
        name = printed_path(mutant)
        if mutant.pixels is None:
            assert re.search(mutant.reason, rejected[name]), f"{name}: {rejected[name]}"
            continue
        assert (table.loc[name, "class"], CLASSES[table.loc[name, "label"]]) == (class_of(mutant), class_of(mutant))
        difference = read_grey(workspace.images / name).astype(int) - mutant.pixels
        assert abs(difference).max() <= mutant.tolerance, name
        if not mutant.tolerance:
            shape = f"{mutant.pixels.shape[0]} {mutant.pixels.shape[1]} ".encode()
            assert table.loc[name, "sha256"] == hashlib.sha256(shape + mutant.pixels.tobytes()).hexdigest()
    assert f"decodes (Every image decodes): observed {len(table)} of {N_MUTANTS}" in str(raised.value)
    assert f"and {len(rejected) - 20} more rejected files" in str(raised.value)


def test_reading_a_pool_lists_all_unreadable_images_and_reads_the_rest(source: Path, files: list[Mutant]) -> None:
    pool = source / "COVID"
    in_pool = [mutant for mutant in files if class_of(mutant) == "COVID"]
    # a pool ignores files with other extensions
    images = [mutant for mutant in in_pool if mutant.name.lower().endswith(SUFFIXES) or mutant.name == "to a folder"]
    with pytest.raises(ValueError, match="images of the pool cannot be read") as raised:
        read_pool(pool, pool_files(pool), (32, 32), 1)
    unreadable = [mutant for mutant in images if mutant.pixels is None]
    lines = str(raised.value).splitlines()
    assert lines[0].startswith(f"images of the pool cannot be read: {len(unreadable)} of {len(images)}")
    assert len(lines) == len(unreadable) + 1
    for mutant in unreadable:
        name = str(pool / printable(pool / mutant.name, pool))
        line = next(line for line in lines if line.startswith(f"  {name}: "))
        assert re.search(mutant.reason, line)
        (pool / mutant.name).unlink()
    names = pool_files(pool)
    pixels = read_pool(pool, names, (32, 32), 1)
    for mutant in images:
        if mutant.pixels is not None:
            difference = pixels[names.index(mutant.name), 0].astype(int) - resize(mutant.pixels.copy(), (32, 32))[0]
            assert abs(difference).max() <= mutant.tolerance


def test_this_project_does_not_unpack_archives() -> None:
    unpacking = {"extract", "extractall", "unpack_archive"}
    called = {
        (path.name, node.func.attr)
        for folder in ("tasks", "flows")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert ("kaggle.py", "dataset_download") in called, "the search finds calls of methods"
    assert {(name, call) for name, call in called if call in unpacking} == set()


def test_flipping_a_bit_of_a_png_never_changes_the_pixels_that_are_read(tmp_path: Path) -> None:
    pixels = picture(5)[:8, :8]
    content, n_read = saved(pixels, "PNG"), 0
    for bit in range(8 * len(content)):
        (tmp_path / "a.png").write_bytes(flipped(content, bit))
        try:
            np.testing.assert_array_equal(read_grey(tmp_path / "a.png", 1), pixels)
            n_read += 1
        except ImageError:
            pass
    # only flips in the last chunk are not detected: its length and checksum, 8 bytes, have no effect on the pixels
    assert n_read == 8 * 8


SCAN = re.compile(rb"\xff\xda\x00\x08.{6}((?:[^\xff]|\xff[\x00\xd0-\xd7])*)", re.DOTALL)
"""A scan of a grey JPEG: marker, header and data."""


@pytest.mark.parametrize(
    ("options", "n_scans"),
    [({}, 1), ({"restart_marker_blocks": 5}, 1), ({"progressive": True}, 6)],
    ids=["baseline", "restarts", "progressive"],
)
def test_jpeg_with_a_scan_that_ends_early_is_rejected(options: dict[str, Any], n_scans: int, tmp_path: Path) -> None:
    content = saved(picture(3), "JPEG", quality=90, **options)
    (tmp_path / "a.jpg").write_bytes(content)
    assert abs(read_grey(tmp_path / "a.jpg", 1).astype(int) - picture(3)).max() <= 6
    scans = list(SCAN.finditer(content))
    assert len(scans) == n_scans
    for scan in scans:
        for kept in (0.25, 0.5, 0.75, 0.9):
            cut = content[: scan.start(1) + int(kept * len(scan[1]))] + content[scan.end() :]
            (tmp_path / "a.jpg").write_bytes(cut)
            with pytest.raises(ImageError, match="the data of a scan end early"):
                read_grey(tmp_path / "a.jpg", 1)
        for restart in re.finditer(rb"\xff[\xd0-\xd7]", scan[1]):
            before = scan.start(1) + restart.start()
            (tmp_path / "a.jpg").write_bytes(content[: before - 6] + content[before:])
            with pytest.raises(ImageError, match="the data of a scan end early"):
                read_grey(tmp_path / "a.jpg", 1)


def test_jpeg_with_too_many_scans_is_rejected(tmp_path: Path) -> None:
    content = saved(picture(3), "JPEG", progressive=True)
    last = list(SCAN.finditer(content))[-1]
    (tmp_path / "a.jpg").write_bytes(content[: last.end()] + 200 * last[0] + content[last.end() :])
    with pytest.raises(ImageError, match="too many scans in the JPEG: 206"):
        read_grey(tmp_path / "a.jpg", 1)


def test_flipping_a_bit_of_a_bmp_gives_another_image_because_bmp_has_no_checksum(tmp_path: Path) -> None:
    pixels = picture(5)
    content = saved(pixels, "BMP")
    (tmp_path / "a.bmp").write_bytes(flipped(content, 8 * (len(content) - 1)))
    expected = pixels.copy()
    expected[0, -1] ^= 1
    np.testing.assert_array_equal(read_grey(tmp_path / "a.bmp", 1), expected)
