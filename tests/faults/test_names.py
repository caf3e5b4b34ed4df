"""Names of classes and files that contain HTML are shown as text on every page."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.flow import failure_page
from tasks.acquire import acquire
from tasks.core.workspace import Workspace
from tasks.params import Params, load_params
from tasks.reporting.model_card import card_of
from tasks.tracking import Tracker, plain_markdown
from tasks.validate import ValidationFailed, validate
from tests.bundles import copy_completed, write_results

CLASSES = ["<img src=x onerror=alert(1)>", "<script>alert(2) ![x](http:host)"]
FILE = "<b onclick=alert(3)> $name & 'more'"
CODE = ("<img src=x", "<script>alert(2)", "<b onclick")


def test_data_docs_escape_names_of_files_and_classes(tmp_path: Path, params_with: Callable[..., Params]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 70, 80), dtype=np.uint8)
    for name in CLASSES:
        (tmp_path / "scans" / name).mkdir(parents=True)
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(tmp_path / "scans" / CLASSES[number % 2] / f"{number} {FILE}.png")
    # a blank image in both classes, and a file that is not an image
    for name in CLASSES:
        Image.fromarray(np.zeros((70, 80), dtype=np.uint8)).save(tmp_path / "scans" / name / f"blank {FILE}.png")
    (tmp_path / "scans" / CLASSES[0] / f"broken {FILE}.png").write_bytes(b"x")
    params = params_with(
        {
            "acquire.source": "folder",
            "acquire.folder": str(tmp_path / "scans"),
            "acquire.classes": CLASSES,
            "acquire.positive_class": CLASSES[0],
            "validate.min_images_per_class": 100,
        }
    )
    workspace = Workspace(tmp_path)
    workspace.acquire.mkdir(parents=True)
    acquire(workspace, params, Tracker())
    workspace.validate.mkdir()
    with pytest.raises(ValidationFailed) as raised:
        validate(workspace, params, Tracker())
    pages = [page.read_text(encoding="utf-8") for page in workspace.data_docs.rglob("*.html")]
    assert not [code for code in CODE for page in pages if code in page]
    for name in CLASSES:
        assert any(name.replace("<", "&lt;").replace(">", "&gt;") in page for page in pages)
    # messages and JSON files contain the names unescaped
    assert f"{CLASSES[0]}/broken {FILE}.png" in str(raised.value)
    results = json.loads(workspace.validation.read_text(encoding="utf-8"))["expectations"]
    examples = {result["name"]: result["examples"] for result in results}
    assert examples["not_blank"] == [f"{name}/blank {FILE}.png" for name in CLASSES]
    assert examples["class_size"] == CLASSES


def test_model_card_escapes_names_of_classes_and_data_sets(small_workspace: Path, tmp_path: Path) -> None:
    workspace = copy_completed(small_workspace, tmp_path)
    write_results(workspace, {"autoencoder": (24, [])})
    info = json.loads(workspace.dataset_info.read_text(encoding="utf-8"))
    html_names = {"classes": [*CLASSES, "c"], "positive_class": CLASSES[1], "name": CLASSES[0]}
    workspace.dataset_info.write_text(json.dumps(info | html_names), encoding="utf-8")
    card, summary = card_of(workspace, load_params(workspace.params_file), "autoencoder")
    assert not [code for code in CODE for text in (card, summary) if code in text]
    assert "trained on &lt;img src=x onerror=alert(1)>." in summary
    assert "](" not in card + summary
    assert r"(positive: &lt;script>alert(2) ![x]\(http:host))" in card


def test_markdown_has_no_links_images_or_html() -> None:
    assert plain_markdown("![a](http://b) <img src=c> p < 0.05 [0.1, 0.2]") == (
        "![a]\\(http://b) &lt;img src=c> p < 0.05 [0.1, 0.2]"
    )


def test_markdown_has_no_references_of_links_and_images() -> None:
    text = "![z][1] [z] [0.1, 0.2]\n\n[1]: http://host/x.png\n> [z]: http://host"
    escaped = plain_markdown(text)
    assert "][" not in escaped
    assert "]:" not in escaped
    # an escaped character looks like the character
    assert escaped.replace("\\", "") == text


def test_failure_page_keeps_the_message_inside_its_code_block() -> None:
    page = failure_page(
        Workspace(), "validate", ["data/acquire"], "a```b\n<script>alert(1)</script> at http://me:pw@host/x"
    )
    before, block, after = page.split("```")
    assert "<script>" in block
    assert "<script>" not in before + after
    assert "pw" not in page
