"""Outputs that were made with other inputs than the present ones, if a step in between was left out."""

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tasks.core.workspace import Workspace
from tasks.params import UNDEFENDED


def check_made_with(
    made: Path, step: str, recorded: Mapping[str, Any], source: Path, present: Mapping[str, Any]
) -> None:
    """Refuse an output that was made with other values than the present ones.

    Args:
        made: file of the output.
        step: the step that made it.
        recorded: values that it was made with, as far as they are known.
        source: file or folder that has the present values.
        present: the present values.

    Raises:
        ValueError: a value differs.
    """
    for name, value in recorded.items():
        if value != present[name]:
            raise ValueError(
                f"{made} was made with {name} {value}, and {source} has {name} {present[name]}. Both must be "
                f"equal. Run the step {step} again: dvc repro {step}"
            )


def digest_of_text(text: str) -> str:
    """Digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def inputs_of_attack(workspace: Workspace, target: str) -> dict[str, str]:
    """Digests of the files that an attack reads, by path: images, split, and networks with their files."""
    own = "train_surrogates" if target == UNDEFENDED else f"train_defence/{target}"
    found = [workspace.pixels, workspace.split]
    for folder in (workspace.train_classifier, workspace.data / own):
        networks = sorted(folder.glob("*.safetensors"))
        copied = [file for file in sorted(folder.glob("files/**/*")) if file.is_file() and file.suffix != ".pyc"]
        found += [*networks, *(network.with_suffix(".json") for network in networks), *copied]
    return {file.relative_to(workspace.root).as_posix(): digest_of_file(file) for file in found}


def digest_of_file(file: Path) -> str:
    """Digest of a file, which is read again only if it has changed."""
    state = file.stat()
    return _digest(file, state.st_ino, state.st_size, state.st_mtime_ns)


@cache
def _digest(file: Path, *_state: int) -> str:
    """Digest of a file in a given state: the images are read once for all targets."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]
