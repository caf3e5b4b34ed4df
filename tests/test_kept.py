import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import paths
from tasks.attacks.kept import kept_path, load_kept, merge_perturbations, save_perturbations
from tasks.dataset.prepared import Prepared


def prepared(seed: int = 0) -> Prepared:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
    pixels[0, 0, 0] = [0, 255] * 4
    table = pd.DataFrame({"label": [0, 1] * 3, "split": ["test"] * 6})
    return Prepared(pixels, table, ("a", "b"), 1, (0.0, 1.0), True)


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths.PERTURBATIONS.mkdir(parents=True)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.floats(1e-4, 1))
def test_kept_images_are_off_by_at_most_one_in_254_of_the_largest_change(seed: int, size: float) -> None:
    data = prepared(seed)
    rows = np.array([0, 2, 5])
    images = data.floats(rows)
    noise = np.random.default_rng(seed).uniform(-size, size, images.shape).astype(np.float32)
    adversarial = np.clip(images + noise, 0, 1)
    save_perturbations(kept_path("undefended", "pgd", 0.25), rows, images, adversarial)
    loaded = load_kept(data, "undefended", "pgd", 0.25)
    assert loaded.rows.tolist() == rows.tolist()
    kept = loaded.images()
    assert (loaded.images(slice(1, 3)) == kept[1:3]).all()
    assert kept.dtype == np.float32
    assert kept.min() >= 0
    assert kept.max() <= 1
    largest = np.abs(adversarial - images).max(axis=(1, 2, 3), keepdims=True)
    assert (np.abs(kept - adversarial) <= largest / 254 + 1e-6).all()
    assert (np.abs(kept - images) <= largest + 1e-6).all()


def test_an_image_that_was_not_changed_stays_as_it_was() -> None:
    data = prepared()
    rows = np.array([1, 3])
    images = data.floats(rows)
    save_perturbations(kept_path("autoencoder", "fgsm", 2), rows, images, images.copy())
    assert (load_kept(data, "autoencoder", "fgsm", 2).images() == images).all()


def test_a_pixel_takes_a_byte_at_most_and_equal_images_give_equal_bytes() -> None:
    data = prepared()
    images = data.floats(np.arange(6))
    adversarial = np.clip(images + np.float32(0.01), 0, 1)
    for name in ("first", "second"):
        save_perturbations(Path(f"{name}.npz"), np.arange(6), images, adversarial)
    assert Path("first.npz").read_bytes() == Path("second.npz").read_bytes()
    with np.load("first.npz") as kept:
        assert kept["q"].dtype == np.int8


def test_merged_parts_hold_what_the_parts_held_in_their_order() -> None:
    data = prepared()
    rows = np.arange(6)
    images = data.floats(rows)
    adversarial = np.clip(images + np.random.default_rng(1).normal(0, 0.02, images.shape).astype(np.float32), 0, 1)
    save_perturbations(Path("whole.npz"), rows, images, adversarial)
    parts = []
    for number, batch in enumerate([rows[:4], rows[4:]]):
        parts.append(Path(f"part{number}.npz"))
        save_perturbations(parts[-1], batch, images[batch], adversarial[batch])
    for name in ("first.npz", "second.npz"):
        merge_perturbations(parts, Path(name))
    assert Path("first.npz").read_bytes() == Path("second.npz").read_bytes()
    with zipfile.ZipFile("first.npz") as merged_file:
        assert {entry.compress_type for entry in merged_file.infolist()} == {zipfile.ZIP_DEFLATED}
    with np.load("whole.npz") as whole, np.load("first.npz") as merged:
        assert sorted(merged) == sorted(whole) == ["q", "rows", "scale"]
        for name in whole:
            assert merged[name].dtype == whole[name].dtype
            assert (merged[name] == whole[name]).all()


def test_images_that_were_not_kept_name_the_parameter() -> None:
    with pytest.raises(FileNotFoundError, match=r"undefended-pgd-eps4.npz not found: add 4 to attack.keep_eps"):
        load_kept(prepared(), "undefended", "pgd", 4.0)
