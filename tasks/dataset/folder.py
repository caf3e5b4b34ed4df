"""Files in the user's folder of images: list them, and reject files because of their name or type."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from tasks.dataset.readers import IMAGE_NAME, SUFFIXES, has_image_name
from tasks.params.names import FORMULA, has_unprintable_characters

IGNORED_NAMES = {"thumbs.db", "desktop.ini"}
"""Files of file managers, in lower case."""

MAX_FILE_BYTES = 2 * 2**30
"""Maximum size of a file, which is known before the file is copied or read; a sparse file can have any size."""


def is_ignored(path: Path) -> bool:
    """Return whether a file or folder is ignored: its name starts with a dot, or a file manager made it."""
    return path.name.startswith(".") or path.name.lower() in IGNORED_NAMES


def list_files(folder: Path) -> list[Path]:
    """All files below a folder that are not ignored, sorted. Links to folders are listed, but not followed.

    Raises:
        OSError: a subfolder cannot be read.
    """

    def raise_error(error: OSError) -> None:
        raise error

    found = []
    for parent, folders, files in os.walk(folder, onerror=raise_error):
        folders[:] = [name for name in folders if not is_ignored(Path(name))]
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        found += [Path(parent) / name for name in files + links if not is_ignored(Path(name))]
    return sorted(found)


def rejected_files(files: list[Path], folder: Path) -> dict[Path, str]:
    """Files that are rejected because of their name or type, with the reason. At most 132 bytes are read.

    Args:
        files: paths below ``folder``.
        folder: folder of the images.
    """
    names = {path: normalized_name(path.relative_to(folder).as_posix()) for path in files}
    same_name: dict[str, list[Path]] = {}
    for path, name in names.items():
        same_name.setdefault(name, []).append(path)
    rejected = {}
    for path, name in names.items():
        others = [other for other in same_name[name] if other != path]
        if reason := _rejection_reason(path, folder):
            rejected[path] = reason
        elif others:
            rejected[path] = (
                f"the name differs from {printable(others[0], folder)} only in case or in how accents are encoded. "
                "Some file systems treat such names as equal. Rename the file."
            )
    return rejected


def normalized_name(name: str) -> str:
    """Name with normalized case and Unicode. Some file systems treat names with the same result as equal."""
    return unicodedata.normalize("NFC", name).casefold()


def printable(path: Path, folder: Path) -> str:
    """Path with slashes, relative to a folder if it is below it. Unprintable characters are escaped as in Python."""
    name = (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()
    return repr(name)[1:-1] if has_unprintable_characters(name) else name


def format_paths(paths: Sequence[Path], folder: Path) -> str:
    """The first five paths, and the number of paths if there are more."""
    names = ", ".join(repr(printable(path, folder)) for path in paths[:5])
    return names if len(paths) <= 5 else f"{names}, ... ({len(paths)} in all)"


def _rejection_reason(path: Path, folder: Path) -> str | None:
    if path.is_symlink() and path.is_dir():
        return "symbolic link to a folder. Such links are not followed. Copy the files into the folder."
    # every folder of the path can be a link; not Path.resolve, which raises an error for circular links
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        return "symbolic link out of the folder. Such links are not followed. Copy the file into the folder."
    if path.is_symlink() and not path.exists():
        return "symbolic link whose target does not exist. Replace the link by the file."
    if not path.is_file():
        return "not a regular file, but for example a pipe or a device. Move it away."
    if not has_image_name(path):
        return (
            f"not an image by its name; move it away. Names of images end with {', '.join(SUFFIXES)}; a DICOM file may "
            "have any name."
        )
    if IMAGE_NAME.fullmatch(path.name):
        return (
            "the name ends with # and at least four digits. Such names are for the images of a file with several "
            "images. Rename the file."
        )
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        return f"the file has {size / 2**30:.1f} GiB. At most {MAX_FILE_BYTES / 2**30:g} are allowed. Move it away."
    if has_unprintable_characters(path.relative_to(folder).as_posix()):
        return "the name contains undecodable or control characters. Rename the file."
    # tables name a file after its class or ./
    if FORMULA.search(f"./{path.relative_to(folder).as_posix()}"):
        return (
            "the name has =, +, - or @ after a semicolon. Spreadsheet programs read it as a formula. Rename the file."
        )
    return None
