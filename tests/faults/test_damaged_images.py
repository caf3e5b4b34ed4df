"""Two hundred images, sound and damaged, through the steps ``acquire`` and ``validate`` and into a pool."""

import ast
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.acquire import acquire
from tasks.core.workspace import Workspace
from tasks.dataset.folder import printable
from tasks.dataset.images import SUFFIXES, ImageError, as_square, read_grey
from tasks.labelling.human import pool_files, read_pool
from tasks.tracking import Tracker
from tasks.validate import ValidationFailed, validate
from tests.conftest import ROOT
from tests.faults.mutants import N_MUTANTS, Mutant, flipped, mutants, picture, saved, write

CLASSES = ("non-COVID", "COVID")


@pytest.fixture(scope="module")
def found() -> list[Mutant]:
    return mutants()


@pytest.fixture
def source(found: list[Mutant], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two classes with every other mutant each; a link within the folder stays with what it leads to."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.png").write_bytes(saved(picture(0), "PNG"))
    for mutant in found:
        write(mutant, tmp_path / "scans" / class_of(mutant))
    if not {"Twin.png", "twin.png"} <= {path.name for path in (tmp_path / "scans" / "COVID").iterdir()}:
        pytest.skip("this file system ignores case")
    return tmp_path / "scans"


def class_of(mutant: Mutant) -> str:
    related = mutant.name in ("L.png", "linked within.png") or "twin" in mutant.name.lower() or "caf" in mutant.name
    number = hashlib.md5(mutant.name.encode("utf-8", "surrogateescape")).digest()[0]
    return CLASSES[1 if related else number % 2]


def told_as(mutant: Mutant) -> str:
    return printable(Path("scans") / class_of(mutant) / mutant.name, Path("scans"))


def test_each_is_decoded_rightly_under_its_label_or_refused_by_name_and_reason_in_one_report(
    source: Path, found: list[Mutant], params_with: Any
) -> None:
    assert len({told_as(mutant) for mutant in found}) == N_MUTANTS
    params = params_with(
        {"acquire.source": "folder", "acquire.folder": "scans", "validate.max_megapixels": 1, "validate.min_side": 32}
    )
    for folder in (Workspace().acquire, Workspace().validate):
        folder.mkdir(parents=True)
    acquire(Workspace(), params, Tracker())
    with pytest.raises(ValidationFailed) as caught:
        validate(Workspace(), params, Tracker())

    report = json.loads(Workspace().validation.read_text(encoding="utf-8"))
    refused = {entry["path"]: entry["reason"] for entry in report["unreadable"]}
    table = pd.read_parquet(Workspace().manifest).set_index("path")
    assert not set(refused) & set(table.index)
    assert set(refused) | set(table.index) == {told_as(mutant) for mutant in found}
    for mutant in found:
        name = told_as(mutant)
        if mutant.pixels is None:
            assert re.search(mutant.reason, refused[name]), f"{name}: {refused[name]}"
            continue
        assert (table.loc[name, "class"], CLASSES[table.loc[name, "label"]]) == (class_of(mutant), class_of(mutant))
        difference = read_grey(Workspace().images / name).astype(int) - mutant.pixels
        assert abs(difference).max() <= mutant.tolerance, name
        if not mutant.tolerance:
            shape = f"{mutant.pixels.shape[0]} {mutant.pixels.shape[1]} ".encode()
            assert table.loc[name, "sha256"] == hashlib.sha256(shape + mutant.pixels.tobytes()).hexdigest()
    assert f"decodes (Every image decodes): observed {len(table)} of {N_MUTANTS}" in str(caught.value)
    assert f"and {len(refused) - 20} more images that can't be used" in str(caught.value)


def test_a_pool_without_labels_names_all_that_can_not_be_read_and_reads_the_rest(
    source: Path, found: list[Mutant]
) -> None:
    pool = source / "COVID"
    here = [mutant for mutant in found if class_of(mutant) == "COVID"]
    # other files may lie beside the images of a pool
    asked = [mutant for mutant in here if Path(mutant.name).suffix.lower() in SUFFIXES or mutant.name == "to a folder"]
    with pytest.raises(ValueError, match="images can't be read; move them away") as caught:
        read_pool(pool, pool_files(pool), 32, 1)
    refused = [mutant for mutant in asked if mutant.pixels is None]
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{len(refused)} of {len(asked)} images can't be read")
    assert len(lines) == len(refused) + 1
    for mutant in refused:
        name = str(pool / printable(pool / mutant.name, pool))
        line = next(line for line in lines if line.startswith(f"  {name}: "))
        assert re.search(mutant.reason, line)
        (pool / mutant.name).unlink()
    files = pool_files(pool)
    pixels = read_pool(pool, files, 32, 1)
    for mutant in asked:
        if mutant.pixels is not None:
            difference = pixels[files.index(mutant.name), 0].astype(int) - as_square(mutant.pixels.copy(), 32)
            assert abs(difference).max() <= mutant.tolerance


def test_no_code_of_ours_unpacks_an_archive() -> None:
    unpacking = {"extract", "extractall", "unpack_archive"}
    called = {
        (path.name, node.func.attr)
        for folder in ("tasks", "flows")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert ("acquire.py", "dataset_download") in called, "kagglehub's own"
    assert {(name, call) for name, call in called if call in unpacking} == set()


def test_no_bit_of_a_png_that_turns_changes_what_is_read(tmp_path: Path) -> None:
    pixels = picture(5)[:8, :8]
    content, n_read = saved(pixels, "PNG"), 0
    for bit in range(8 * len(content)):
        (tmp_path / "a.png").write_bytes(flipped(content, bit))
        try:
            np.testing.assert_array_equal(read_grey(tmp_path / "a.png", 1), pixels)
            n_read += 1
        except ImageError:
            pass
    # length and checksum of the end, which holds no pixels
    assert n_read == 8 * 8


SCAN = re.compile(rb"\xff\xda\x00\x08.{6}((?:[^\xff]|\xff[\x00\xd0-\xd7])*)", re.DOTALL)
"""Of a grey JPEG: the marker, its header, the data."""


@pytest.mark.parametrize(
    ("options", "n_scans"),
    [({}, 1), ({"restart_marker_blocks": 5}, 1), ({"progressive": True}, 6)],
    ids=["baseline", "restarts", "progressive"],
)
def test_a_jpeg_of_which_any_scan_ends_early_is_refused(options: dict[str, Any], n_scans: int, tmp_path: Path) -> None:
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


def test_a_jpeg_of_hundreds_of_scans_is_refused_before_it_takes_minutes(tmp_path: Path) -> None:
    content = saved(picture(3), "JPEG", progressive=True)
    last = list(SCAN.finditer(content))[-1]
    (tmp_path / "a.jpg").write_bytes(content[: last.end()] + 200 * last[0] + content[last.end() :])
    with pytest.raises(ImageError, match="206 scans are more than any program writes"):
        read_grey(tmp_path / "a.jpg", 1)


def test_a_bit_of_a_bmp_that_turns_is_another_image_since_nothing_in_it_tells(tmp_path: Path) -> None:
    pixels = picture(5)
    content = saved(pixels, "BMP")
    (tmp_path / "a.bmp").write_bytes(flipped(content, 8 * (len(content) - 1)))
    expected = pixels.copy()
    expected[0, -1] ^= 1
    np.testing.assert_array_equal(read_grey(tmp_path / "a.bmp", 1), expected)
