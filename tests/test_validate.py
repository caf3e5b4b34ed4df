"""Step ``validate`` on real files."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tasks.core.workspace import Workspace
from tasks.dataset.phantom import write_phantoms
from tasks.params import Params
from tasks.tracking import Tracker, digest_of
from tasks.validate import ValidationFailed, validate


class RecordingTracker(Tracker):
    """Keeps the logged metrics."""

    def __init__(self) -> None:
        self.logged: dict[str, float] = {}

    def metrics(self, values: Any, step: int = 0) -> None:
        self.logged.update(values)


@pytest.fixture
def params(params_with: Any) -> Params:
    params: Params = params_with({"validate.min_images_per_class": 4, "validate.max_megapixels": 1})
    return params


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, ("non-COVID", "COVID"), "COVID", n_patients=4, n_slices=2, seed=0)
    return folder


@pytest.fixture
def workspace(phantoms: Path, tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path)
    shutil.copytree(phantoms, workspace.images)
    workspace.validate.mkdir()
    return workspace


def test_data_set_without_faults_passes(workspace: Workspace, params: Params, caplog: pytest.LogCaptureFixture) -> None:
    before = digest_of(workspace.images)
    tracker = RecordingTracker()
    with caplog.at_level("INFO"):
        validate(workspace, params, tracker)
    manifest = pd.read_parquet(workspace.manifest)
    assert len(manifest) == 8
    assert manifest["path"].str.startswith(("non-COVID/patient_", "COVID/patient_")).all()
    assert manifest["group"].nunique() <= 4, "slices of one patient are in one group"
    validation = json.loads(workspace.validation.read_text())
    assert validation["success"] is True
    assert set(validation["expectations"][0]) == {
        *("name", "description", "severity", "success", "observed", "allowed", "n_unexpected", "examples", "unexpected")
    }
    n_met = sum(result["success"] for result in validation["expectations"])
    assert f"{n_met} of {len(validation['expectations'])} expectations are met" in caplog.text
    assert (workspace.data_docs / "index.html").is_file()
    assert (tracker.logged["data/n_images"], tracker.logged["data/n_failed_errors"]) == (8, 0)
    assert digest_of(workspace.images) == before, "raw images are not changed"


def test_error_lists_all_faulty_files_after_the_outputs_are_written(workspace: Workspace, params: Params) -> None:
    folder = workspace.images / "COVID"
    good = next(folder.glob("*.png"))
    (folder / "zero.png").touch()
    (folder / "text.png").write_text("not an image")
    (folder / "half [1] 50%.png").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    Image.new("1", (2000, 1000)).save(folder / "bomb.png")
    shutil.copyfile(good, workspace.images / "non-COVID" / "снимок.png")
    before = digest_of(workspace.images)

    with pytest.raises(ValidationFailed, match="expectations failed") as raised:
        validate(workspace, params, Tracker())

    message = str(raised.value)
    assert "decodes (Every image decodes): observed 9 of 13" in message
    assert "pixels_in_one_class" in message
    assert "non-COVID/снимок.png" in message
    for line in (
        "COVID/zero.png: the file is empty",
        "COVID/text.png: the content is none of PNG, JPEG, BMP, TIFF",
        "COVID/half [1] 50%.png: the file cannot be decoded",
        "COVID/bomb.png: 2000 x 1000 pixels are more than validate.max_megapixels 1 allows",
    ):
        assert line in message
    assert len(pd.read_parquet(workspace.manifest)) == 9
    validation = json.loads(workspace.validation.read_text())
    assert validation["success"] is False
    assert len(validation["unreadable"]) == 4
    assert (workspace.data_docs / "index.html").is_file()
    assert digest_of(workspace.images) == before


def test_rejected_files_of_acquire_fail_the_step(workspace: Workspace, params: Params) -> None:
    workspace.rejected.write_text(json.dumps({"COVID/note.txt": "not an image by its name"}))
    with pytest.raises(ValidationFailed, match=r"COVID/note\.txt: not an image by its name"):
        validate(workspace, params, Tracker())


def test_warnings_are_logged_and_do_not_stop_the_step(
    workspace: Workspace, params: Params, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = np.random.default_rng(0).choice(np.array([0, 255], dtype=np.uint8), (200, 200))
    Image.fromarray(pixels).save(workspace.images / "COVID" / "noise.png")
    validate(workspace, params, Tracker())
    assert "failed expectation: not_saturated" in caplog.text
    assert "COVID/noise.png" in caplog.text
    assert json.loads(workspace.validation.read_text())["success"] is True


def test_second_run_gives_equal_bytes(workspace: Workspace, params: Params) -> None:
    digests = []
    for _ in range(2):
        shutil.rmtree(workspace.validate)
        workspace.validate.mkdir()
        validate(workspace, params, Tracker())
        digests.append(digest_of(workspace.validate))
    assert digests[0] == digests[1]
