"""A person labels in rounds: by CSV file over several runs, or by a form of Prefect."""

import contextvars
import csv
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from tasks.core.workspace import Workspace
from tasks.labelling.human import LabelError, collect, fill_in, pool_files, read_pool, read_rounds
from tests.conftest import ROOT, with_overrides
from tests.small_workspace import CLASSES, SMALL
from tests.test_active_learning import LEARNING

FEW = SMALL | LEARNING | {"active_learning.training.epochs": 1}


@pytest.fixture
def pool(workspace: Path) -> Path:
    """Seven images without labels, two of them of one name, and a file that is none; the workspace has params.yaml."""
    folder = workspace / "unlabelled"
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png", "c.png", "d.png", "e.png", "more/a.png", "more/f.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 36), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("none")
    shutil.copy(ROOT / "prefect.toml", workspace)
    with (workspace / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(with_overrides(FEW), file)
    return folder


def lines_of(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run_flow(server: str, *arguments: str) -> str:
    environment = os.environ | {"PREFECT_API_URL": server, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "flows.active_learning", *arguments]
    result = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_rounds_by_csv_go_on_in_another_process_until_all_is_labelled(pool: Path, server: str) -> None:
    from flows.active_learning import active_learning

    settings: dict[str, Any] = {"pool": "unlabelled", "n_images": 3, "n_rounds": 2}
    assert "labels/round-01/query.csv waits for 3 of 3 images" in active_learning(**settings)
    table = Path("labels/round-01/query.csv")
    asked = lines_of(table)
    assert [line["class"] for line in asked] == [""] * 3
    assert len(list(Path("labels/round-01/images").iterdir())) == 3
    # nothing filled in: nothing changes
    before = table.read_bytes()
    assert "waits for 3 of 3" in active_learning(**settings)
    assert table.read_bytes() == before
    # as a spreadsheet of another country saves it
    rows = [[line["number"], line["file"], "LEFT "] for line in asked]
    text = "\r\n".join(";".join(row) for row in [["number", "file", "class"], *rows])
    table.write_text("\ufeff" + text, encoding="utf-8")
    said = run_flow(server, "unlabelled", "--n-images", "3", "--n-rounds", "2")
    assert said.startswith("3 images are labelled, in labels/labelled. labels/round-02/query.csv waits for 3 of 3")
    second = lines_of(Path("labels/round-02/query.csv"))
    assert not {line["file"] for line in asked} & {line["file"] for line in second}
    fill_in(read_rounds(Path("labels"), tuple(CLASSES))[1], ["right"] * 3, tuple(CLASSES))
    assert active_learning(**settings).startswith("6 images are labelled, in labels/labelled: add them")
    collected = {path.relative_to("labels/labelled").as_posix() for path in Path("labels/labelled").rglob("*.png")}
    names = {(file, "left") for file in (line["file"] for line in asked)}
    names |= {(file, "right") for file in (line["file"] for line in second)}
    assert collected == {f"{name}/{file}" for file, name in names}


def test_a_run_that_waits_for_its_form_is_resumed_with_typed_labels(pool: Path, server: str) -> None:
    from prefect import get_client
    from prefect.flow_runs import resume_flow_run

    from flows.active_learning import active_learning

    said: list[Any] = []
    settings: dict[str, Any] = {"pool": "unlabelled", "n_images": 2, "n_rounds": 1, "answers": "form"}
    # settings of Prefect, such as its address, belong to a context
    context = contextvars.copy_context()
    thread = threading.Thread(target=lambda: said.append(context.run(active_learning, **settings)))
    thread.start()
    with get_client(sync_client=True) as client:
        run = wait_for(lambda: next((run for run in client.read_flow_runs() if run.state_name == "Paused"), None))
        # a class that is none is refused before the run goes on
        with pytest.raises(Exception, match="image_001"):
            resume_flow_run(run.id, run_input={"image_001": "middle", "image_002": "left"})
        resume_flow_run(run.id, run_input={"image_001": "none", "image_002": "left"})
    thread.join(300)
    assert said == ["2 images are labelled, in labels/labelled: add them to the images of acquire.folder"]
    assert [line["class"] for line in lines_of(Path("labels/round-01/query.csv"))] == ["none", "left"]


def wait_for(look: Callable[[], Any]) -> Any:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.2)
    raise AssertionError("waited in vain")


def begun(pool: Path) -> Path:
    from tasks.labelling.queries import next_query
    from tasks.params import load_params

    query = next_query(Workspace(), load_params(), pool, Path("labels"), "random", 3, 2)
    assert query is not None
    return query.table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.replace(",,", ",middle,", 1),
            r"line 2: 'middle'; allowed: none, left, right, - for an image",
        ),
        (lambda text: text.replace("\n2,", "\n7,"), r"line 3: number 7 where 2 was"),
        (lambda text: text.rstrip().rpartition("\n")[0], r"2 lines for 3 images"),
        (lambda text: text.replace("class", "klass"), r"the first line must hold the columns number, file, class"),
    ],
)
def test_what_was_filled_in_wrongly_is_named_with_its_line(
    pool: Path, change: Callable[[str], str], message: str
) -> None:
    table = begun(pool)
    table.write_text(change(table.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(LabelError, match=message):
        read_rounds(Path("labels"), tuple(CLASSES))


def test_a_round_that_was_killed_while_it_was_written_is_written_anew(pool: Path) -> None:
    expected = begun(pool).read_bytes()
    Path("labels/round-01").rename("labels/round-01.partial")
    assert begun(pool).read_bytes() == expected
    assert sorted(path.name for path in Path("labels").iterdir()) == [
        "model-01.json",
        "model-01.safetensors",
        "round-01",
    ]


def test_pools_that_can_not_be_read_are_named(pool: Path) -> None:
    with pytest.raises(ValueError, match="nowhere is no folder"):
        pool_files(Path("nowhere"))
    with pytest.raises(ValueError, match="holds no image"):
        pool_files(Path("data/train_classifier"))
    (pool / "b.png").write_bytes(b"not an image")
    (pool / "c.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 of 7 images can't be read.*\n.*b\.png.*\n.*c\.png"):
        read_pool(pool, pool_files(pool), 32, 64)


def test_images_that_vanish_from_the_pool_are_named(pool: Path) -> None:
    fill_in(read_rounds(begun(pool).parent.parent, tuple(CLASSES))[0], ["left"] * 3, tuple(CLASSES))
    (pool / lines_of(Path("labels/round-01/query.csv"))[0]["file"]).unlink()
    with pytest.raises(ValueError, match="1 labelled images are no longer in"):
        begun(pool)
    with pytest.raises(ValueError, match="1 labelled images are no longer in"):
        collect(read_rounds(Path("labels"), tuple(CLASSES)), pool, Path("labelled"))


def test_only_labelled_images_are_collected_and_a_corrected_label_leaves_no_copy_behind(pool: Path) -> None:
    table, classes = begun(pool), tuple(CLASSES)
    # what looking at images leaves on some systems
    (table.parent / "images" / "Thumbs.db").write_bytes(b"")
    some = fill_in(read_rounds(Path("labels"), classes)[0], ["left", "", "-"], classes)
    assert collect([some], pool, Path("labelled")) == 1
    corrected = fill_in(some, ["right", "none", "-"], classes)
    assert collect([corrected], pool, Path("labelled")) == 2
    copies = {path.relative_to("labelled").as_posix() for path in Path("labelled").rglob("*.png")}
    assert copies == {f"right/{some.files[0]}", f"none/{some.files[1]}"}
    assert read_rounds(Path("labels"), classes)[0].is_answered


def test_a_file_that_is_no_utf8_is_named(pool: Path) -> None:
    table = begun(pool)
    table.write_bytes(table.read_bytes().replace(b",,", ",Bärlauch,".encode("cp1252"), 1))
    with pytest.raises(LabelError, match=r"query.csv: not UTF-8 .*save it as CSV UTF-8"):
        read_rounds(Path("labels"), tuple(CLASSES))


def test_a_label_that_is_taken_back_in_an_earlier_round_is_asked_for_again(pool: Path) -> None:
    from tasks.labelling.queries import next_query
    from tasks.params import load_params

    begun(pool)
    classes = tuple(CLASSES)
    fill_in(read_rounds(Path("labels"), classes)[0], ["left"] * 3, classes)
    begun(pool)
    first = fill_in(read_rounds(Path("labels"), classes)[0], ["left", "", "left"], classes)
    assert next_query(Workspace(), load_params(), pool, Path("labels"), "random", 3, 2) == first
