"""Locks of folders with results: while one process writes a folder, no other process reads or writes it.

A lock is held by an open file. It ends with its process, also if the process is killed. Lock files are never removed.
"""

import fcntl
import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path, writes: Iterable[str] = (), reads: Iterable[str] = ()) -> Iterator[None]:
    """Lock folders; wait until no other thread or process writes those to read, or uses those to write.

    Args:
        folder: of the lock files.
        writes: names of the folders to write.
        reads: names of the folders to read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kinds = dict.fromkeys(reads, fcntl.LOCK_SH) | dict.fromkeys(writes, fcntl.LOCK_EX)
    with ExitStack() as stack:
        # all processes lock in the same order, so that no two wait for each other
        for name, kind in sorted(kinds.items()):
            # to read and write: on NFS a shared lock needs a file that is open to read
            file = stack.enter_context((folder / name).open("a+"))
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                log.warning("Waiting: another run uses %s", name)
                fcntl.flock(file, kind)
        yield
