"""Checkpoints: finished parts of a long step, kept on disk so that a killed step resumes.

A checkpoint is named by a digest of everything that made it: the parameters that the step reads, the seed, the compute
settings, the inputs, the code of the packages that can change the result, and the versions of the libraries. If any of
them changes, the checkpoint is not found and the part is computed again.
"""

import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from socket import gethostname
from typing import Any

from tasks.core import source
from tasks.core.durable import rename_durably

DIGESTS = "digests.json"
"""File of a checkpoint: the SHA-256 of its other files."""

LIBRARIES = ("adversarial-robustness-toolbox", "numpy", "scikit-learn", "torch", "torchvision")
"""Libraries whose version can change a result."""

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one step.

    Args:
        folder: where they are kept.
        code: packages or modules that can change the result, as paths below ``tasks/`` (``attacks``,
            ``dataset/prepared.py``).
        n_parts: number of parts, for the progress messages; 0: messages without numbers.
        common: ingredients of every checkpoint; JSON can hold them.
    """

    def __init__(self, folder: Path, code: Iterable[str], n_parts: int = 0, **common: Any) -> None:
        self.folder = folder
        self.n_parts = n_parts
        self.n_done = 0
        self._common = {"code": digest_of_code(tuple(code)), **common}

    def path(self, **ingredients: Any) -> Path:
        """Path of the checkpoint that these and the common ingredients make.

        Args:
            ingredients: everything that made the checkpoint beyond the common ingredients; JSON can hold them.
        """
        overlap = self._common.keys() & ingredients.keys()
        assert not overlap, f"{sorted(overlap)} are common ingredients"
        everything = json.dumps(self._common | ingredients, sort_keys=True)
        return self.folder / hashlib.sha256(everything.encode()).hexdigest()[:32]

    def get_or_compute(self, description: str, compute: Callable[[Path], None], **ingredients: Any) -> Path:
        """Folder of a finished part; the part is computed if it has no checkpoint yet.

        Args:
            description: the part in words, for the progress message.
            compute: fills an empty folder with the results of the part.
            ingredients: see :meth:`path`.
        """
        began = time.monotonic()
        checkpoint = self.path(**ingredients)
        resumed = is_intact(checkpoint)
        if not resumed:
            shutil.rmtree(checkpoint, ignore_errors=True)
            # renamed once it is complete; another worker may compute the same part if this one was considered dead
            partial = checkpoint.with_suffix(f".{gethostname()}-{os.getpid()}-{threading.get_ident()}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            compute(partial)
            source.check_sources(description)
            (partial / DIGESTS).write_text(json.dumps(source.digests_of_files(partial)), encoding="utf-8")
            try:
                rename_durably(partial, checkpoint)
            except OSError:
                if not checkpoint.exists():
                    raise
                shutil.rmtree(partial)
        self.n_done += 1
        outcome = "resumed from a checkpoint" if resumed else f"{time.monotonic() - began:.0f} s"
        progress = f"{self.n_done}/{self.n_parts}  " if self.n_parts else ""
        log.info("%s%s: %s", progress, description, outcome)
        return checkpoint


def is_intact(checkpoint: Path) -> bool:
    """Return whether a checkpoint exists and its files hold the bytes that were written."""
    if not checkpoint.exists():
        return False
    try:
        written = json.loads((checkpoint / DIGESTS).read_bytes())
        found = source.digests_of_files(checkpoint)
        del found[DIGESTS]
        if found == written:
            return True
    except (OSError, ValueError):
        # its list of digests is damaged, too
        pass
    log.warning("The checkpoint %s is damaged: its part is computed again", checkpoint)
    return False


def digest_of_code(code: tuple[str, ...]) -> str:
    """SHA-256 of the source files of packages, as they were at the start, and of the versions of the libraries.

    Args:
        code: packages or modules as paths below ``tasks/``.
    """
    digest = hashlib.sha256()
    for library in LIBRARIES:
        digest.update(f"{library} {version(library)}".encode())
    for name in code:
        files = {path: of_file for path, of_file in source.AT_START.items() if f"{path}/".startswith(f"{name}/")}
        assert files, f"no code in {name}"
        for path, of_file in files.items():
            digest.update(f"{path} {of_file}".encode())
    return digest.hexdigest()
