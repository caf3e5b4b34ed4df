"""Open runs: a locked file for each, so that a later step finds the runs whose process was killed."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO

from tasks.core.workspace import Workspace
from tasks.tracking.errors import is_unavailable
from tasks.tracking.store import Store

log = logging.getLogger(__name__)


@contextmanager
def registered(workspace: Workspace, run: str) -> Iterator[None]:
    """Keep a file for an open run. The file is locked while this process lives.

    After an exception the file stays, and a later step checks whether the run was ended in the store.

    Args:
        workspace: where the step runs.
        run: key of the run.
    """
    workspace.open_runs.mkdir(parents=True, exist_ok=True)
    path = workspace.open_runs / run
    with ExitStack() as stack:
        while True:
            file = stack.enter_context(path.open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
            # another step can have removed the file before the lock was set
            if _exists(file):
                break
        yield
        path.unlink(missing_ok=True)


def end_killed(workspace: Workspace, store: Store) -> None:
    """End the runs of killed processes as killed. If the store is unavailable, a later step does it."""
    for path in sorted(workspace.open_runs.glob("*")):
        if not path.is_file():
            continue
        try:
            with path.open() as file:
                if _is_abandoned(file):
                    # a run that is not in the store is in the outbox, or was never created
                    if store.has(path.name) and store.kill(path.name):
                        log.info("Ended the run of a killed step in the tracking store")
                    path.unlink()
        except FileNotFoundError:
            # its process has just ended, or another step has removed the file
            continue
        except Exception as error:
            if not is_unavailable(error):
                raise
            return


def _is_abandoned(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return _exists(file)


def _exists(file: IO[str]) -> bool:
    """Return whether an open file still has a name."""
    return os.fstat(file.fileno()).st_nlink > 0
