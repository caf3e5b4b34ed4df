"""Step ``validate`` over real files."""

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


class Listener(Tracker):
    """Keeps the metrics."""

    def __init__(self) -> None:
        self.heard: dict[str, float] = {}

    def metrics(self, values: Any, step: int = 0) -> None:
        self.heard.update(values)


@pytest.fixture
def small(params_with: Any) -> Params:
    params: Params = params_with({"validate.min_images_per_class": 4, "validate.max_megapixels": 1})
    return params


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, ("non-COVID", "COVID"), "COVID", n_patients=4, n_slices=2, seed=0)
    return folder


@pytest.fixture(autouse=True)
def workspace(phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(phantoms, Workspace().images)
    Workspace().validate.mkdir()


def test_sound_data_set_is_described_and_passes(small: Params) -> None:
    before = digest_of(Workspace().images)
    tracker = Listener()
    validate(Workspace(), small, tracker)
    manifest = pd.read_parquet(Workspace().manifest)
    assert len(manifest) == 8
    assert manifest["path"].str.startswith(("non-COVID/patient_", "COVID/patient_")).all()
    assert manifest["group"].nunique() <= 4, "slices of one patient are one group"
    result = json.loads(Workspace().validation.read_text())
    assert result["success"] is True
    assert set(result["expectations"][0]) == {
        *("name", "description", "severity", "success", "observed", "allowed", "n_unexpected", "examples")
    }
    assert (Workspace().data_docs / "index.html").is_file()
    assert (tracker.heard["data/n_images"], tracker.heard["data/n_failed_errors"]) == (8, 0)
    assert digest_of(Workspace().images) == before, "raw images are never changed"


def test_all_faulty_files_are_told_after_everything_is_saved(small: Params) -> None:
    folder = Workspace().images / "COVID"
    good = next(folder.glob("*.png"))
    (folder / "zero.png").touch()
    (folder / "text.png").write_text("no image")
    (folder / "half [1] 50%.png").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    Image.new("1", (2000, 1000)).save(folder / "bomb.png")
    shutil.copyfile(good, Workspace().images / "non-COVID" / "снимок.png")
    before = digest_of(Workspace().images)

    with pytest.raises(ValidationFailed, match="expectations failed") as caught:
        validate(Workspace(), small, Tracker())

    message = str(caught.value)
    assert "decodes (Every image decodes): observed 9 of 13" in message
    assert "pixels_in_one_class" in message
    assert "non-COVID/снимок.png" in message
    for line in (
        "COVID/zero.png: the file is empty",
        "COVID/text.png: the content is none of PNG, JPEG, BMP, TIFF",
        "COVID/half [1] 50%.png: can't be decoded",
        "COVID/bomb.png: 2000 x 1000 pixels are more than validate.max_megapixels 1 allows",
    ):
        assert line in message
    assert len(pd.read_parquet(Workspace().manifest)) == 9
    result = json.loads(Workspace().validation.read_text())
    assert result["success"] is False
    assert len(result["unreadable"]) == 4
    assert (Workspace().data_docs / "index.html").is_file()
    assert digest_of(Workspace().images) == before


def test_warnings_are_logged_and_do_not_stop(small: Params, caplog: pytest.LogCaptureFixture) -> None:
    pixels = np.random.default_rng(0).choice(np.array([0, 255], dtype=np.uint8), (200, 200))
    Image.fromarray(pixels).save(Workspace().images / "COVID" / "noise.png")
    validate(Workspace(), small, Tracker())
    assert "suspicious: not_saturated" in caplog.text
    assert "COVID/noise.png" in caplog.text
    assert json.loads(Workspace().validation.read_text())["success"] is True


def test_second_run_gives_equal_bytes(small: Params) -> None:
    digests = []
    for _ in range(2):
        shutil.rmtree(Workspace().validate)
        Workspace().validate.mkdir()
        validate(Workspace(), small, Tracker())
        digests.append(digest_of(Workspace().validate))
    assert digests[0] == digests[1]
