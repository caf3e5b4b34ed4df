"""Copy the raw images from one of three sources to ``data/acquire/images/<class>/``, unchanged."""

import json
import logging
import shutil
import tarfile
import zipfile
from pathlib import Path

from tasks.core.workspace import Workspace
from tasks.dataset.folder import is_ignored, list_files, printable, rejected_files
from tasks.dataset.images import SUFFIXES
from tasks.dataset.phantom import write_phantoms
from tasks.params import Params
from tasks.tracking import Tracker

log = logging.getLogger(__name__)


def acquire(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    """Write ``images/<class>/<path as in the source>``, ``source.json`` and, if files are rejected, ``rejected.json``.

    The source is not changed. Rejected files, such as links out of the folder, are not copied. The step ``validate``
    reports them together with the images that can't be decoded, and fails.

    Raises:
        ValueError: the source can't be used, or kagglehub is not installed.
        OSError: the download failed, or a file can't be read or written. A retry may succeed.
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
            name = Path(settings.folder).name
            _copy_images(workspace, Path(settings.folder), settings.classes, "acquire.folder")
        case "kaggle":
            name = settings.kaggle_dataset
            class_root = _find_class_root(_download(settings.kaggle_dataset), settings.classes)
            _copy_images(workspace, class_root, settings.classes, "acquire.kaggle_dataset")

    n_images = {cls: sum(file.is_file() for file in (workspace.images / cls).rglob("*")) for cls in settings.classes}
    source = {"source": settings.source, "name": name, "is_phantom": settings.source == "phantom", "n_images": n_images}
    workspace.source.write_text(json.dumps(source, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    log.info("%d images (%s): %s", sum(n_images.values()), name, n_images)
    tracker.dataset(workspace.images, name, "raw")
    tracker.metrics({"data/n_images": sum(n_images.values())})


def _copy_images(workspace: Workspace, folder: Path, classes: tuple[str, ...], key: str) -> None:
    """Copy a folder with one subfolder for each class, and write the list of rejected files.

    Args:
        workspace: the images are copied into it.
        folder: the source.
        classes: names of the subfolders.
        key: dotted key of the parameter that names the source, for messages.

    Raises:
        ValueError: the subfolders do not match the classes, or have no images; the message lists all problems.
    """
    if not folder.is_dir():
        raise ValueError(
            f"{key} is not a folder: {str(folder)!r}. It must be a folder with one subfolder for each class of "
            f"acquire.classes: {list(classes)}. Correct the path."
        )
    entries = [path for path in sorted(folder.iterdir()) if not is_ignored(path)]
    subfolders = [path.name for path in entries if path.is_dir()]
    other_files = [path for path in entries if not path.is_dir()]
    files = {name: list_files(folder / name) for name in classes if name in subfolders}
    problems = _subfolder_problems(folder, classes, subfolders)
    if images := [path for path in other_files if path.suffix.lower() in SUFFIXES]:
        problems.append(
            f"images outside the class subfolders: {_format_paths(images, folder)}. Every image must be in the "
            "subfolder of its class. Move them."
        )
    if empty := [name for name, found in files.items() if not found]:
        problems.append(
            f"subfolders without images: {empty}. Every class needs images. Add images, or remove the classes from "
            "acquire.classes."
        )
    if problems:
        raise ValueError("\n  ".join([f"{key} {str(folder)!r} can't be used:", *problems]))

    if other_files:
        log.warning("ignored files outside the class subfolders: %s", _format_paths(other_files, folder))
    all_files = [path for found in files.values() for path in found]
    rejected = rejected_files(all_files, folder)
    for path in all_files:
        if path not in rejected:
            target = workspace.images / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    if rejected:
        log.warning("rejected files, which the step validate reports: %s", _format_paths(list(rejected), folder))
        reasons = {printable(path, folder): reason for path, reason in rejected.items()}
        workspace.rejected.write_text(json.dumps(reasons, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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


def _format_paths(paths: list[Path], folder: Path) -> str:
    """The first five paths, and the number of paths if there are more."""
    names = ", ".join(repr(printable(path, folder)) for path in paths[:5])
    return names if len(paths) <= 5 else f"{names}, ... ({len(paths)} in all)"


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
            f"the archive of acquire.kaggle_dataset {dataset!r} can't be unpacked: {error}. It must be a valid archive "
            f"without paths outside its folder. Use another data set, {alternative}."
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
    below = sorted((path for path in folder.rglob("*") if path.is_dir()), key=lambda path: (len(path.parts), path))
    return next((parent for parent in [folder, *below] if all((parent / name).is_dir() for name in classes)), folder)


if __name__ == "__main__":
    from tasks.runner import main

    main(acquire)
