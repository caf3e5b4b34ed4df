"""Bring the raw images into ``data/acquire/images/<class>/``, byte for byte, from one of three sources."""

import json
import logging
import os
import shutil
import unicodedata
from pathlib import Path

from tasks import paths
from tasks.dataset.images import SUFFIXES
from tasks.dataset.phantom import write_phantoms
from tasks.params import Params
from tasks.tracking import Tracker

LITTER = {"thumbs.db", "desktop.ini"}
"""What file managers leave behind; names that begin with a dot are passed over as well."""

log = logging.getLogger(__name__)


def acquire(params: Params, tracker: Tracker) -> None:
    """Write ``images/<class>/<path as in the source>`` and ``source.json``; the source is never changed.

    Raises:
        ValueError: the source can't be used as it is, or kagglehub is not installed.
        OSError: the download failed, or a file can't be read or written; another try may help.
    """
    settings = params.acquire
    match settings.source:
        case "phantom":
            name, size = "phantoms", settings.phantom
            write_phantoms(
                paths.IMAGES, settings.classes, settings.positive_class, size.n_patients, size.n_slices, params.seed
            )
        case "folder":
            name = Path(settings.folder).name
            _copy_images(Path(settings.folder), settings.classes, "acquire.folder")
        case "kaggle":
            name = settings.kaggle_dataset
            downloaded = _download(settings.kaggle_dataset)
            _copy_images(_folder_of_classes(downloaded, settings.classes), settings.classes, "acquire.kaggle_dataset")

    n_images = {cls: sum(file.is_file() for file in (paths.IMAGES / cls).rglob("*")) for cls in settings.classes}
    source = {"source": settings.source, "name": name, "is_phantom": settings.source == "phantom", "n_images": n_images}
    paths.SOURCE.write_text(json.dumps(source, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    log.info("%d images (%s): %s", sum(n_images.values()), name, n_images)
    tracker.dataset(paths.IMAGES, name, "raw")
    tracker.metrics({"data/n_images": sum(n_images.values())})


def _copy_images(folder: Path, classes: tuple[str, ...], key: str) -> None:
    """Copy a folder with one subfolder a class, once nothing in it is unexpected.

    Raises:
        ValueError: everything that is wrong with the folder, in one message that begins with ``key``.
    """
    if not folder.is_dir():
        raise ValueError(f"{key} {str(folder)!r} is no folder; it must hold one subfolder a class: {list(classes)}")
    problems = []
    entries = [path for path in sorted(folder.iterdir()) if not _is_hidden(path)]
    subfolders = [path.name for path in entries if path.is_dir()]
    if missing := [name for name in classes if name not in subfolders]:
        problems.append(f"no subfolder for acquire.classes {missing}: there must be one a class, found {subfolders}")
    if unlisted := [name for name in subfolders if name not in classes]:
        problems.append(f"subfolders {unlisted} are not in acquire.classes {list(classes)}: add them or move them away")
    beside = [path for path in entries if not path.is_dir()]
    if images := [path for path in beside if path.suffix.lower() in SUFFIXES]:
        problems.append(f"images beside the class subfolders belong to no class: {_some(images, folder)}")

    files = {name: _files(folder / name) for name in classes if name in subfolders}
    everything = [path for found in files.values() for path in found]
    if linked := [path for path in everything if _leads_away(path, folder)]:
        problems.append(f"symbolic links to folders or out of the source are not followed: {_some(linked, folder)}")
    if other := [path for path in everything if path not in linked and not _is_image_file(path)]:
        problems.append(f"files that are no {'/'.join(SUFFIXES)}, move them away: {_some(other, folder)}")
    if empty := [name for name, found in files.items() if not found]:
        problems.append(f"no images in {empty}: fill these subfolders, or take them out of acquire.classes")
    if alike := _differ_only_in_case(everything, folder):
        problems.append(f"names that differ only in case or accents' encoding, rename them: {_some(alike, folder)}")
    if unreadable := [path for path in everything if _has_odd_characters(path.relative_to(folder))]:
        problems.append(f"names with undecodable or control characters, rename them: {_some(unreadable, folder)}")
    if problems:
        raise ValueError("\n  ".join([f"{key} {str(folder)!r} can't be used:", *problems]))

    if beside:
        log.warning("left out, since they lie beside the class subfolders: %s", _some(beside, folder))
    for path in everything:
        target = paths.IMAGES / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _files(folder: Path) -> list[Path]:
    """All that lies under a folder except hidden entries, sorted; links to folders are listed, not followed."""

    def fail(error: OSError) -> None:
        raise error

    found = []
    for place, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not _is_hidden(Path(name))]
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        found += [Path(place) / name for name in files + links if not _is_hidden(Path(name))]
    return sorted(found)


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in LITTER


def _leads_away(path: Path, folder: Path) -> bool:
    return path.is_symlink() and (path.is_dir() or not path.resolve().is_relative_to(folder.resolve()))


def _is_image_file(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _differ_only_in_case(files: list[Path], folder: Path) -> list[Path]:
    """Files that would be one and the same on a file system that ignores case or normalises Unicode."""
    alike: dict[str, list[Path]] = {}
    for path in files:
        name = path.relative_to(folder).as_posix()
        alike.setdefault(unicodedata.normalize("NFC", name).casefold(), []).append(path)
    return [path for same in alike.values() if len(same) > 1 for path in same]


def _has_odd_characters(path: Path) -> bool:
    # control characters, and the surrogates that stand for bytes that are no UTF-8
    return any(unicodedata.category(character) in {"Cc", "Cs"} for character in str(path))


def _some(files: list[Path], folder: Path) -> str:
    """The first five names and how many there are."""
    names = ", ".join(repr(path.relative_to(folder).as_posix()) for path in files[:5])
    return names if len(files) <= 5 else f"{names}, ... ({len(files)} in all)"


def _download(dataset: str) -> Path:
    """Folder of the Kaggle data set, from kagglehub's cache where it is complete.

    Raises:
        ValueError: kagglehub is not installed, or Kaggle refuses this data set.
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
