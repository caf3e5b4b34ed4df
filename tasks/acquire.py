"""Copy the raw images from one of three sources to ``data/acquire/images/<class>/``, with unchanged pixels."""

import json
import logging
import shutil
import tarfile
import zipfile
from pathlib import Path

from tasks.core.workspace import Workspace
from tasks.dataset.folder import format_paths, is_ignored, list_files, printable, rejected_files
from tasks.dataset.phantom import write_phantoms
from tasks.dataset.readers import SUFFIXES, ImageError
from tasks.dataset.readers.dicom_copy import copy_pixels
from tasks.dataset.readers.dicom_file import has_dicom_magic
from tasks.dataset.table import describe_images, read_table, target_path
from tasks.params import Acquire, Params
from tasks.tracking import Tracker

log = logging.getLogger(__name__)


def acquire(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    """Write ``images/<class>/<path as in the source>`` and ``source.json``.

    If patients, a split or subgroups are given, ``table.parquet`` has them. The source is not changed. DICOM files are
    copied without the tags that identify a patient.

    Rejected files, such as links out of the folder, are not copied; ``rejected.json`` lists them. The step ``validate``
    reports them together with the images that cannot be decoded, and fails.

    Raises:
        ValueError: the source cannot be used, or kagglehub is not installed.
        OSError: the download failed, or a file cannot be read or written. A retry may succeed.
    """
    settings = params.acquire
    match settings.source:
        case "phantom":
            name, size = "phantoms", settings.phantom
            write_phantoms(
                workspace.images,
                settings.classes,
                settings.positive_class,
                size.n_patients,
                size.n_slices_per_patient,
                params.seed,
            )
        case "folder":
            folder = Path(settings.folder).expanduser()
            name = folder.name
            _copy_images(workspace, folder, settings, "acquire.folder")
        case "kaggle":
            name = settings.kaggle_dataset
            class_root = _find_class_root(_download(settings.kaggle_dataset), settings.classes)
            _copy_images(workspace, class_root, settings, "acquire.kaggle_dataset")

    n_images = {cls: sum(file.is_file() for file in (workspace.images / cls).rglob("*")) for cls in settings.classes}
    source = {"source": settings.source, "name": name, "is_phantom": settings.source == "phantom", "n_images": n_images}
    workspace.source.write_text(json.dumps(source, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    log.info("%d images (%s): %s", sum(n_images.values()), name, n_images)
    tracker.dataset(workspace.images, name, "raw")
    tracker.metrics({"data/n_images": sum(n_images.values())})


def _copy_images(workspace: Workspace, folder: Path, settings: Acquire, key: str) -> None:
    """Copy the images of a folder, and write the list of rejected files and the table of the images.

    Args:
        workspace: the images are copied into it.
        folder: the source: with one subfolder for each class, or with a table.
        settings: section ``acquire``.
        key: dotted key of the parameter that names the source, for messages.

    Raises:
        ValueError: the subfolders do not match the classes, or have no images; the message lists all problems. Or the
            table cannot be used.
    """
    import pandas as pd

    if not folder.is_dir():
        raise ValueError(
            f"{key} is not a folder: {str(folder)!r}. It must be a folder with one subfolder for each class of "
            f"acquire.classes: {list(settings.classes)}. Correct the path."
        )
    if settings.table.file:
        table = read_table(folder, settings.table, settings.classes)
        sources = [folder / path for path in table["path"]]
        targets = [target_path(path, name) for path, name in zip(table["path"], table["class"], strict=True)]
    else:
        sources = _list_class_folders(folder, settings.classes, key)
        targets = [path.relative_to(folder).as_posix() for path in sources]
        table = pd.DataFrame(index=range(len(sources)))
    rejected = rejected_files(sources, folder)
    copied = {target: path for path, target in zip(sources, targets, strict=True) if path not in rejected}
    if settings.table.patient or settings.table.split or settings.table.subgroups:
        salt = workspace.root / Path(settings.table.salt_file).expanduser()
        rows = table[[path not in rejected for path in sources]].assign(path=list(copied))
        describe_images(rows, copied, settings.table, salt).to_parquet(workspace.image_table, index=False)
    for target, path in copied.items():
        try:
            _copy(path, workspace.images / target)
        except ImageError as error:
            rejected[path] = str(error).removeprefix(f"{path}: ")
    if rejected:
        log.warning("rejected files, which the step validate reports: %s", format_paths(list(rejected), folder))
        reasons = {printable(path, folder): reason for path, reason in rejected.items()}
        workspace.rejected.write_text(json.dumps(reasons, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    """Copy an image; a DICOM file without the tags that identify a patient.

    Raises:
        ImageError: a DICOM file cannot be read.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if has_dicom_magic(source):
        copy_pixels(source, target)
    else:
        shutil.copyfile(source, target)


def _list_class_folders(folder: Path, classes: tuple[str, ...], key: str) -> list[Path]:
    """Files in the subfolders of the classes.

    Raises:
        ValueError: the subfolders do not match the classes, or have no images; the message lists all problems.
    """
    entries = [path for path in sorted(folder.iterdir()) if not is_ignored(path)]
    subfolders = [path.name for path in entries if path.is_dir()]
    other_files = [path for path in entries if not path.is_dir()]
    files = {name: list_files(folder / name) for name in classes if name in subfolders}
    problems = _subfolder_problems(folder, classes, subfolders)
    if deeper := _deeper_classes(folder, classes, subfolders):
        problems = [
            f"the classes {list(classes)} lie one level deeper, in {deeper}. Set {key} to a folder with one subfolder "
            f"for each class, such as {str(folder / deeper[0])!r}, or move all images into one such folder."
        ]
    if images := [path for path in other_files if path.name.lower().endswith(SUFFIXES)]:
        problems.append(
            f"images outside the class subfolders: {format_paths(images, folder)}. Every image must be in the "
            "subfolder of its class. Move them."
        )
    if empty := [name for name, found in files.items() if not found]:
        problems.append(
            f"subfolders without images: {empty}. Every class needs images. Add images, or remove the classes from "
            "acquire.classes."
        )
    if problems and ".dvc" in Path.cwd().parts:
        problems.append(
            "this is a temporary copy of the repository (dvc exp run --temp or --queue, flows.seeds). It has only the "
            "files of git and DVC. Put the images under DVC (dvc add), or set acquire.folder to an absolute path."
        )
    if problems:
        raise ValueError("\n  ".join([f"{key} {str(folder)!r} cannot be used:", *problems]))
    if other_files:
        log.warning("ignored files outside the class subfolders: %s", format_paths(other_files, folder))
    return [path for found in files.values() for path in found]


def _subfolder_problems(folder: Path, classes: tuple[str, ...], subfolders: list[str]) -> list[str]:
    """Messages about subfolders that do not match ``acquire.classes``."""
    problems = []
    if missing := [name for name in classes if name not in subfolders]:
        problems.append(
            f"missing subfolders of acquire.classes: {missing}. There must be one subfolder for each class, but there "
            f"are {subfolders}. Add the subfolders, or remove the classes from acquire.classes."
        )
    if unlisted := [name for name in subfolders if name not in classes]:
        problems.append(
            f"subfolders that are not in acquire.classes: {unlisted}. The classes are {list(classes)}. Add the "
            "subfolders to acquire.classes, or move them out of the folder."
        )
    if linked := [name for name in subfolders if (folder / name).is_symlink()]:
        problems.append(
            f"subfolders that are symbolic links: {linked}. Such links are not followed. Copy the files into a "
            "regular subfolder."
        )
    return problems


def _deeper_classes(folder: Path, classes: tuple[str, ...], subfolders: list[str]) -> list[str]:
    """Subfolders with a subfolder for every class, such as ``train`` and ``test``; empty if a class is a subfolder."""
    if set(classes) & set(subfolders):
        return []
    return [name for name in subfolders if all((folder / name / each).is_dir() for each in classes)]


def _download(dataset: str) -> Path:
    """Download a Kaggle data set, unless it is complete in the cache of kagglehub; return its folder.

    Raises:
        ValueError: kagglehub is not installed, Kaggle rejects the request, or the archive is damaged or has paths
            outside its folder.
        ConnectionError: the network or Kaggle failed.
    """
    alternative = "or get the data set by other means and use acquire.source folder"
    try:
        import kagglehub
        import kagglehub.exceptions
    except ModuleNotFoundError:
        raise ValueError(
            "kagglehub is not installed. acquire.source kaggle requires it. Install it with `pip install kagglehub`, "
            f"{alternative}."
        ) from None
    try:
        return Path(kagglehub.dataset_download(dataset))
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"the archive of acquire.kaggle_dataset {dataset!r} cannot be unpacked: {error}. It must be a valid "
            f"archive without paths outside its folder. Use another data set, {alternative}."
        ) from error
    except (OSError, kagglehub.exceptions.DataCorruptionError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in {401, 403, 404}:
            raise ValueError(
                f"Kaggle rejected the request for acquire.kaggle_dataset {dataset!r}: HTTP status {status}. The data "
                f"set must exist and be accessible to you. Check its name and your Kaggle token, {alternative}."
            ) from error
        raise ConnectionError(
            f"the download of acquire.kaggle_dataset {dataset!r} failed: {type(error).__name__}. It requires a "
            f"connection to Kaggle. Check the network, {alternative}."
        ) from error


def _find_class_root(folder: Path, classes: tuple[str, ...]) -> Path:
    """Return the highest folder with a subfolder for every class, or ``folder`` if there is none."""
    folders = [path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()]
    below = sorted(folders, key=lambda path: (len(path.parts), path))
    return next((parent for parent in [folder, *below] if all((parent / name).is_dir() for name in classes)), folder)


if __name__ == "__main__":
    from tasks.runner import main

    main(acquire)
