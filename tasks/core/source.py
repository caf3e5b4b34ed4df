"""The source code that this process runs, and the files that have changed since its start.

A module stays in memory as it was loaded. If its file changes while a step runs, DVC records the new file as the code
of the result, and a checkpoint would get the name of the new code.
"""

import hashlib
import sys
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = {".css", ".j2", ".js", ".py"}
"""Suffixes of source files; editors also write other files beside them."""


def digests_of_files(folder: Path, suffixes: Collection[str] = ()) -> dict[str, str]:
    """Return the SHA-256 of the files of a folder by their path in it; with suffixes, only of files that have one."""
    files = (path for path in sorted(folder.rglob("*")) if not suffixes or path.suffix in suffixes)
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.is_file()
    }


AT_START = digests_of_files(ROOT, SUFFIXES)
"""SHA-256 of every source file of the package ``tasks`` by its path below the package.

Read before any other module of the package is loaded: ``tasks/__init__.py`` imports this module first."""


def changed_sources() -> list[str]:
    """Return the paths of the source files that this process uses and that have changed since its start.

    A file is used if it was loaded as a module, or if it is no module and its package was loaded (a template).
    """
    now = digests_of_files(ROOT, SUFFIXES)
    changed = [Path(path) for path in sorted(AT_START.keys() | now.keys()) if AT_START.get(path) != now.get(path)]
    if not changed:
        # the paths of all modules take much longer than the digests
        return []
    modules = [Path(file).resolve() for module in [*sys.modules.values()] if (file := getattr(module, "__file__", ""))]
    loaded = {path.relative_to(ROOT) for path in modules if path.is_relative_to(ROOT)}
    packages = {path.parts[0] for path in loaded if len(path.parts) > 1}
    used = [path for path in changed if path in loaded or (path.suffix != ".py" and path.parts[0] in packages)]
    return [f"{ROOT.name}/{path.as_posix()}" for path in used]


def check_sources(work: str) -> None:
    """Check that the source code of this process has not changed since its start.

    Args:
        work: the running work, for the message.

    Raises:
        ValueError: files have changed; the message names them.
    """
    if changed := changed_sources():
        raise ValueError(
            f"code changed while {work} ran: {', '.join(changed)}. The code must stay the same until the end, since "
            "the result would be recorded with the new code. Run again."
        )
