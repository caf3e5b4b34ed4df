"""Labelling by a person: rounds with CSV files over several runs, and rounds with a form in Prefect."""

import contextvars
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from tasks.core.workspace import Workspace
from tasks.dataset.images import Reading
from tasks.dataset.intensity import IntensityRange
from tasks.labelling.human import next_round, pool_files, read_pool
from tasks.labelling.rounds import LabelError, LabellingRound, collect_labelled, read_rounds, write_classes
from tasks.params import load_params
from tests.conftest import ROOT, with_overrides
from tests.small_workspace import CLASSES as CLASS_NAMES
from tests.small_workspace import SMALL
from tests.test_active_learning import LEARNING
from tests.test_readers import write_dicom

CLASSES = tuple(CLASS_NAMES)
PARAMS = SMALL | LEARNING | {"active_learning.training.epochs": 1}


@pytest.fixture
def pool(small_folder: Path) -> Path:
    """Seven images without labels, two of them with the same name, and a text file; the workspace has params.yaml."""
    folder = small_folder / "unlabelled"
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png", "c.png", "d.png", "e.png", "more/a.png", "more/f.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 36), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("none")
    shutil.copy(ROOT / "prefect.toml", small_folder)
    with (small_folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(with_overrides(PARAMS), file)
    return folder


def read_lines(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run_command(server: str, *arguments: str) -> str:
    environment = os.environ | {"PREFECT_API_URL": server, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "flows.labelling", *arguments]
    result = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_rounds_with_csv_files_continue_in_other_processes_until_all_are_complete(pool: Path, server: str) -> None:
    from flows.labelling import labelling

    settings: dict[str, Any] = {"pool": "unlabelled", "n_images": 3, "n_rounds": 2}
    assert "Images without a class in labels/round-01/query.csv: 3 of 3." in labelling(**settings)
    table = Path("labels/round-01/query.csv")
    first = read_lines(table)
    assert [line["class"] for line in first] == [""] * 3
    assert len(list(Path("labels/round-01/images").iterdir())) == 3
    # without new classes nothing changes
    before = table.read_bytes()
    assert "query.csv: 3 of 3." in labelling(**settings)
    assert table.read_bytes() == before
    # a spreadsheet program saves a byte order mark, semicolons, and only some of the columns
    rows = [[line["number"], line["file"], "LEFT "] for line in first]
    text = "\r\n".join(";".join(row) for row in [["number", "file", "class"], *rows])
    table.write_text("\ufeff" + text, encoding="utf-8")
    message = run_command(server, "unlabelled", "--n-images", "3", "--n-rounds", "2")
    assert message.startswith(
        "Labelled images in labels/labelled: 3. Images without a class in labels/round-02/query.csv"
    )
    second = read_lines(Path("labels/round-02/query.csv"))
    assert not {line["file"] for line in first} & {line["file"] for line in second}
    write_classes(read_rounds(Path("labels"), CLASSES)[1], ["right"] * 3, CLASSES)
    assert labelling(**settings).startswith("Labelled images in labels/labelled: 6. The labelling is complete.")
    copies = {path.relative_to("labels/labelled").as_posix() for path in Path("labels/labelled").rglob("*.png")}
    assert copies == {f"left/{line['file']}" for line in first} | {f"right/{line['file']}" for line in second}


def test_a_paused_run_resumes_with_the_classes_of_its_form(pool: Path, server: str) -> None:
    from prefect import get_client
    from prefect.flow_runs import resume_flow_run

    from flows.labelling import labelling

    messages: list[Any] = []
    settings: dict[str, Any] = {"pool": "unlabelled", "n_images": 2, "n_rounds": 1, "answers": "form"}
    # a thread needs the context with Prefect's settings, such as the address of the server
    context = contextvars.copy_context()
    thread = threading.Thread(target=lambda: messages.append(context.run(labelling, **settings)))
    thread.start()
    with get_client(sync_client=True) as client:
        run = wait_for(lambda: next((run for run in client.read_flow_runs() if run.state_name == "Paused"), None))
        # an unknown class is an error, and the run stays paused
        with pytest.raises(Exception, match="image_001"):
            resume_flow_run(run.id, run_input={"image_001": "middle", "image_002": "left"})
        resume_flow_run(run.id, run_input={"image_001": "none", "image_002": "left"})
    thread.join(300)
    (message,) = messages
    assert message.startswith("Labelled images in labels/labelled: 2. The labelling is complete.")
    assert [line["class"] for line in read_lines(Path("labels/round-01/query.csv"))] == ["none", "left"]


def wait_for(find: Callable[[], Any]) -> Any:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if found := find():
            return found
        time.sleep(0.2)
    raise AssertionError("timeout after 300 s")


def new_round(pool: Path) -> LabellingRound:
    labelling_round = next_round(Workspace(), load_params(), pool, Path("labels"), "random", 3, 2)
    assert labelling_round is not None
    return labelling_round


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.replace(",,", ",middle,", 1),
            r"unknown classes: 'middle' in line 2. Allowed are none, left, right, - for an image",
        ),
        (lambda text: text.replace("\n2,", "\n7,"), r"wrong number in line 3: 7. .*; 2 belongs here"),
        (lambda text: text.rstrip().rpartition("\n")[0], r"wrong number of lines: 2. .* each of the 3 images"),
        (lambda text: text.replace("\n1,", "\n1,../../x/"), r"wrong file in line 2: '../../x/.* below the pool"),
        (lambda text: text.replace("\n1,", "\n1,/etc/"), r"wrong file in line 2: '/etc/.*Put the line back"),
        (
            lambda text: text.replace("prediction", "class"),
            r"several columns of one name: \['class'\]\. Keep one of them",
        ),
        (
            lambda text: re.sub(r"\n2,[^,]*,", "\n2," + text.split("\n")[1].split(",")[1] + ",", text),
            r"is in line 2 of .*query\.csv and in line 3 of .*query\.csv\. An image is queried once",
        ),
        (lambda text: text.replace("class", "klass"), r"no valid header: 'number,file,klass.*Put the first line back"),
    ],
)
def test_an_invalid_csv_file_is_an_error_that_names_the_line(
    pool: Path, change: Callable[[str], str], message: str
) -> None:
    table = new_round(pool).table
    table.write_text(change(table.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(LabelError, match=message):
        read_rounds(Path("labels"), CLASSES)


def test_exchanged_files_do_not_exchange_the_labels_of_their_images(pool: Path) -> None:
    labelled = write_classes(new_round(pool), ["left", "right", "left"], CLASSES)
    first, second = labelled.files[:2]
    text = labelled.table.read_text(encoding="utf-8")
    exchanged = text.replace(first, "first").replace(second, first).replace("first", second)
    labelled.table.write_text(exchanged, encoding="utf-8")
    with pytest.raises(LabelError, match=r"another file in line 2 than .*images/001\.png: .*Put the line"):
        collect_labelled(read_rounds(Path("labels"), CLASSES), pool, Path("labelled"))
    assert not Path("labelled").exists()


def test_a_training_is_resumed_with_the_same_parameters_only(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[dict[str, Any]] = []

    def stop(_folder: Path, _code: object, **made_of: Any) -> None:
        found.append(made_of)
        raise InterruptedError

    monkeypatch.setattr("tasks.labelling.human.Checkpoints", stop)
    params = load_params()
    augmentation = params.train_classifier.augmentation.model_copy(update={"rotation": 3.0})
    section = params.train_classifier.model_copy(update={"augmentation": augmentation})
    for each in (params, params, params.model_copy(update={"train_classifier": section})):
        with pytest.raises(InterruptedError):
            next_round(Workspace(), each, pool, Path("labels"), "random", 3, 2)
    assert found[0] == found[1] != found[2]


def test_a_round_that_was_copied_is_an_error(pool: Path) -> None:
    labelled = write_classes(new_round(pool), ["left", "right", "left"], CLASSES)
    shutil.copytree(labelled.folder, labelled.folder.with_name("round-02"))
    with pytest.raises(LabelError, match=r"line 2 of labels/round-01/query\.csv and in line 2 of labels/round-02/"):
        read_rounds(Path("labels"), CLASSES)


def test_the_line_of_a_skipped_image_cannot_name_another_file(pool: Path) -> None:
    labelled = write_classes(new_round(pool), ["-", "", "left"], CLASSES)
    other = next(file for file in pool_files(pool) if file not in labelled.files)
    text = labelled.table.read_text(encoding="utf-8")
    labelled.table.write_text(text.replace(labelled.files[0], other), encoding="utf-8")
    with pytest.raises(LabelError, match=r"another file in line 2 than .*images/001\.png"):
        collect_labelled(read_rounds(Path("labels"), CLASSES), pool, Path("labelled"))
    labelled.table.write_text(text, encoding="utf-8")
    # a skipped image may be deleted
    (pool / labelled.files[0]).unlink()
    assert collect_labelled(read_rounds(Path("labels"), CLASSES), pool, Path("labelled")) == 1


def test_the_name_of_a_file_is_no_formula_of_a_spreadsheet(pool: Path) -> None:
    for path in pool.rglob("*.png"):
        path.rename(path.with_name(f"={path.name}"))
    labelled = write_classes(new_round(pool), ["left"] * 3, CLASSES)
    assert not [line for line in read_lines(labelled.table) if line["file"].startswith("=")]
    assert collect_labelled([labelled], pool, Path("labelled")) == 3


def test_a_csv_file_in_another_encoding_is_an_error(pool: Path) -> None:
    table = new_round(pool).table
    table.write_bytes(table.read_bytes().replace(b",,", ",Bärlauch,".encode("cp1252"), 1))
    with pytest.raises(LabelError, match=r"query.csv has the wrong encoding: .*Save it as CSV UTF-8"):
        read_rounds(Path("labels"), CLASSES)


def test_a_round_whose_writing_was_killed_is_written_again(pool: Path) -> None:
    expected = new_round(pool).table.read_bytes()
    Path("labels/round-01").rename("labels/round-01.partial")
    assert new_round(pool).table.read_bytes() == expected
    files = sorted(path.name for path in Path("labels").iterdir())
    assert files == ["model-01.json", "model-01.safetensors", "round-01"]


def test_the_pool_is_read_with_the_range_of_values_of_the_training_images(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("params.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(with_overrides(PARAMS | {"prepare.intensity.kind": "percentiles"}), file)
    measured = IntensityRange("percentiles", low=10, high=240)
    info = json.loads(Workspace().dataset_info.read_text(encoding="utf-8"))
    # not written in place: the file may be shared by a link
    Workspace().dataset_info.unlink()
    Workspace().dataset_info.write_text(json.dumps(info | {"intensity": asdict(measured)}), encoding="utf-8")
    readings = []

    def read_and_stop(pool: Path, files: list[str], size: Any, limit: float, reading: Reading) -> None:
        readings.append(reading)
        raise InterruptedError

    monkeypatch.setattr("tasks.labelling.human.read_pool", read_and_stop)
    with pytest.raises(InterruptedError):
        new_round(pool)
    assert [reading.intensity for reading in readings] == [measured]


def test_a_missing_or_empty_pool_is_an_error(pool: Path) -> None:
    with pytest.raises(ValueError, match="the pool is not a folder: nowhere"):
        pool_files(Path("nowhere"))
    with pytest.raises(ValueError, match="the pool has no image: data/train_classifier"):
        pool_files(Path("data/train_classifier"))


def test_images_of_every_format_are_found_copied_and_collected(pool: Path) -> None:
    shutil.rmtree(pool)
    pool.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 36), dtype=np.uint8)
    nibabel.save(nibabel.Nifti1Image(pixels[..., None], np.eye(4)), pool / "a.nii.gz")
    write_dicom(pool / "IM0001", Rows=40, Columns=36, PixelData=pixels.astype("<u2").tobytes())
    Image.fromarray(pixels).save(pool / "B.PNG")
    (pool / "notes").write_text("none")
    os.mkfifo(pool / "pipe")
    assert pool_files(pool) == ["B.PNG", "IM0001", "a.nii.gz"]
    labelled = write_classes(new_round(pool), ["left"] * 3, CLASSES)
    names = {Path(file).name: labelled.image(i).name for i, file in enumerate(labelled.files)}
    assert {file: name[3:] for file, name in names.items()} == {
        "B.PNG": ".PNG",
        "IM0001": ".dcm",
        "a.nii.gz": ".nii.gz",
    }
    assert collect_labelled(read_rounds(Path("labels"), CLASSES), pool, Path("labelled")) == 3


def test_unreadable_images_of_the_pool_are_listed_in_one_error(pool: Path) -> None:
    (pool / "b.png").write_bytes(b"not an image")
    (pool / "c.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"images of the pool cannot be read: 2 of 7.*\n.*b\.png.*\n.*c\.png"):
        read_pool(pool, pool_files(pool), (32, 32), 64)


def test_labelled_images_that_are_missing_from_the_pool_are_an_error(pool: Path) -> None:
    first = write_classes(new_round(pool), ["left"] * 3, CLASSES)
    (pool / first.files[0]).unlink()
    with pytest.raises(ValueError, match=r"labelled images are missing from .*: 1 "):
        new_round(pool)
    with pytest.raises(ValueError, match=r"labelled images are missing from .*: 1 "):
        collect_labelled([first], pool, Path("labelled"))


def test_collected_images_follow_corrected_classes_and_leave_out_skipped_images(pool: Path) -> None:
    first = new_round(pool)
    # some systems add such a file when a person opens the folder
    (first.folder / "images" / "Thumbs.db").write_bytes(b"")
    incomplete = write_classes(first, ["left", "", "-"], CLASSES)
    assert collect_labelled([incomplete], pool, Path("labelled")) == 1
    corrected = write_classes(incomplete, ["right", "none", "-"], CLASSES)
    assert collect_labelled([corrected], pool, Path("labelled")) == 2
    copies = {path.relative_to("labelled").as_posix() for path in Path("labelled").rglob("*.png")}
    assert copies == {f"right/{first.files[0]}", f"none/{first.files[1]}"}
    assert read_rounds(Path("labels"), CLASSES)[0].is_complete


@pytest.mark.parametrize("own", ["left/mine.png", "left/a.png", "notes.csv", ".git/config"])
def test_a_folder_of_labelled_images_with_other_files_is_kept(pool: Path, own: str) -> None:
    labelled = write_classes(new_round(pool), ["left"] * 3, CLASSES)
    file = Path("labels/labelled") / own
    file.parent.mkdir(parents=True)
    file.write_bytes(b"mine")
    message = r"labels/labelled has files that are not copies of images of the rounds: .*Move them"
    with pytest.raises(ValueError, match=message):
        new_round(pool)
    with pytest.raises(ValueError, match=message):
        collect_labelled([labelled], pool, Path("labels/labelled"))
    assert file.read_bytes() == b"mine"
    file.unlink()
    # of a file manager
    (file.parent / ".DS_Store").touch()
    assert collect_labelled([labelled], pool, Path("labels/labelled")) == 3


@pytest.mark.parametrize(
    ("pool_name", "folder"),
    [("scans/unlabelled", "scans"), ("scans", "scans/labels"), ("scans", "scans"), ("link", "scans/labels")],
)
def test_a_pool_that_overlaps_with_the_rounds_is_an_error(pool: Path, pool_name: str, folder: str) -> None:
    shutil.copytree(pool, "scans/unlabelled")
    Path("link").symlink_to("scans")
    with pytest.raises(ValueError, match=rf"overlap: {pool_name} and {folder}\. .* Choose another folder"):
        next_round(Workspace(), load_params(), Path(pool_name), Path(folder), "random", 3, 2)
    with pytest.raises(ValueError, match=f"overlap: {pool_name} and {folder}"):
        collect_labelled([], Path(pool_name), Path(folder))
    assert len(list(Path("scans").rglob("*.png"))) == 7


def test_labellings_in_two_folders_of_one_workspace_have_their_own_checkpoints(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []

    def stop(folder: Path, *_: object, **_made_of: Any) -> None:
        folders.append(folder)
        raise InterruptedError

    monkeypatch.setattr("tasks.labelling.human.Checkpoints", stop)
    for name in ("labels", "others"):
        with pytest.raises(InterruptedError):
            next_round(Workspace(), load_params(), pool, Path(name), "random", 3, 2)
    assert folders[0] != folders[1]


def test_an_earlier_round_whose_class_was_removed_is_incomplete_again(pool: Path) -> None:
    write_classes(new_round(pool), ["left"] * 3, CLASSES)
    new_round(pool)
    first = write_classes(read_rounds(Path("labels"), CLASSES)[0], ["left", "", "left"], CLASSES)
    assert new_round(pool) == first


def test_bald_without_dropout_is_an_error(pool: Path) -> None:
    params = load_params()
    settings = params.active_learning.model_copy(update={"dropout": 0.0})
    without_dropout = params.model_copy(update={"active_learning": settings})
    with pytest.raises(ValueError, match=r"active_learning.dropout is too small .* bald: 0\. It must be above 0"):
        next_round(Workspace(), without_dropout, pool, Path("labels"), "bald", 3, 2)
