"""The manifest, near-duplicates and inferred groups."""

from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tasks.dataset.manifest import (
    COLUMNS,
    Manifest,
    build_manifest,
    connected_component_ids,
    correlated_pairs,
    natural_key,
    thumbnail,
)

RNG = np.random.default_rng(0)


def picture(seed: int, side: int = 64) -> np.ndarray:
    """A smooth random image; images of two seeds have a low correlation."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def save(folder: Path, images: dict[str, np.ndarray]) -> None:
    for name, pixels in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)


def manifest_of(folder: Path, near: float = 0.97, same_group: float = 0.6) -> Manifest:
    return build_manifest(folder, ("a", "b"), 1, near, same_group)


def groups(table: pd.DataFrame, column: str) -> set[frozenset[str]]:
    return {frozenset(paths) for _, paths in table.groupby(column)["path"]}


def test_rows_describe_the_files(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40), dtype=np.uint8)
    pixels[:, 20:] = 255
    save(tmp_path, {"b/x.png": pixels, "a/y.tif": picture(0)})
    table = manifest_of(tmp_path).table
    assert tuple(table.columns) == COLUMNS
    row = table.set_index("path").loc["b/x.png"]
    assert (row["class"], row["label"], row["width"], row["height"]) == ("b", 1, 40, 20)
    assert (row["mode"], row["format"], row["file_size"]) == ("L", "PNG", (tmp_path / "b/x.png").stat().st_size)
    assert (row["mean"], row["std"], row["saturated_fraction"]) == (0.5, 0.5, 1.0)


def test_rows_are_sorted_by_class_and_natural_order(tmp_path: Path) -> None:
    save(tmp_path, {name: picture(0) for name in ("b/1.png", "a/Slice (10).png", "a/slice (9).png", "a/deep/1.png")})
    paths = manifest_of(tmp_path).table["path"].tolist()
    assert paths == ["a/deep/1.png", "a/slice (9).png", "a/Slice (10).png", "b/1.png"]


def test_hash_depends_on_the_pixels_and_not_on_the_file_format(tmp_path: Path) -> None:
    save(tmp_path, {"a/1.png": picture(0), "a/2.bmp": picture(0), "b/3.png": picture(1)})
    Image.fromarray(picture(0)).convert("RGBA").save(tmp_path / "b/4.png")
    hashes = manifest_of(tmp_path).table.set_index("path")["sha256"]
    assert hashes["a/1.png"] == hashes["a/2.bmp"] == hashes["b/4.png"] != hashes["b/3.png"]


def test_images_of_different_shapes_have_different_hashes(tmp_path: Path) -> None:
    save(tmp_path, {"a/wide.png": np.full((10, 20), 7, np.uint8), "b/high.png": np.full((20, 10), 7, np.uint8)})
    assert manifest_of(tmp_path).table["sha256"].nunique() == 2


def test_unreadable_images_are_listed_with_their_reasons(tmp_path: Path) -> None:
    save(tmp_path, {"a/good.png": picture(0)})
    (tmp_path / "a/empty.png").touch()
    (tmp_path / "a/text.png").write_text("not an image")
    manifest = manifest_of(tmp_path)
    assert manifest.table["path"].tolist() == ["a/good.png"]
    assert manifest.unreadable == {
        "a/empty.png": "the file is empty. Copy or save the file again.",
        "a/text.png": "the content is none of PNG, JPEG, BMP, TIFF, DICOM, NIfTI. Convert the file to one of these "
        "formats.",
    }


def test_table_is_empty_without_readable_images(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/empty.png").touch()
    manifest = manifest_of(tmp_path)
    assert manifest.table.empty
    assert tuple(manifest.table.columns) == COLUMNS


def test_near_duplicates_can_differ_in_class_size_and_window(tmp_path: Path) -> None:
    darker = (picture(0) * 0.6 + 20).astype(np.uint8)
    save(tmp_path, {"a/1.png": picture(0), "a/2.png": picture(1), "b/1.png": darker, "b/2.png": picture(0, side=100)})
    table = manifest_of(tmp_path).table
    assert groups(table, "near_duplicate_group") == {
        frozenset({"a/1.png", "b/1.png", "b/2.png"}),
        frozenset({"a/2.png"}),
    }


def test_equal_blank_images_are_near_duplicates(tmp_path: Path) -> None:
    blank = np.zeros((64, 64), dtype=np.uint8)
    save(tmp_path, {"a/1.png": blank, "a/2.png": picture(0), "b/1.png": blank})
    assert groups(manifest_of(tmp_path).table, "near_duplicate_group") == {
        frozenset({"a/1.png", "b/1.png"}),
        frozenset({"a/2.png"}),
    }


def blend(weight: float) -> np.ndarray:
    """Blend of two images, from the first (0) to the second (1)."""
    return ((1 - weight) * picture(0) + weight * picture(1)).astype(np.uint8)


def test_chain_of_similar_consecutive_files_is_one_group(tmp_path: Path) -> None:
    # consecutive images are similar, the first and the last are not; then comes another patient
    chain = {f"a/{number}.png": blend(number / 8) for number in range(9)}
    save(tmp_path, {**chain, "a/20.png": picture(2), "b/1.png": picture(3)})
    table = manifest_of(tmp_path).table
    assert float(thumbnail(blend(0)) @ thumbnail(blend(1))) < 0.6
    assert groups(table, "group") == {frozenset(chain), frozenset({"a/20.png"}), frozenset({"b/1.png"})}


def test_similar_files_in_different_folders_are_different_groups(tmp_path: Path) -> None:
    similar = (0.7 * picture(0) + 0.3 * picture(1)).astype(np.uint8)
    save(tmp_path, {"a/p1/1.png": picture(0), "a/p2/1.png": similar, "b/1.png": picture(5)})
    assert float(thumbnail(picture(0)) @ thumbnail(similar)) > 0.6
    assert manifest_of(tmp_path).table["group"].nunique() == 3


def test_near_duplicate_connects_files_that_are_not_consecutive(tmp_path: Path) -> None:
    save(tmp_path, {"a/1.png": picture(0), "a/2.png": picture(1), "a/3.png": picture(0), "b/1.png": picture(2)})
    assert groups(manifest_of(tmp_path).table, "group") == {
        frozenset({"a/1.png", "a/3.png"}),
        frozenset({"a/2.png"}),
        frozenset({"b/1.png"}),
    }


@pytest.mark.parametrize("block", [1, 3, 100])
def test_correlated_pairs_do_not_depend_on_the_block_size(block: int) -> None:
    vectors = RNG.standard_normal((20, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = np.argwhere(np.triu(vectors @ vectors.T >= 0.5, 1))
    found = correlated_pairs(vectors, 0.5, block)
    assert len(expected) > 0
    assert sorted(map(tuple, found)) == sorted(map(tuple, expected))


def test_components_are_numbered_by_first_appearance() -> None:
    np.testing.assert_array_equal(connected_component_ids(6, np.array([[4, 1], [5, 0], [1, 2]])), [0, 1, 1, 2, 1, 0])
    np.testing.assert_array_equal(connected_component_ids(3, np.empty((0, 2), dtype=int)), [0, 1, 2])


@given(st.lists(st.text("a1٣²é ", max_size=6), max_size=8), st.randoms())
def test_natural_order_does_not_depend_on_the_input_order(names: list[str], random: Random) -> None:
    shuffled = random.sample(names, len(names))
    assert sorted(names, key=natural_key) == sorted(shuffled, key=natural_key)


@pytest.mark.parametrize(("first", "second"), [("2.png", "10.png"), ("a 9", "A 10"), ("x1y9", "x1y10"), ("01", "1")])
def test_numbers_in_names_are_compared_as_numbers(first: str, second: str) -> None:
    assert natural_key(first) < natural_key(second)
