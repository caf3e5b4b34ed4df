"""Bring the raw images into ``data/acquire/images/<class>/``, byte for byte, from one of three sources."""

import json
import logging
import shutil
import tarfile
import zipfile
from pathlib import Path

from tasks.core.workspace import Workspace
from tasks.dataset.folder import files_below, is_litter, printable, refusals
from tasks.dataset.images import SUFFIXES
from tasks.dataset.phantom import write_phantoms
from tasks.params import Params
from tasks.tracking import Tracker

log = logging.getLogger(__name__)


def acquire(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    """Write ``images/<class>/<path as in the source>`` and ``source.json``; the source is never changed.

    Files that are not taken, such as links out of the folder, are left to ``validate`` in ``refused.json``: it stops
    the pipeline with one report of these and of images that do not decode.

    Raises:
        ValueError: the source can't be used as it is, or kagglehub is not installed.
        OSError: the download failed, or a file can't be read or written; another try may help.
    """
    settings = params.acquire
    match settings.source:
        case "phantom":
            name, size = "phantoms", settings.phantom
            write_phantoms(
                workspace.images, settings.classes, settings.positive_class, size.n_patients, size.n_slices, params.seed
            )
        case "folder":
            name = Path(settings.folder).name
            _copy_images(workspace, Path(settings.folder), settings.classes, "acquire.folder")
        case "kaggle":
            name = settings.kaggle_dataset
            downloaded = _download(settings.kaggle_dataset)
            _copy_images(
                workspace, _folder_of_classes(downloaded, settings.classes), settings.classes, "acquire.kaggle_dataset"
            )

    n_images = {cls: sum(file.is_file() for file in (workspace.images / cls).rglob("*")) for cls in settings.classes}
    source = {"source": settings.source, "name": name, "is_phantom": settings.source == "phantom", "n_images": n_images}
    workspace.source.write_text(json.dumps(source, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    log.info("%d images (%s): %s", sum(n_images.values()), name, n_images)
    tracker.dataset(workspace.images, name, "raw")
    tracker.metrics({"data/n_images": sum(n_images.values())})


def _copy_images(workspace: Workspace, folder: Path, classes: tuple[str, ...], key: str) -> None:
    """Copy a folder with one subfolder a class; write down the files that are not taken.

    Raises:
        ValueError: the subfolders are not the classes; all that is wrong, in one message that begins with ``key``.
    """
    if not folder.is_dir():
        raise ValueError(f"{key} {str(folder)!r} is no folder; it must hold one subfolder a class: {list(classes)}")
    problems = []
    entries = [path for path in sorted(folder.iterdir()) if not is_litter(path)]
    subfolders = [path.name for path in entries if path.is_dir()]
    if missing := [name for name in classes if name not in subfolders]:
        problems.append(f"no subfolder for acquire.classes {missing}: there must be one a class, found {subfolders}")
    if unlisted := [name for name in subfolders if name not in classes]:
        problems.append(f"subfolders {unlisted} are not in acquire.classes {list(classes)}: add them or move them away")
    if linked := [name for name in subfolders if (folder / name).is_symlink()]:
        problems.append(f"subfolders {linked} are symbolic links, which are not followed: put the folders there")
    beside = [path for path in entries if not path.is_dir()]
    if images := [path for path in beside if path.suffix.lower() in SUFFIXES]:
        problems.append(f"images beside the class subfolders belong to no class: {_some(images, folder)}")
    files = {name: files_below(folder / name) for name in classes if name in subfolders}
    if empty := [name for name, found in files.items() if not found]:
        problems.append(f"no images in {empty}: fill these subfolders, or take them out of acquire.classes")
    if problems:
        raise ValueError("\n  ".join([f"{key} {str(folder)!r} can't be used:", *problems]))

    if beside:
        log.warning("left out, since they lie beside the class subfolders: %s", _some(beside, folder))
    everything = [path for found in files.values() for path in found]
    refused = refusals(everything, folder)
    for path in everything:
        if path in refused:
            continue
        target = workspace.images / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    if refused:
        log.warning("not taken, which validate will report: %s", _some(list(refused), folder))
        reasons = {printable(path, folder): reason for path, reason in refused.items()}
        workspace.refused.write_text(json.dumps(reasons, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _some(files: list[Path], folder: Path) -> str:
    """The first five names and how many there are."""
    names = ", ".join(repr(printable(path, folder)) for path in files[:5])
    return names if len(files) <= 5 else f"{names}, ... ({len(files)} in all)"


def _download(dataset: str) -> Path:
    """Folder of the Kaggle data set, from kagglehub's cache where it is complete.

    Raises:
        ValueError: kagglehub is not installed, Kaggle refuses this data set, or its archive leads out of its folder.
        ConnectionError: the network or Kaggle failed.
    """
    instead = "or get the data set by other means and use acquire.source: folder"
    try:
        import kagglehub
        import kagglehub.exceptions
    except ModuleNotFoundError:
        raise ValueError(f"acquire.source kaggle needs kagglehub: pip install kagglehub, {instead}") from None
    try:
        return Path(kagglehub.dataset_download(dataset))
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"acquire.kaggle_dataset {dataset!r}: kagglehub won't unpack its archive ({error}); {instead}"
        ) from error
    except (OSError, kagglehub.exceptions.DataCorruptionError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in {401, 403, 404}:
            raise ValueError(
                f"acquire.kaggle_dataset {dataset!r} was refused with HTTP status {status}; check its name, {instead}"
            ) from error
        raise ConnectionError(
            f"downloading {dataset!r} from Kaggle failed ({type(error).__name__}); check the network, {instead}"
        ) from error


def _folder_of_classes(folder: Path, classes: tuple[str, ...]) -> Path:
    """The folder nearest to the top that has a subfolder for every class; ``folder`` itself where none has."""
    below = sorted((path for path in folder.rglob("*") if path.is_dir()), key=lambda path: (len(path.parts), path))
    return next((place for place in [folder, *below] if all((place / name).is_dir() for name in classes)), folder)


if __name__ == "__main__":
    from tasks.runner import main

    main(acquire)
