"""Finished parts of a step, kept so that a killed one goes on where it was."""

import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from socket import gethostname
from typing import Any

import tasks

log = logging.getLogger(__name__)


class Shards:
    """Parts of a long work in a folder, each named by the digest of what it is made of.

    Args:
        folder: where they are.
        n_parts: how many there will be, for the progress that is told.
        same_for_all: ingredients of every part; like all ingredients, what JSON can hold.
    """

    def __init__(self, folder: Path, n_parts: int, **same_for_all: Any) -> None:
        self.folder = folder
        self.n_parts = n_parts
        self.same_for_all = same_for_all
        self.n_done = 0

    def finish(self, what: str, make: Callable[[Path], None], **ingredients: Any) -> Path:
        """The part that these ingredients make; made now, unless it is there from a run before.

        Args:
            what: the part, in words.
            make: fills a folder.
            ingredients: all that the part depends on, beyond what is the same for all.
        """
        began = time.monotonic()
        everything = json.dumps(self.same_for_all | ingredients, sort_keys=True)
        shard = self.folder / hashlib.sha256(everything.encode()).hexdigest()[:32]
        resumed = shard.exists()
        if not resumed:
            # it gets its name when it is whole; another worker may be at the same one, if it was thought dead
            partial = shard.with_suffix(f".{gethostname()}-{os.getpid()}-{threading.get_ident()}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            make(partial)
            try:
                partial.rename(shard)
            except OSError:
                if not shard.exists():
                    raise
                shutil.rmtree(partial)
        self.n_done += 1
        spent = "kept from a run before" if resumed else f"{time.monotonic() - began:.0f} s"
        log.info("%d/%d  %s: %s", self.n_done, self.n_parts, what, spent)
        return shard


def digest_of_code() -> str:
    """SHA-256 of the project's steps and of the versions of the libraries that its results depend on."""
    digest = hashlib.sha256()
    for library in ("adversarial-robustness-toolbox", "numpy", "scikit-activeml", "torch", "torchvision"):
        digest.update(f"{library} {version(library)}".encode())
    for folder in tasks.__path__:
        for source in sorted(Path(folder).rglob("*.py")):
            digest.update(source.read_bytes())
    return digest.hexdigest()
