"""Runs that are open: a note of each on disk, by which a later step finds those whose process was killed."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO

from tasks.core.workspace import Workspace
from tasks.tracking.store import Store, is_unreachable

log = logging.getLogger(__name__)


@contextmanager
def noted(workspace: Workspace, run: str) -> Iterator[None]:
    """Keep a note of a run while it is open; it is locked as long as this process lives.

    After an exception the note stays: whoever finds it looks whether the run could be ended.

    Args:
        workspace: where inputs are read and outputs written.
        run: its key.
    """
    workspace.open_runs.mkdir(parents=True, exist_ok=True)
    note = workspace.open_runs / run
    with ExitStack() as stack:
        while True:
            file = stack.enter_context(note.open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
            # another step may have taken it for left before it had its lock
            if _is_there(file):
                break
        yield
        note.unlink(missing_ok=True)


def end_killed(workspace: Workspace, store: Store) -> None:
    """End the runs of this workspace as killed whose process is gone; where the store is out, a later step does."""
    for note in sorted(workspace.open_runs.glob("*")):
        try:
            with note.open() as file:
                if _is_left(file):
                    # one that is not there waits in the outbox, or was never begun
                    if store.has(note.name) and store.kill(note.name):
                        log.info("a run that was killed is ended in the tracking store")
                    note.unlink()
        except FileNotFoundError:
            # its process has just ended, or another step did the same
            continue
        except Exception as error:
            if not is_unreachable(error):
                raise
            return


def _is_left(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return _is_there(file)


def _is_there(file: IO[str]) -> bool:
    """Whether this very file still has a name."""
    return os.fstat(file.fileno()).st_nlink > 0
