"""Step ``acquire``: raw images from phantoms, a folder or Kaggle."""

import errno
import json
import os
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from tasks.acquire import acquire
from tasks.core.workspace import Workspace
from tasks.params import Params, ParamsError
from tasks.tracking import Tracker, digest_of

FILES = {
    "non-COVID": ["1.png", "deep/er/2.JPG", "with space [1] 100%.bmp", "снимок.tiff"],
    "COVID": ["Covid (1).png", "a#b&c.jpeg", ".hidden.png", "Thumbs.db", ".cache/3.png"],
}


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Workspace().acquire.mkdir(parents=True)
    return tmp_path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with one subfolder a class; the content of the files is not looked at by this step."""
    for name, files in FILES.items():
        for file in files:
            path = tmp_path / "scans" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"bytes of {name}/{file}".encode())
    return tmp_path / "scans"


@pytest.fixture
def from_folder(params_with: Any) -> Params:
    params: Params = params_with({"acquire.source": "folder", "acquire.folder": "scans"})
    return params


def acquired() -> dict[str, bytes]:
    return {
        path.relative_to(Workspace().images).as_posix(): path.read_bytes()
        for path in Workspace().images.rglob("*")
        if path.is_file()
    }


def test_folder_is_copied_byte_for_byte_and_left_as_it_was(source: Path, from_folder: Params) -> None:
    before = digest_of(source)
    acquire(from_folder, Tracker())
    names = [f"non-COVID/{file}" for file in FILES["non-COVID"]] + ["COVID/Covid (1).png", "COVID/a#b&c.jpeg"]
    assert acquired() == {name: f"bytes of {name}".encode() for name in names}
    assert digest_of(source) == before
    assert json.loads(Workspace().source.read_text()) == {
        "source": "folder",
        "name": "scans",
        "is_phantom": False,
        "n_images": {"non-COVID": 4, "COVID": 2},
    }


def test_files_beside_the_subfolders_are_left_out_and_told(
    source: Path, from_folder: Params, caplog: pytest.LogCaptureFixture
) -> None:
    (source / "README.md").write_text("about")
    acquire(from_folder, Tracker())
    assert len(acquired()) == 6
    assert "left out, since they lie beside the class subfolders: 'README.md'" in caplog.text


def refuse(params: Params, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        acquire(Workspace(), params, Tracker())
    assert not Workspace().images.exists(), "nothing is copied from a folder that can't be used"


def test_missing_folder_is_refused(from_folder: Params) -> None:
    refuse(from_folder, r"acquire\.folder 'scans' is no folder; .*\['non-COVID', 'COVID'\]")


def test_missing_class_is_refused(source: Path, params_with: Any) -> None:
    params = params_with(
        {"acquire.source": "folder", "acquire.folder": "scans", "acquire.classes": ["non-COVID", "COVID", "other"]}
    )
    refuse(params, r"no subfolder for acquire\.classes \['other'\].*found \['COVID', 'non-COVID'\]")


def test_unlisted_subfolder_is_refused(source: Path, from_folder: Params) -> None:
    (source / "unsure").mkdir()
    refuse(from_folder, r"subfolders \['unsure'\] are not in acquire\.classes \['non-COVID', 'COVID'\]")


def test_empty_class_is_refused(source: Path, from_folder: Params) -> None:
    for path in (source / "COVID").glob("*.*"):
        if path.is_file():
            path.unlink()
    (source / "COVID" / ".gitkeep").touch()
    refuse(from_folder, r"no images in \['COVID'\]: fill these subfolders")


def test_single_class_is_refused(params_with: Any) -> None:
    with pytest.raises(ParamsError, match=r"acquire\.classes: .*at least 2"):
        params_with({"acquire.classes": ["COVID"]})


def refused_with(params: Params) -> dict[str, str]:
    """What is left for validate to report; everything else is copied."""
    acquire(Workspace(), params, Tracker())
    assert len(acquired()) == 6
    refused: dict[str, str] = json.loads(Workspace().refused.read_text(encoding="utf-8"))
    return refused


def test_files_that_are_no_images_are_all_written_down(
    source: Path, from_folder: Params, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(7):
        (source / "COVID" / f"note {number}.txt").touch()
    reason = "no .png/.jpg/.jpeg/.bmp/.tif/.tiff by its name; move it away"
    assert refused_with(from_folder) == {f"COVID/note {number}.txt": reason for number in range(7)}
    assert "not taken, which validate will report: 'COVID/note 0.txt'" in caplog.text
    assert "'COVID/note 4.txt', ... (7 in all)" in caplog.text


def test_where_everything_is_taken_nothing_is_written_about_refusals(source: Path, from_folder: Params) -> None:
    acquire(from_folder, Tracker())
    assert not Workspace().refused.exists()


def test_image_beside_the_subfolders_is_refused(source: Path, from_folder: Params) -> None:
    (source / "lost.png").touch()
    refuse(from_folder, r"images beside the class subfolders belong to no class: 'lost\.png'")


def test_links_that_are_not_followed_are_refused_by_name(source: Path, from_folder: Params, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_text("secret")
    links = {
        "out.png": (tmp_path / "secret.png", "a symbolic link out of the folder is not followed; put the file there"),
        "folder": (source / "non-COVID", "a symbolic link to a folder is not followed; put the files there"),
        "nowhere.png": (source / "none.png", "a symbolic link that leads nowhere; put the file there"),
        "circle.png": (source / "COVID" / "circle.png", "a symbolic link that leads nowhere; put the file there"),
    }
    for name, (target, _) in links.items():
        (source / "COVID" / name).symlink_to(target)
    assert refused_with(from_folder) == {f"COVID/{name}": reason for name, (_, reason) in sorted(links.items())}


def test_class_folder_that_is_a_link_is_refused(source: Path, from_folder: Params, tmp_path: Path) -> None:
    (source / "COVID").rename(tmp_path / "elsewhere")
    (source / "COVID").symlink_to(tmp_path / "elsewhere")
    refuse(from_folder, r"subfolders \['COVID'\] are symbolic links, which are not followed: put the folders there")


def test_pipe_that_is_called_an_image_is_refused_and_not_waited_for(source: Path, from_folder: Params) -> None:
    os.mkfifo(source / "COVID" / "pipe.png")
    assert refused_with(from_folder) == {"COVID/pipe.png": "no regular file; move it away"}


def test_link_within_the_folder_is_copied_as_a_file(source: Path, from_folder: Params) -> None:
    (source / "COVID" / "link.png").symlink_to(source / "COVID" / "Covid (1).png")
    acquire(from_folder, Tracker())
    assert acquired()["COVID/link.png"] == b"bytes of COVID/Covid (1).png"
    assert not (Workspace().images / "COVID/link.png").is_symlink()


def test_names_that_differ_only_in_case_are_refused_both(source: Path, from_folder: Params) -> None:
    for name in ("Slice.png", "slice.PNG"):
        (source / "COVID" / name).touch()
    if len(list((source / "COVID").glob("[sS]lice*"))) < 2:
        pytest.skip("this file system ignores case")
    refused = refused_with(from_folder)
    assert list(refused) == ["COVID/Slice.png", "COVID/slice.PNG"]
    assert refused["COVID/Slice.png"].startswith("the name differs from COVID/slice.PNG only in case")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (b"line\nbreak.png", r"line\nbreak.png"),
        (b"latin-\xe9.png", r"latin-\udce9.png"),
        ("line\u2028end.png".encode(), r"line\u2028end.png"),
    ],
)
def test_names_that_cant_be_written_down_are_refused(source: Path, from_folder: Params, name: bytes, told: str) -> None:
    try:
        Path(os.fsdecode(os.fsencode(source / "COVID") + b"/" + name)).touch()
    except OSError:
        pytest.skip("this file system refuses such names")
    assert list(refused_with(from_folder)) == [f"COVID/{told}"]


def test_everything_wrong_with_the_subfolders_is_told_at_once(source: Path, from_folder: Params) -> None:
    (source / "unsure").mkdir()
    (source / "lost.png").touch()
    refuse(from_folder, r"(?s)acquire\.folder 'scans' can't be used:.*'unsure'.*lost\.png")


def test_source_within_data_is_refused(params_with: Any) -> None:
    with pytest.raises(ParamsError, match=r"acquire\.folder: must lie outside data/"):
        params_with({"acquire.folder": "data/acquire/images"})


def test_phantoms_are_drawn_and_called_phantoms(params_with: Any) -> None:
    params = params_with({"acquire.phantom.n_patients": 3, "acquire.phantom.n_slices": 2})
    acquire(Workspace(), params, Tracker())
    source = json.loads(Workspace().source.read_text())
    assert source == {
        "source": "phantom",
        "name": "phantoms",
        "is_phantom": True,
        "n_images": {"non-COVID": 4, "COVID": 2},
    }
    assert all(Image.open(Workspace().images / name).mode == "L" for name in acquired())


def kagglehub(monkeypatch: pytest.MonkeyPatch, download: Any) -> None:
    """Put a kagglehub in place that needs no network."""
    module, exceptions = ModuleType("kagglehub"), ModuleType("kagglehub.exceptions")
    exceptions.DataCorruptionError = type("DataCorruptionError", (Exception,), {})
    module.exceptions = exceptions
    module.dataset_download = download
    monkeypatch.setitem(sys.modules, "kagglehub", module)
    monkeypatch.setitem(sys.modules, "kagglehub.exceptions", exceptions)


def test_download_is_searched_for_the_class_folders(
    source: Path, monkeypatch: pytest.MonkeyPatch, params_with: Any
) -> None:
    (source.parent / "download" / "version").mkdir(parents=True)
    source.rename(source.parent / "download" / "version" / "images")
    kagglehub(monkeypatch, lambda dataset: str(source.parent / "download"))
    acquire(Workspace(), params_with({"acquire.source": "kaggle"}), Tracker())
    assert len(acquired()) == 6
    assert json.loads(Workspace().source.read_text())["name"] == "plameneduardo/sarscov2-ctscan-dataset"


def test_without_kagglehub_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, params_with: Any) -> None:
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    refuse(params_with({"acquire.source": "kaggle"}), r"pip install kagglehub, or .* acquire\.source: folder")


def failing(error: Exception) -> Any:
    def download(dataset: str) -> str:
        raise error

    return download


def test_without_network_the_error_can_be_retried(monkeypatch: pytest.MonkeyPatch, params_with: Any) -> None:
    kagglehub(monkeypatch, failing(OSError(errno.ENETUNREACH, "unreachable")))
    with pytest.raises(ConnectionError, match=r"from Kaggle failed \(OSError\); check the network, or .* folder"):
        acquire(Workspace(), params_with({"acquire.source": "kaggle"}), Tracker())


def test_data_set_that_kaggle_refuses_is_no_network_error(monkeypatch: pytest.MonkeyPatch, params_with: Any) -> None:
    error = OSError("404 Client Error")
    error.response = type("Response", (), {"status_code": 404})()
    kagglehub(monkeypatch, failing(error))
    refuse(params_with({"acquire.source": "kaggle"}), r"acquire\.kaggle_dataset .* refused with HTTP status 404")


def test_archive_that_leads_out_of_its_folder_is_refused(
    monkeypatch: pytest.MonkeyPatch, params_with: Any, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "archive", "w") as archive:
        archive.addfile(tarfile.TarInfo("../../outside.png"))

    def download(dataset: str) -> str:
        # as kagglehub does it
        with tarfile.open(tmp_path / "archive") as archive:
            archive.extractall(tmp_path / "cache" / "deep", filter="data")
        return str(tmp_path / "cache" / "deep")

    kagglehub(monkeypatch, download)
    refuse(params_with({"acquire.source": "kaggle"}), r"won't unpack its archive \(.*outside the destination")
    assert not list(tmp_path.rglob("outside.png"))
