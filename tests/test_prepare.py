"""Step ``prepare``, and the prepared data set that later steps read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tasks.core.workspace import Workspace
from tasks.dataset.manifest import build_manifest
from tasks.dataset.prepared import SPLITS, load_prepared
from tasks.params import Params
from tasks.prepare import prepare
from tasks.tracking import Tracker, digest_of

CLASSES = ("non-COVID", "COVID")
N_PATIENTS, N_SLICES = 30, 3


def scan(patient: int, slice_: int) -> np.ndarray:
    """A smooth image that depends on the patient and changes a little from slice to slice."""
    rng = np.random.default_rng([patient])
    coarse = rng.uniform(30, 220, (8, 8)) + slice_ * rng.uniform(-30, 30, (8, 8)) / N_SLICES
    size = (60 + patient, 50)
    return np.asarray(Image.fromarray(coarse.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("images")
    for patient in range(N_PATIENTS):
        for slice_ in range(N_SLICES):
            file = folder / CLASSES[patient % 2] / f"{patient} [{slice_}] 5%.png"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(scan(patient, slice_)).save(file)
    return folder, build_manifest(folder, CLASSES, 1, 0.97, 0.8).table


@pytest.fixture
def workspace(manifest: tuple[Path, pd.DataFrame], tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path)
    folder, table = manifest
    for step in (workspace.acquire, workspace.validate, workspace.prepare):
        step.mkdir(parents=True)
    workspace.images.symlink_to(folder)
    table.to_parquet(workspace.manifest, index=False)
    workspace.source.write_text(json.dumps({"source": "folder", "name": "scans", "is_phantom": False, "n_images": {}}))
    return workspace


@pytest.fixture
def params_of(params_with: Any) -> Any:
    def build(strategy: str, **split: float) -> Params:
        params: Params = params_with(
            {
                "prepare.image_size": 32,
                "prepare.split.strategy": strategy,
                "prepare.split.validation_fraction": 0.2,
                **{f"prepare.split.{key}": value for key, value in split.items()},
            }
        )
        return params

    return build


@pytest.mark.parametrize("strategy", ["stratified", "grouped"])
def test_each_image_is_in_one_split_and_rows_follow_the_manifest(
    workspace: Workspace, strategy: str, params_of: Any
) -> None:
    prepare(workspace, params_of(strategy), Tracker())
    data = load_prepared(workspace)
    assert data.table["path"].tolist() == pd.read_parquet(workspace.manifest)["path"].tolist()
    rows = np.concatenate([data.indices(split) for split in SPLITS])
    assert sorted(rows) == list(range(90))
    assert {split: len(data.indices(split)) for split in SPLITS} == {"train": 58, "validation": 14, "test": 18} or (
        strategy == "grouped"
    )
    assert (data.classes, data.positive, data.value_range, data.is_phantom) == (CLASSES, 1, (0.0, 1.0), False)


def test_resizing_is_antialiased(workspace: Workspace, params_of: Any) -> None:
    """A fine checkerboard becomes grey; without antialiasing it would stay black and white."""
    board = (255 * (np.indices((64, 64)).sum(axis=0) % 2)).astype(np.uint8)
    path = pd.read_parquet(workspace.manifest)["path"][4]
    original = workspace.images / path
    content = original.read_bytes()
    try:
        Image.fromarray(board).save(original)
        prepare(workspace, params_of("stratified"), Tracker())
    finally:
        original.write_bytes(content)
    data = load_prepared(workspace)
    assert data.pixels.shape == (90, 1, 32, 32)
    assert data.pixels.dtype == np.uint8
    assert abs(data.pixels[4, 0].astype(int) - 128).max() <= 3
    assert isinstance(data.pixels, np.memmap)


def test_floats_are_grey_levels_divided_by_255(workspace: Workspace, params_of: Any) -> None:
    prepare(workspace, params_of("stratified"), Tracker())
    data = load_prepared(workspace)
    floats = data.floats(np.array([3, 0]))
    assert (floats.dtype, floats.shape) == (np.float32, (2, 1, 32, 32))
    np.testing.assert_allclose(floats, data.pixels[[3, 0]] / 255, rtol=1e-6)
    assert data.labels().tolist() == data.table["label"].tolist()
    assert data.labels(np.array([89, 0])).tolist() == [1, 0]
    assert data.labels().dtype == data.indices("test").dtype == np.int64


def test_stratified_split_reports_its_leakage(workspace: Workspace, params_of: Any) -> None:
    prepare(workspace, params_of("stratified"), Tracker())
    info = json.loads(workspace.dataset_info.read_text())
    assert info["strategy"] == "stratified"
    assert info["leakage"]["group_in_train"] > 0.5
    assert info["n_images"]["test"] == {"non-COVID": 9, "COVID": 9}
    assert sum(sum(counts.values()) for counts in info["n_images"].values()) == info["n"] == 90


def test_grouped_split_does_not_leak(workspace: Workspace, params_of: Any) -> None:
    prepare(workspace, params_of("grouped"), Tracker())
    info = json.loads(workspace.dataset_info.read_text())
    assert info["leakage"] == {"near_duplicate_in_train": 0.0, "group_in_train": 0.0}
    table = pd.read_parquet(workspace.split)
    assert table.groupby("group")["split"].nunique().max() == 1
    assert table.groupby("near_duplicate_group")["split"].nunique().max() == 1
    patients = table["path"].str.extract(r"/(\d+) ")[0]
    assert table.groupby(patients)["split"].nunique().max() == 1


@pytest.mark.parametrize("strategy", ["stratified", "grouped"])
def test_leakage_is_unverified_and_estimated_without_patient_ids(
    workspace: Workspace, strategy: str, params_of: Any
) -> None:
    prepare(workspace, params_of(strategy), Tracker())
    leakage = json.loads(workspace.leakage.read_text())
    assert leakage["outcome"] == "unverified"
    assert leakage["fractions"] == json.loads(workspace.dataset_info.read_text())["leakage"]
    assert leakage["estimate"]["n_images"] == sum(load_prepared(workspace).table["split"] == "test")
    assert 0 <= leakage["estimate"]["low"] <= leakage["estimate"]["value"] <= leakage["estimate"]["high"] <= 1
    # the groups of the manifest have the threshold 0.8
    by_threshold = {row["same_group_correlation"]: row["group_in_train"] for row in leakage["sweep"]}
    assert by_threshold[0.8] == leakage["fractions"]["group_in_train"]


def test_leakage_is_exact_with_patient_ids(workspace: Workspace, params_of: Any) -> None:
    manifest = pd.read_parquet(workspace.manifest)
    patients = manifest["path"].str.extract(r"/(\d+) ")[0]
    manifest.assign(patient=patients).to_parquet(workspace.manifest, index=False)
    prepare(workspace, params_of("stratified"), Tracker())
    table = pd.read_parquet(workspace.split)
    assert table["patient"].tolist() == patients.tolist()
    train, test = (set(patients[table["split"] == split]) for split in ("train", "test"))
    expected = patients[table["split"] == "test"].isin(train).mean()
    leakage = json.loads(workspace.leakage.read_text())
    assert (leakage["outcome"], leakage["fractions"]["patient_in_train"]) == ("exact", expected)
    assert leakage["estimate"]["n_groups"] == len(test)


def test_shortcut_baseline_predicts_every_test_image(workspace: Workspace, params_of: Any) -> None:
    prepare(workspace, params_of("stratified"), Tracker())
    data, predictions = load_prepared(workspace), pd.read_csv(workspace.shortcut_predictions)
    assert predictions["image"].tolist() == data.indices("test").tolist()
    assert predictions["path"].tolist() == data.paths(data.indices("test")).tolist()
    scores = json.loads(workspace.dataset_info.read_text())["shortcut_baseline"]
    assert scores["accuracy"] == predictions["correct"].mean()


def test_impossible_split_is_rejected_before_images_are_read(
    workspace: Workspace, params_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.prepare.read_prepared", lambda *_: pytest.fail("an image was read"))
    message = r"prepare\.split leaves no test image of the class 'non-COVID', which has 45 images"
    with pytest.raises(ValueError, match=message):
        prepare(workspace, params_of("stratified", test_fraction=0.005), Tracker())


def test_second_run_gives_equal_bytes_and_another_seed_gives_another_split(
    workspace: Workspace, params_of: Any
) -> None:
    digests = []
    files = ("split", "pixels", "dataset_info", "leakage", "shortcut_predictions")
    for params in (params_of("grouped"), params_of("grouped"), params_of("grouped").model_copy(update={"seed": 1})):
        prepare(workspace, params, Tracker())
        digests.append([digest_of(getattr(workspace, file)) for file in files])
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[2][0]
    assert digests[0][1] == digests[2][1]


def test_loading_before_the_step_has_run_gives_an_error_with_the_command(workspace: Workspace) -> None:
    with pytest.raises(FileNotFoundError, match=r"pixels\.npy not found\. Run the step prepare first"):
        load_prepared(workspace)
