"""The outbox: runs that are journalled on disk while the tracking store is unavailable, and sent later.

Each run has a folder. Its ``journal.jsonl`` has one line for the run, and one line for each call of a method of
:class:`tasks.tracking.store.Store`, in order. The folder ``files/`` has copies of the artifacts. The process that
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

from tasks.core.durable import rename_durably
from tasks.tracking.address import experiment_name, home, tracking_uri
from tasks.tracking.errors import is_refused, is_unavailable
from tasks.tracking.masking import masked
from tasks.tracking.store import Store

log = logging.getLogger(__name__)

JOURNAL = "journal.jsonl"
DAMAGED = "damaged.jsonl"
"""Name of a journal that cannot be sent; its folder keeps it."""

METHODS = ("open", "close", "metrics", "params", "tags", "artifact", "images", "dataset", "model", "link")
"""Methods of :class:`tasks.tracking.store.Store` that a journal can call."""


class DamagedJournal(ValueError):
    """A journal is empty, has a line that this module did not write, or has a call that the store refuses."""


def outbox() -> Path:
    """Folder of the journals: ``CT_ROBUSTNESS_OUTBOX``, by default ``tracking-outbox`` beside the default store."""
    return Path(os.environ.get("CT_ROBUSTNESS_OUTBOX") or home() / "tracking-outbox")


def waiting() -> list[Path]:
    """Folders of the journalled runs, oldest first."""
    return sorted(journal.parent for journal in outbox().glob(f"*/{JOURNAL}"))


class Journal:
    """The journal of one run."""

    def __init__(self, run: str, opening: Mapping[str, Any], run_exists: bool) -> None:
        """Create the folder.

        Args:
            run: key of the run.
            opening: arguments of :meth:`tasks.tracking.store.Store.open` beside the key.
            run_exists: True if the run exists in the store.
        """
        # sorted by time, so that the run of a report is sent after the runs that it links to
        self.folder = outbox() / f"{opening['start_time']}-{opening['name']}-{run[:8]}"
        self.folder.mkdir(parents=True)
        self._n_files = 0
        self._file = (self.folder / "new").open("x", encoding="utf-8")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        head = {"run": run, "store": _address(), "experiment": experiment_name(), "run_exists": run_exists}
        self._append({**head, "opening": opening})
        # the journal gets its name when it is locked and has its first line
        rename_durably(self.folder / "new", self.folder / JOURNAL)

    def write(self, method: str, run: str, arguments: Mapping[str, Any]) -> None:
        """Append one call, and copy the file or folder of its argument ``path``."""
        if "path" in arguments:
            arguments = {**arguments, "path": self._copy(Path(arguments["path"]))}
        self._append({"method": method, "run": run, "at": now(), "arguments": arguments})

    def end(self) -> None:
        """Release the lock."""
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
        os.fsync(self._file.fileno())


def sync(moved: bool = False) -> bool:
    """Send every journal to its experiment in the store, oldest first, and delete the sent journals.

    The run of a killed step ends as killed, at the time of its last call. A journal that cannot be sent stays complete,
    and an error is logged. An outage ends the command. A journal that can never be sent is set aside.

    Args:
        moved: whether the store may have another address than the one for which the journals were written.

    Returns:
        Whether the outbox is empty.
    """
    stores: dict[str, Store] = {}
    for folder in waiting():
        try:
            with _locked(folder) as journal:
                if journal is None:
                    log.warning("%s: not sent: its step, or another command, is using it", folder.name)
                    continue
                n_calls = _send(stores, folder, journal, moved)
                # a kill must not leave a journal without its files
                (folder / JOURNAL).unlink()
                shutil.rmtree(folder)
                log.info("%s: sent (%d calls)", folder.name, n_calls)
        except DamagedJournal as error:
            (folder / JOURNAL).rename(folder / DAMAGED)
            log.error(
                "%s: cannot be sent: %s. It is kept as %s. Correct it and rename it to %s, or delete its folder.",
                *(folder.name, error, folder / DAMAGED, JOURNAL),
            )
        except Exception as error:
            log.error("%s: not sent: %s", folder.name, reason(error))
            if is_unavailable(error):
                break
    return not waiting()


def reason(error: Exception) -> str:
    """The first line of the message of an error, in at most 160 characters."""
    return masked(str(error).partition("\n")[0])[:160]


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


def _lines(journal: TextIO) -> list[dict[str, Any]]:
    """Return the run and its calls.

    Raises:
        DamagedJournal: there is no line, or a line is not what :class:`Journal` writes.
    """
    # a kill can leave half a line at the end
    texts = [line for line in journal if line.endswith("\n")]
    try:
        head, *calls = [json.loads(text) for text in texts]
        is_written_here = head.keys() == {"run", "store", "experiment", "run_exists", "opening"}
        is_written_here &= isinstance(head["run"], str) and isinstance(head["experiment"], str)
        is_written_here &= all(call.keys() == {"method", "run", "at", "arguments"} for call in calls)
        is_written_here &= all(call["method"] in METHODS and isinstance(call["arguments"], dict) for call in calls)
    except (ValueError, KeyError, TypeError, AttributeError):
        is_written_here = False
    if not is_written_here:
        raise DamagedJournal(f"its journal of {len(texts)} lines is empty or damaged")
    return [head, *calls]


def _own_file(folder: Path, path: str) -> Path:
    """Return the copy of an artifact in the folder of its journal.

    Raises:
        DamagedJournal: it is not there.
    """
    own = folder / path
    if (
        not own.exists()
        or not own.resolve().is_relative_to((folder / "files").resolve())
        or any(each.is_symlink() for each in (own, *own.rglob("*")))
    ):
        raise DamagedJournal(f"{path} is not one of its own files")
    return own


def _call(store: Store, method: str, run: str, arguments: Mapping[str, Any]) -> Any:
    """Call a method of the store.

    Raises:
        DamagedJournal: the store refuses the arguments.
    """
    try:
        return getattr(store, method)(run, **arguments)
    except Exception as error:
        if is_refused(error):
            raise DamagedJournal(f"the store refuses its call of {method} ({reason(error)})") from error
        raise


def _send(stores: dict[str, Store], folder: Path, journal: TextIO, moved: bool) -> int:
    """Send one journal; ``stores`` has a store for each experiment. Return the number of calls.

    Raises:
        DamagedJournal: it cannot be sent; its run in the store has ended as failed.
    """
    head, *calls = _lines(journal)
    run = head["run"]
    store = stores.setdefault(head["experiment"], Store(head["experiment"]))
    if not store.has(run):
        if head["run_exists"]:
            raise ValueError(
                f"its run is in the store at {head['store']}, and not in the one at {_address()}. "
                "Set MLFLOW_TRACKING_URI to the first one."
            )
        if head["store"] != _address() and not moved:
            raise ValueError(
                f"it is for the store at {head['store']}, not for {_address()}. "
                "Set MLFLOW_TRACKING_URI, or add --moved if the store has this new address."
            )
        _call(store, "open", run, head["opening"])
    for line in calls:
        if line["method"] == "open" and store.has(line["run"]):
            continue
        arguments = line["arguments"]
        try:
            if "path" in arguments:
                arguments = {**arguments, "path": str(_own_file(folder, arguments["path"]))}
            missing = _call(store, line["method"], line["run"], arguments)
        except DamagedJournal:
            # otherwise MLflow would show a run that never ends
            store.close(run, "FAILED", line["at"])
            raise
        if missing:
            log.info("%s: no run in the store made the outputs of %s: not linked", folder.name, ", ".join(missing))
    if not calls or (calls[-1]["method"], calls[-1]["run"]) != ("close", run):
        last = calls[-1]["at"] if calls else head["opening"]["start_time"]
        store.close(run, "KILLED", last)
    return len(calls)
