"""Folders of images that others made: what is in them, and which files are not taken, by name."""

import os
import unicodedata
from pathlib import Path

from tasks.dataset.images import SUFFIXES

LITTER = {"thumbs.db", "desktop.ini"}
"""What file managers leave behind; names that begin with a dot are passed over as well."""

ODD = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode's categories of control characters, of surrogates, which stand for bytes that are no UTF-8, and of line
ends: no table or message holds such a name as it is."""


def is_litter(path: Path) -> bool:
    """Whether a file or folder is passed over: hidden, or left by a file manager."""
    return path.name.startswith(".") or path.name.lower() in LITTER


def files_below(folder: Path) -> list[Path]:
    """All that lies under a folder except litter, sorted; links to folders are listed, not followed.

    Raises:
        OSError: a subfolder can't be read.
    """

    def fail(error: OSError) -> None:
        raise error

    found = []
    for place, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not is_litter(Path(name))]
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        found += [Path(place) / name for name in files + links if not is_litter(Path(name))]
    return sorted(found)


def refusals(files: list[Path], folder: Path) -> dict[Path, str]:
    """Those of the files below a folder that are not taken, and why; contents are not looked at."""
    alike: dict[str, list[Path]] = {}
    for path in files:
        alike.setdefault(_as_careless_systems_see_it(path, folder), []).append(path)
    refused = {}
    for path in files:
        others = [other for other in alike[_as_careless_systems_see_it(path, folder)] if other != path]
        if reason := _reason(path, folder):
            refused[path] = reason
        elif others:
            refused[path] = (
                f"the name differs from {printable(others[0], folder)} only in case or in how accents are encoded, "
                "which some file systems take for one; rename it"
            )
    return refused


def printable(path: Path, folder: Path) -> str:
    """Path below a folder with slashes, odd characters escaped as in Python."""
    name = path.relative_to(folder).as_posix()
    return repr(name)[1:-1] if _is_odd(name) else name


def _reason(path: Path, folder: Path) -> str | None:
    if path.is_symlink():
        if path.is_dir():
            return "a symbolic link to a folder is not followed; put the files there"
        # not Path.resolve, which raises where links go round in circles
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
            return "a symbolic link out of the folder is not followed; put the file there"
        if not path.exists():
            return "a symbolic link that leads nowhere; put the file there"
    if path.suffix.lower() not in SUFFIXES:
        return f"no {'/'.join(SUFFIXES)} by its name; move it away"
    if not path.is_file():
        return "no regular file; move it away"
    if _is_odd(path.relative_to(folder).as_posix()):
        return "the name holds undecodable or control characters; rename it"
    return None


def _as_careless_systems_see_it(path: Path, folder: Path) -> str:
    """What is left of a name where a file system ignores case or normalises Unicode."""
    return unicodedata.normalize("NFC", path.relative_to(folder).as_posix()).casefold()


def _is_odd(name: str) -> bool:
    return any(unicodedata.category(character) in ODD for character in name)
