import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.core.workspace import Workspace
from tasks.dataset.prepared import Prepared
from tasks.records.adversarial_images import as_kept, kept_path, load_kept, merge_perturbations, save_perturbations


def prepared(seed: int = 0) -> Prepared:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
    pixels[0, 0, 0] = [0, 255] * 4
    table = pd.DataFrame({"label": [0, 1] * 3, "split": ["test"] * 6})
    return Prepared(pixels, table, ("a", "b"), 1, (0.0, 1.0), True)


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for target in ("undefended", "autoencoder"):
        Workspace().perturbations(target).mkdir(parents=True)


def attacked(data: Prepared, seed: int, size: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of three images, these images, and the same with noise of at most this size."""
    rows = np.array([0, 2, 5])
    images = data.floats(rows)
    noise = np.random.default_rng(seed).uniform(-size, size, images.shape).astype(np.float32)
    return rows, images, np.clip(images + noise, 0, 1)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.floats(1e-4, 1))
def test_kept_images_are_off_by_at_most_one_in_254_of_the_largest_change(seed: int, size: float) -> None:
    data = prepared(seed)
    rows, images, adversarial = attacked(data, seed, size)
    save_perturbations(
        kept_path(Workspace(), "undefended", "pgd", 0.25), as_kept(data, rows, images, adversarial, "linf")
    )
    loaded = load_kept(Workspace(), data, "undefended", "pgd", 0.25)
    assert loaded.rows.tolist() == rows.tolist()
    kept = loaded.images()
    assert (loaded.images(slice(1, 3)) == kept[1:3]).all()
    assert kept.dtype == np.float32
    assert kept.min() >= 0
    assert kept.max() <= 1
    largest = np.abs(adversarial - images).max(axis=(1, 2, 3), keepdims=True)
    assert (np.abs(kept - adversarial) <= largest / 254 + 1e-6).all()
    assert (np.abs(kept - images) <= largest + 1e-6).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.floats(1e-2, 1))
def test_kept_images_are_no_further_from_the_originals_in_l2_either(seed: int, size: float) -> None:
    data = prepared(seed)
    rows, images, adversarial = attacked(data, seed, size)
    kept = as_kept(data, rows, images, adversarial, "l2").images()
    exact, rounded = (np.linalg.norm((each - images).reshape(3, -1), axis=1) for each in (adversarial, kept))
    assert (rounded <= exact * (1 + 1e-5)).all()
    assert (rounded >= exact * 0.99).all()


def test_an_image_that_was_not_changed_stays_as_it_was() -> None:
    data = prepared()
    rows = np.array([1, 3])
    images = data.floats(rows)
    save_perturbations(
        kept_path(Workspace(), "autoencoder", "fgsm", 2), as_kept(data, rows, images, images.copy(), "linf")
    )
    assert (load_kept(Workspace(), data, "autoencoder", "fgsm", 2).images() == images).all()


def test_a_pixel_takes_a_byte_at_most_and_equal_images_give_equal_bytes() -> None:
    data = prepared()
    images = data.floats(np.arange(6))
    adversarial = np.clip(images + np.float32(0.01), 0, 1)
    for name in ("first", "second"):
        save_perturbations(Path(f"{name}.npz"), as_kept(data, np.arange(6), images, adversarial, "linf"))
    assert Path("first.npz").read_bytes() == Path("second.npz").read_bytes()
    with np.load("first.npz") as kept:
        assert kept["q"].dtype == np.int8


def test_merged_parts_hold_what_the_parts_held_in_their_order() -> None:
    data = prepared()
    rows = np.arange(6)
    images = data.floats(rows)
    adversarial = np.clip(images + np.random.default_rng(1).normal(0, 0.02, images.shape).astype(np.float32), 0, 1)
    save_perturbations(Path("whole.npz"), as_kept(data, rows, images, adversarial, "linf"))
    parts = []
    for number, batch in enumerate([rows[:4], rows[4:]]):
        parts.append(Path(f"part{number}.npz"))
        save_perturbations(parts[-1], as_kept(data, batch, images[batch], adversarial[batch], "linf"))
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
    with pytest.raises(FileNotFoundError, match=r"attack/.*/pgd-eps4.npz not found: add 4 to attack.keep_eps"):
        load_kept(Workspace(), prepared(), "undefended", "pgd", 4.0)
