"""Step ``acquire``: raw images from phantoms, a folder or Kaggle."""

import errno
import json
import os
import re
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.acquire import acquire
from tasks.core.workspace import Workspace
from tasks.dataset.readers import read_stored
from tasks.params import Params, ParamsError
from tasks.tracking import Tracker, digest_of
from tests.test_readers import write_dicom

FILES = {
    "non-COVID": ["1.png", "deep/er/2.JPG", "with space [1] 100%.bmp", "снимок.tiff"],
    "COVID": ["Covid (1).png", "a#b&c.jpeg", ".hidden.png", "Thumbs.db", ".cache/3.png"],
}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path)
    workspace.acquire.mkdir(parents=True)
    return workspace


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with one subfolder for each class. The files are not images, because the step does not decode them."""
    for name, files in FILES.items():
        for file in files:
            path = tmp_path / "scans" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"bytes of {name}/{file}".encode())
    return tmp_path / "scans"


@pytest.fixture
def from_folder(tmp_path: Path, params_with: Any) -> Params:
    params: Params = params_with({"acquire.source": "folder", "acquire.folder": str(tmp_path / "scans")})
    return params


def acquired(workspace: Workspace) -> dict[str, bytes]:
    return {
        path.relative_to(workspace.images).as_posix(): path.read_bytes()
        for path in workspace.images.rglob("*")
        if path.is_file()
    }


def test_folder_is_copied_byte_for_byte_and_not_changed(
    source: Path, workspace: Workspace, from_folder: Params
) -> None:
    before = digest_of(source)
    acquire(workspace, from_folder, Tracker())
    names = [f"non-COVID/{file}" for file in FILES["non-COVID"]] + ["COVID/Covid (1).png", "COVID/a#b&c.jpeg"]
    assert acquired(workspace) == {name: f"bytes of {name}".encode() for name in names}
    assert digest_of(source) == before
    assert json.loads(workspace.source.read_text()) == {
        "source": "folder",
        "name": "scans",
        "is_phantom": False,
        "n_images": {"non-COVID": 4, "COVID": 2},
    }


def test_other_files_outside_the_subfolders_are_ignored_with_a_warning(
    source: Path, workspace: Workspace, from_folder: Params, caplog: pytest.LogCaptureFixture
) -> None:
    (source / "README.md").write_text("about")
    acquire(workspace, from_folder, Tracker())
    assert len(acquired(workspace)) == 6
    assert "ignored files outside the class subfolders: 'README.md'" in caplog.text


def assert_source_is_rejected(workspace: Workspace, params: Params, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        acquire(workspace, params, Tracker())
    assert not workspace.images.exists(), "nothing is copied from a folder that cannot be used"


def test_missing_folder_is_rejected(workspace: Workspace, from_folder: Params) -> None:
    message = r"acquire\.folder is not a folder: '.*scans'\. .*\['non-COVID', 'COVID'\]\. Correct the path"
    assert_source_is_rejected(workspace, from_folder, message)


def test_missing_subfolder_of_a_class_is_rejected(source: Path, workspace: Workspace, params_with: Any) -> None:
    classes = ["non-COVID", "COVID", "other"]
    params = params_with({"acquire.source": "folder", "acquire.folder": str(source), "acquire.classes": classes})
    message = r"missing subfolders of acquire\.classes: \['other'\].*there are \['COVID', 'non-COVID'\]"
    assert_source_is_rejected(workspace, params, message)


def test_subfolder_that_is_not_a_class_is_rejected(source: Path, workspace: Workspace, from_folder: Params) -> None:
    (source / "unsure").mkdir()
    message = r"not in acquire\.classes: \['unsure'\]\. The classes are \['non-COVID', 'COVID'\]"
    assert_source_is_rejected(workspace, from_folder, message)


def test_class_without_images_is_rejected(source: Path, workspace: Workspace, from_folder: Params) -> None:
    for path in (source / "COVID").glob("*.*"):
        if path.is_file():
            path.unlink()
    (source / "COVID" / ".gitkeep").touch()
    assert_source_is_rejected(workspace, from_folder, r"subfolders without images: \['COVID'\]")


def test_single_class_is_rejected(params_with: Any) -> None:
    with pytest.raises(ParamsError, match=r"acquire\.classes: .*at least 2"):
        params_with({"acquire.classes": ["COVID"]})


def rejected_by_acquire(workspace: Workspace, params: Params) -> dict[str, str]:
    """Rejected files with the reasons, after a check that all others are copied."""
    acquire(workspace, params, Tracker())
    assert len(acquired(workspace)) == 6
    rejected: dict[str, str] = json.loads(workspace.rejected.read_text(encoding="utf-8"))
    return rejected


def test_files_with_other_extensions_are_rejected(
    source: Path, workspace: Workspace, from_folder: Params, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(7):
        (source / "COVID" / f"note {number}.txt").touch()
    reason = (
        "not an image by its name; move it away. Names of images end with .png, .jpg, .jpeg, .bmp, .tif, .tiff, .dcm, "
        ".dicom, .nii, .nii.gz; a DICOM file may have any name."
    )
    expected = {f"COVID/note {number}.txt": reason for number in range(7)}
    assert rejected_by_acquire(workspace, from_folder) == expected
    assert "rejected files, which the step validate reports: 'COVID/note 0.txt'" in caplog.text
    assert "'COVID/note 4.txt', ... (7 in all)" in caplog.text


def test_list_of_rejected_files_is_absent_if_all_files_are_copied(
    source: Path, workspace: Workspace, from_folder: Params
) -> None:
    acquire(workspace, from_folder, Tracker())
    assert not workspace.rejected.exists()


def test_classes_one_level_deeper_are_found(source: Path, workspace: Workspace, from_folder: Params) -> None:
    for part in ("test", "train"):
        for name in ("COVID", "non-COVID"):
            (source.parent / "kaggle" / part / name).mkdir(parents=True)
            (source.parent / "kaggle" / part / name / "1.png").touch()
    acquire_of = from_folder.acquire.model_copy(update={"folder": str(source.parent / "kaggle")})
    params = from_folder.model_copy(update={"acquire": acquire_of})
    message = r"lie one level deeper, in \['test', 'train'\]\. Set acquire\.folder to a folder .*kaggle/test"
    with pytest.raises(ValueError, match=message) as refused:
        acquire(workspace, params, Tracker())
    assert "Add the subfolders to acquire.classes" not in str(refused.value)


def test_image_outside_the_subfolders_is_rejected(source: Path, workspace: Workspace, from_folder: Params) -> None:
    (source / "lost.png").touch()
    assert_source_is_rejected(workspace, from_folder, r"images outside the class subfolders: 'lost\.png'")


def test_links_that_are_not_followed_are_rejected(
    source: Path, workspace: Workspace, from_folder: Params, tmp_path: Path
) -> None:
    (tmp_path / "secret.png").write_text("secret")
    links = {
        "out.png": (tmp_path / "secret.png", "symbolic link out of the folder"),
        "folder": (source / "non-COVID", "symbolic link to a folder"),
        "nowhere.png": (source / "none.png", "symbolic link whose target does not exist"),
        "circle.png": (source / "COVID" / "circle.png", "symbolic link whose target does not exist"),
    }
    for name, (target, _) in links.items():
        (source / "COVID" / name).symlink_to(target)
    rejected = rejected_by_acquire(workspace, from_folder)
    assert set(rejected) == {f"COVID/{name}" for name in links}
    for name, (_, reason) in links.items():
        assert rejected[f"COVID/{name}"].startswith(f"{reason}. ")


def test_class_folder_that_is_a_link_is_rejected(
    source: Path, workspace: Workspace, from_folder: Params, tmp_path: Path
) -> None:
    (source / "COVID").rename(tmp_path / "elsewhere")
    (source / "COVID").symlink_to(tmp_path / "elsewhere")
    message = r"subfolders that are symbolic links: \['COVID'\]\. Such links are not followed"
    assert_source_is_rejected(workspace, from_folder, message)


def test_pipe_with_the_name_of_an_image_is_rejected_without_waiting(
    source: Path, workspace: Workspace, from_folder: Params
) -> None:
    os.mkfifo(source / "COVID" / "pipe.png")
    reason = "not a regular file, but for example a pipe or a device. Move it away."
    assert rejected_by_acquire(workspace, from_folder) == {"COVID/pipe.png": reason}


def test_file_of_a_huge_size_is_rejected_before_it_is_copied(
    source: Path, workspace: Workspace, from_folder: Params
) -> None:
    (source / "COVID" / "huge.png").touch()
    # sparse: it needs no space on the disk
    os.truncate(source / "COVID" / "huge.png", 2**40)
    reason = "the file has 1024.0 GiB. At most 2 are allowed. Move it away."
    assert rejected_by_acquire(workspace, from_folder) == {"COVID/huge.png": reason}


def test_link_within_the_folder_is_copied_as_a_file(source: Path, workspace: Workspace, from_folder: Params) -> None:
    (source / "COVID" / "link.png").symlink_to(source / "COVID" / "Covid (1).png")
    acquire(workspace, from_folder, Tracker())
    assert acquired(workspace)["COVID/link.png"] == b"bytes of COVID/Covid (1).png"
    assert not (workspace.images / "COVID/link.png").is_symlink()


def test_both_names_that_differ_only_in_case_are_rejected(
    source: Path, workspace: Workspace, from_folder: Params
) -> None:
    for name in ("Slice.png", "slice.PNG"):
        (source / "COVID" / name).touch()
    if len(list((source / "COVID").glob("[sS]lice*"))) < 2:
        pytest.skip("this file system ignores case")
    rejected = rejected_by_acquire(workspace, from_folder)
    assert list(rejected) == ["COVID/Slice.png", "COVID/slice.PNG"]
    assert rejected["COVID/Slice.png"].startswith("the name differs from COVID/slice.PNG only in case")


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        (b"line\nbreak.png", r"line\nbreak.png"),
        (b"latin-\xe9.png", r"latin-\udce9.png"),
        ("line\u2028end.png".encode(), r"line\u2028end.png"),
        (b"a;=1.png", "a;=1.png"),
    ],
)
def test_names_with_unprintable_characters_or_formulas_are_rejected(
    source: Path, workspace: Workspace, from_folder: Params, name: bytes, escaped: str
) -> None:
    try:
        Path(os.fsdecode(os.fsencode(source / "COVID") + b"/" + name)).touch()
    except OSError:
        pytest.skip("this file system does not allow such names")
    assert list(rejected_by_acquire(workspace, from_folder)) == [f"COVID/{escaped}"]


@pytest.mark.parametrize("name", ["old.dcm", "old.DICOM", "old.nii"])
def test_a_dicom_file_is_copied_without_the_patient_also_if_it_has_no_preamble(
    source: Path, workspace: Workspace, from_folder: Params, name: str
) -> None:
    write_dicom(source / "COVID" / name, PatientID="secret", PatientName="Doe^Jane")
    if not name.endswith(".nii"):
        content = (source / "COVID" / name).read_bytes()
        (source / "COVID" / name).write_bytes(content[132:])
    acquire(workspace, from_folder, Tracker())
    copied = (workspace.images / "COVID" / name).read_bytes()
    assert not [text for text in (b"secret", b"Doe") if text in copied]
    if not name.endswith(".nii"):
        original = read_stored(source / "COVID" / name)
        np.testing.assert_array_equal(read_stored(workspace.images / "COVID" / name).values, original.values)


def test_one_message_lists_all_problems_of_the_subfolders(
    source: Path, workspace: Workspace, from_folder: Params
) -> None:
    (source / "unsure").mkdir()
    (source / "lost.png").touch()
    message = r"(?s)acquire\.folder '.*scans' cannot be used:.*'unsure'.*lost\.png"
    assert_source_is_rejected(workspace, from_folder, message)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("acquire.folder", "data/acquire/images"),
        ("acquire.table.salt_file", "data/acquire/salt"),
        ("classifier", {"source": "onnx", "folder": "data/train_classifier", "file": "net.onnx"}),
    ],
)
def test_a_path_of_the_user_within_data_is_rejected(key: str, value: Any, params_with: Any) -> None:
    with pytest.raises(ParamsError, match=rf"{re.escape(key)}\S*: data/\S+ is inside data/.*Use a path outside"):
        params_with({key: value})


def test_phantoms_are_drawn_and_marked_as_phantoms(workspace: Workspace, params_with: Any) -> None:
    params = params_with({"acquire.phantom.n_patients": 3, "acquire.phantom.n_slices_per_patient": 2})
    acquire(workspace, params, Tracker())
    assert json.loads(workspace.source.read_text()) == {
        "source": "phantom",
        "name": "phantoms",
        "is_phantom": True,
        "n_images": {"non-COVID": 4, "COVID": 2},
    }
    assert all(Image.open(workspace.images / name).mode == "L" for name in acquired(workspace))


def replace_kagglehub(monkeypatch: pytest.MonkeyPatch, download: Any) -> None:
    """Replace kagglehub by a module that needs no network."""
    module, exceptions = ModuleType("kagglehub"), ModuleType("kagglehub.exceptions")
    exceptions.DataCorruptionError = type("DataCorruptionError", (Exception,), {})
    module.exceptions = exceptions
    module.dataset_download = download
    monkeypatch.setitem(sys.modules, "kagglehub", module)
    monkeypatch.setitem(sys.modules, "kagglehub.exceptions", exceptions)


def failing_download(error: Exception) -> Any:
    def download(dataset: str) -> str:
        raise error

    return download


def test_class_folders_are_found_below_the_download(
    source: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, params_with: Any
) -> None:
    (source.parent / "download" / "version").mkdir(parents=True)
    source.rename(source.parent / "download" / "version" / "images")
    replace_kagglehub(monkeypatch, lambda dataset: str(source.parent / "download"))
    acquire(workspace, params_with({"acquire.source": "kaggle"}), Tracker())
    assert len(acquired(workspace)) == 6
    assert json.loads(workspace.source.read_text())["name"] == "plameneduardo/sarscov2-ctscan-dataset"


def test_class_folders_behind_a_link_out_of_the_download_are_not_used(
    source: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, params_with: Any, tmp_path: Path
) -> None:
    (tmp_path / "download").mkdir()
    (tmp_path / "download" / "images").symlink_to(source)
    replace_kagglehub(monkeypatch, lambda dataset: str(tmp_path / "download"))
    message = r"acquire\.kaggle_dataset '.*download' cannot be used:"
    assert_source_is_rejected(workspace, params_with({"acquire.source": "kaggle"}), message)


def test_missing_kagglehub_gives_an_error_with_the_install_command(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, params_with: Any
) -> None:
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    message = r"pip install kagglehub`, or .* acquire\.source folder"
    assert_source_is_rejected(workspace, params_with({"acquire.source": "kaggle"}), message)


def test_network_error_can_be_retried(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, params_with: Any) -> None:
    replace_kagglehub(monkeypatch, failing_download(OSError(errno.ENETUNREACH, "unreachable")))
    with pytest.raises(ConnectionError, match=r"failed: OSError\. .* Check the network, or .* folder"):
        acquire(workspace, params_with({"acquire.source": "kaggle"}), Tracker())


def test_http_error_of_kaggle_is_not_a_network_error(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, params_with: Any
) -> None:
    error = OSError("404 Client Error")
    error.response = type("Response", (), {"status_code": 404})()
    replace_kagglehub(monkeypatch, failing_download(error))
    message = r"rejected the request for acquire\.kaggle_dataset .*: HTTP status 404"
    assert_source_is_rejected(workspace, params_with({"acquire.source": "kaggle"}), message)


def test_archive_with_paths_outside_its_folder_is_rejected(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, params_with: Any, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "archive", "w") as archive:
        archive.addfile(tarfile.TarInfo("../../outside.png"))

    def download(dataset: str) -> str:
        # unpacks as kagglehub does
        with tarfile.open(tmp_path / "archive") as archive:
            archive.extractall(tmp_path / "cache" / "deep", filter="data")
        return str(tmp_path / "cache" / "deep")

    replace_kagglehub(monkeypatch, download)
    message = r"cannot be unpacked: .*outside the destination"
    assert_source_is_rejected(workspace, params_with({"acquire.source": "kaggle"}), message)
    assert not list(tmp_path.rglob("outside.png"))
