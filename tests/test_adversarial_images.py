import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.core.workspace import Workspace
from tasks.dataset.prepared import Prepared
from tasks.records.adversarial_images import merge_perturbations, quantize, read_perturbations, save_perturbations


def prepared(seed: int = 0) -> Prepared:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
    pixels[0, 0, 0] = [0, 255] * 4
    table = pd.DataFrame({"label": [0, 1] * 3, "split": ["test"] * 6})
    return Prepared(pixels, table, ("a", "b"), 1, (0.0, 1.0), True)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with empty folders of perturbations."""
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    for target in ("undefended", "autoencoder"):
        workspace.perturbation_file(target, "pgd", 1).parent.mkdir(parents=True)
    return workspace


def attacked(data: Prepared, seed: int, size: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of three images, the images, and the images with noise of at most this size."""
    rows = np.array([0, 2, 5])
    images = data.floats(rows)
    noise = np.random.default_rng(seed).uniform(-size, size, images.shape).astype(np.float32)
    return rows, images, np.clip(images + noise, 0, 1)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), size=st.floats(1e-4, 1))
def test_quantized_pixels_differ_by_at_most_one_254th_of_the_largest_change(
    workspace: Workspace, seed: int, size: float
) -> None:
    data = prepared(seed)
    rows, images, adversarial = attacked(data, seed, size)
    path = workspace.perturbation_file("undefended", "pgd", 0.25)
    save_perturbations(path, quantize(data, rows, images, adversarial, "linf"))
    loaded = read_perturbations(workspace, data, path, 0.25)
    assert loaded.rows.tolist() == rows.tolist()
    quantized = loaded.images()
    assert (loaded.images(slice(1, 3)) == quantized[1:3]).all()
    assert quantized.dtype == np.float32
    assert quantized.min() >= 0
    assert quantized.max() <= 1
    largest = np.abs(adversarial - images).max(axis=(1, 2, 3), keepdims=True)
    assert (np.abs(quantized - adversarial) <= largest / 254 + 1e-6).all()
    assert (np.abs(quantized - images) <= largest + 1e-6).all()


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), size=st.floats(1e-2, 1))
def test_quantization_does_not_raise_the_l2_norm(seed: int, size: float) -> None:
    data = prepared(seed)
    rows, images, adversarial = attacked(data, seed, size)
    quantized = quantize(data, rows, images, adversarial, "l2").images()
    exact, rounded = (np.linalg.norm((each - images).reshape(3, -1), axis=1) for each in (adversarial, quantized))
    assert (rounded <= exact * (1 + 1e-5)).all()
    assert (rounded >= exact * 0.99).all()


def test_an_unchanged_image_stays_unchanged(workspace: Workspace) -> None:
    data = prepared()
    rows = np.array([1, 3])
    images = data.floats(rows)
    path = workspace.perturbation_file("autoencoder", "fgsm", 2)
    save_perturbations(path, quantize(data, rows, images, images.copy(), "linf"))
    assert (read_perturbations(workspace, data, path, 2).images() == images).all()


def test_a_pixel_takes_one_byte_and_equal_images_give_equal_files(tmp_path: Path) -> None:
    data = prepared()
    images = data.floats(np.arange(6))
    adversarial = np.clip(images + np.float32(0.01), 0, 1)
    for name in ("first", "second"):
        save_perturbations(tmp_path / f"{name}.npz", quantize(data, np.arange(6), images, adversarial, "linf"))
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "second.npz").read_bytes()
    with np.load(tmp_path / "first.npz") as stored:
        assert stored["q"].dtype == np.int8


def test_merging_parts_gives_the_arrays_of_all_images_in_the_order_of_the_parts(tmp_path: Path) -> None:
    data = prepared()
    rows = np.arange(6)
    images = data.floats(rows)
    adversarial = np.clip(images + np.random.default_rng(1).normal(0, 0.02, images.shape).astype(np.float32), 0, 1)
    save_perturbations(tmp_path / "whole.npz", quantize(data, rows, images, adversarial, "linf"))
    parts = []
    for number, batch in enumerate([rows[:4], rows[4:]]):
        parts.append(tmp_path / f"part{number}.npz")
        save_perturbations(parts[-1], quantize(data, batch, images[batch], adversarial[batch], "linf"))
    for name in ("first.npz", "second.npz"):
        merge_perturbations(parts, tmp_path / name)
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "second.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "first.npz") as merged_file:
        assert {entry.compress_type for entry in merged_file.infolist()} == {zipfile.ZIP_DEFLATED}
    with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "first.npz") as merged:
        assert sorted(merged) == sorted(whole) == ["q", "rows", "scale"]
        for name in whole:
            assert merged[name].dtype == whole[name].dtype
            assert (merged[name] == whole[name]).all()


def test_the_error_about_missing_perturbations_names_the_parameter(workspace: Workspace) -> None:
    with pytest.raises(FileNotFoundError, match=r"attack/.*/pgd-eps4.npz not found: add 4 to attack.saved_eps"):
        read_perturbations(workspace, prepared(), workspace.perturbation_file("undefended", "pgd", 4.0), 4.0)
