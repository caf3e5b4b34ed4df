"""Classes and files whose names are code: shown as text wherever a page shows them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.flow import failure_page
from tasks.acquire import acquire
from tasks.core.workspace import Workspace
from tasks.params import Params
from tasks.serving.card import card_of
from tasks.tracking import Tracker
from tasks.validate import ValidationFailed, validate
from tests.bundles import complete_workspace, write_results

CLASSES = ["<img src=x onerror=alert(1)>", "<script>alert(2)"]
FILE = "<b onclick=alert(3)> $name & 'more'"
CODE = ("<img src=x", "<script>alert(2)", "<b onclick")


def test_data_docs_show_names_of_files_and_classes_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params_with: Callable[..., Params]
) -> None:
    monkeypatch.chdir(tmp_path)
    drawn = np.random.default_rng(0).integers(0, 256, (6, 70, 80), dtype=np.uint8)
    for name in CLASSES:
        (tmp_path / "scans" / name).mkdir(parents=True)
    for number, pixels in enumerate(drawn):
        Image.fromarray(pixels).save(tmp_path / "scans" / CLASSES[number % 2] / f"{number} {FILE}.png")
    # in both classes, blank, and one that is none
    for name in CLASSES:
        Image.fromarray(np.zeros((70, 80), dtype=np.uint8)).save(tmp_path / "scans" / name / f"blank {FILE}.png")
    (tmp_path / "scans" / CLASSES[0] / f"broken {FILE}.png").write_bytes(b"x")
    params = params_with(
        {
            "acquire.source": "folder",
            "acquire.folder": "scans",
            "acquire.classes": CLASSES,
            "acquire.positive_class": CLASSES[0],
            "validate.min_images_per_class": 100,
        }
    )
    Workspace().acquire.mkdir(parents=True)
    acquire(Workspace(), params, Tracker())
    Workspace().validate.mkdir()
    with pytest.raises(ValidationFailed) as raised:
        validate(Workspace(), params, Tracker())
    pages = [page.read_text(encoding="utf-8") for page in Workspace().data_docs.rglob("*.html")]
    assert not [code for code in CODE for page in pages if code in page]
    for name in CLASSES:
        assert any(name.replace("<", "&lt;").replace(">", "&gt;") in page for page in pages)
    # messages and files that are no pages name them as they are
    assert f"{CLASSES[0]}/broken {FILE}.png" in str(raised.value)
    told = json.loads(Workspace().validation.read_text(encoding="utf-8"))["expectations"]
    examples = {each["name"]: each["examples"] for each in told}
    assert examples["not_blank"] == [f"{name}/blank {FILE}.png" for name in CLASSES]
    assert examples["class_size"] == CLASSES


def test_a_model_card_shows_names_of_classes_and_data_sets_as_text(workspace: Path) -> None:
    params = complete_workspace()
    write_results({"autoencoder": (24, [])})
    info = json.loads(Workspace().dataset_info.read_text(encoding="utf-8"))
    evil = {"classes": [*CLASSES, "c"], "positive_class": CLASSES[1], "name": CLASSES[0]}
    Workspace().dataset_info.write_text(json.dumps(info | evil), encoding="utf-8")
    card, summary = card_of(Workspace(), params, "autoencoder")
    assert not [code for code in CODE for text in (card, summary) if code in text]
    assert "trained on &lt;img src=x onerror=alert(1)&gt;." in summary
    assert "(positive: &lt;script&gt;alert(2))" in card


def test_a_failure_is_told_in_a_block_that_no_name_can_end() -> None:
    page = failure_page(
        Workspace(), "validate", ["data/acquire"], "a```b\n<script>alert(1)</script> at http://me:pw@host/x"
    )
    before, block, after = page.split("```")
    assert "<script>" in block
    assert "<script>" not in before + after
    assert "pw" not in page
