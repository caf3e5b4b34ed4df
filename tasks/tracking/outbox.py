"""What a store that could not be reached shall still hear: kept on disk, a folder for each run, and sent later.

A run's folder holds ``journal.jsonl``, whose first line says which run it is and whose others are calls of
:class:`tasks.tracking.store.Store` in their order, and below ``files/`` copies of the artifacts that they name. Who
writes or sends a journal holds a lock on it.
"""

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from tasks.tracking.masking import masked
from tasks.tracking.store import Store, is_unreachable, tracking_uri

log = logging.getLogger(__name__)

JOURNAL = "journal.jsonl"


def outbox() -> Path:
    """The folder in which runs wait: ``CT_ROBUSTNESS_OUTBOX``, or ``tracking-outbox`` in the working folder."""
    return Path(os.environ.get("CT_ROBUSTNESS_OUTBOX") or "tracking-outbox")


def waiting() -> list[Path]:
    """Folders of the runs that wait, the oldest first."""
    return sorted(journal.parent for journal in outbox().glob(f"*/{JOURNAL}"))


class Journal:
    """What one run says while the store is out, appended line by line."""

    def __init__(self, run: str, opening: Mapping[str, Any], begun: bool) -> None:
        """Begin a folder.

        Args:
            run: key of the run.
            opening: what :meth:`tasks.tracking.store.Store.open` takes beside the key.
            begun: whether the store has opened the run already.
        """
        # names sort by time: what a report links to was begun before it
        self.folder = outbox() / f"{opening['start_time']}-{opening['name']}-{run[:8]}"
        self.folder.mkdir(parents=True)
        self._n_files = 0
        self._file = (self.folder / "begun").open("x", encoding="utf-8")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._append({"run": run, "store": _address(), "begun": begun, "opening": opening})
        # it has this name only when it has a lock and a head
        (self.folder / "begun").rename(self.folder / JOURNAL)

    def write(self, call: str, run: str, arguments: Mapping[str, Any]) -> None:
        """Keep one call; a file or folder at its ``path`` is copied."""
        if "path" in arguments:
            arguments = {**arguments, "path": self._copy(Path(arguments["path"]))}
        self._append({"call": call, "run": run, "at": now(), "arguments": arguments})

    def end(self) -> None:
        """Let others read."""
        self._file.close()

    def _copy(self, path: Path) -> str:
        self._n_files += 1
        copy = Path("files", str(self._n_files), path.name)
        (self.folder / copy).parent.mkdir(parents=True)
        if path.is_dir():
            shutil.copytree(path, self.folder / copy)
        else:
            shutil.copyfile(path, self.folder / copy)
        return copy.as_posix()

    def _append(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def sync(moved: bool = False) -> bool:
    """Send every run that waits to the store, the oldest first, and delete what was sent.

    A run whose step was killed ends as killed, when it was last heard of. What can't be sent stays, whole, and is said.

    Args:
        moved: whether the store may have another address than the one that the runs were meant for.

    Returns:
        whether nothing waits any more.
    """
    store = Store()
    for folder in waiting():
        try:
            with _locked(folder) as journal:
                if journal is None:
                    log.warning("%s is being written by its step, or sent: left as it is", folder.name)
                    continue
                n_calls = _send(store, folder, journal, moved)
                # first, so that no kill leaves a journal without its files
                (folder / JOURNAL).unlink()
                shutil.rmtree(folder)
                log.info("%s: sent (%d calls)", folder.name, n_calls)
        except Exception as error:
            log.error("%s: not sent: %s", folder.name, reason(error))
            if is_unreachable(error):
                break
    return not waiting()


def reason(error: Exception) -> str:
    """What an error says, in 160 characters."""
    return masked(str(error))[:160]


def now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


@contextmanager
def _locked(folder: Path) -> Iterator[TextIO | None]:
    with (folder / JOURNAL).open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file


def _address() -> str:
    return masked(tracking_uri())


def _send(store: Store, folder: Path, journal: TextIO, moved: bool) -> int:
    # a kill may have left half a line at the end
    head, *calls = [json.loads(line) for line in journal if line.endswith("\n")]
    run = head["run"]
    if not store.has(run):
        if head["begun"]:
            raise ValueError(
                f"its run was begun in the store at {head['store']}, and is not in the one at {_address()}; "
                "set MLFLOW_TRACKING_URI"
            )
        if head["store"] != _address() and not moved:
            raise ValueError(
                f"it is meant for the store at {head['store']}, not for {_address()}; "
                "set MLFLOW_TRACKING_URI, or add --moved if the store is here now"
            )
        store.open(run, **head["opening"])
    for line in calls:
        if line["call"] == "open" and store.has(line["run"]):
            continue
        arguments = line["arguments"]
        if "path" in arguments:
            arguments = {**arguments, "path": str(folder / arguments["path"])}
        missing = getattr(store, line["call"])(line["run"], **arguments)
        if missing:
            log.info("%s: no run in the store made what is in %s: not linked", folder.name, ", ".join(missing))
    if not calls or (calls[-1]["call"], calls[-1]["run"]) != ("close", run):
        last = calls[-1]["at"] if calls else head["opening"]["start_time"]
        store.close(run, "KILLED", last)
    return len(calls)
