"""Copies of the raw images of a folder, with unchanged pixels and without the tags that identify a patient."""

import logging
import shutil
from pathlib import Path

from tasks.core.files import write_json
from tasks.core.workspace import Workspace
from tasks.dataset.folder import format_paths, is_ignored, list_files, printable, rejected_files
from tasks.dataset.readers import SUFFIXES, ImageError, is_dicom
from tasks.dataset.readers.dicom_copy import copy_pixels
from tasks.dataset.table import describe_images, read_table, target_path
from tasks.params import Acquire

log = logging.getLogger(__name__)


def copy_images(workspace: Workspace, folder: Path, settings: Acquire, key: str) -> None:
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
        write_json(reasons, workspace.rejected)


def _copy(source: Path, target: Path) -> None:
    """Copy an image; a DICOM file without the tags that identify a patient.

    Raises:
        ImageError: a DICOM file cannot be read.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if is_dicom(source):
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
