"""What DVC knows of the workspace: which steps there are, which have changed, and what they made before.

DVC tells a changed file by its time, size and inode, and takes a read-only file of its cache for whole. Bytes that turn
on a disk change none of these, so what is restored or read is hashed here.
"""

import hashlib
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import dvc.api
import networkx
from dvc.dependency.param import ParamsDependency
from dvc.dvcfile import LOCK_FILE, Lockfile
from dvc.exceptions import ConfirmRemoveError
from dvc.lock import LockError, make_lock
from dvc.output import Output
from dvc.repo import Repo, lock_repo
from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK, rwlock
from dvc.stage import PipelineStage
from dvc.stage.cache import RunCacheNotFoundError
from dvc.utils.serialize import YAMLFileCorruptedError
from dvc.utils.strictyaml import YAMLValidationError

from tasks.params import Params, load_params
from tasks.tracking import digest_of

PATIENCE = 2
"""Seconds between two looks at a lock that another process holds."""

OBJECT = re.compile(r"[0-9a-f]{32}(\.dir)?")
"""Name of a file in DVC's cache, its folder's two digits before it."""

T = TypeVar("T")

log = logging.getLogger(__name__)


class DvcPipeline:
    """The pipeline in the working folder, as ``dvc.yaml`` and ``dvc.lock`` tell it.

    Its calls may come from several threads, of which one at a time is let at DVC, which is not made for more. Other
    processes, ``dvc repro`` among them, are kept out by DVC's own locks; where one is at the same files, calls wait,
    and say for whom.

    DVC writes its own files in place, so that one may be half-written where DVC was killed. Such a file is set aside:
    results come out of DVC's cache, and claims were those of processes that are no more.

    Raises:
        ValueError: ``dvc.lock`` holds both sides of a merge.
    """

    def __init__(self) -> None:
        self._repo = Repo()
        self._lock = Lock()
        self._ask(self._set_half_written_aside)

    def steps(self) -> dict[str, list[str]]:
        """Every step with the steps that it waits for, in an order in which they can run."""
        # a data set under `dvc add` or `dvc import-url` is a node of DVC's graph, but no step
        graph = self._ask(lambda: self._repo.index.graph.subgraph(self._pipeline()))
        stages = networkx.lexicographical_topological_sort(graph.reverse(), key=lambda stage: stage.addressing)
        return {stage.addressing: sorted(needed.addressing for needed in graph.successors(stage)) for stage in stages}

    @contextmanager
    def claimed(self, step: str) -> Iterator[None]:
        """A step's inputs are not written, and its outputs not touched, by another process in the meantime."""
        stage = self._ask(lambda: self._stage(step))
        read, write = ([str(item.fs_path) for item in items] for items in (stage.deps, stage.outs))
        place, words = (self._repo.tmp_dir, self._repo.fs), " ".join(sys.argv)

        def claim() -> ExitStack:
            with ExitStack() as stack:
                # readers by names of their own: of the same words DVC counts one, who would go with the first of them
                stack.enter_context(rwlock(*place, f"{words}: {step}", read, [], hardlink=False))
                # DVC's own calls within the claim know it by the same words
                stack.enter_context(rwlock(*place, words, [], write, hardlink=False))
                return stack.pop_all()

        claimed = self._ask(claim)
        try:
            yield
        finally:
            with self._lock:
                claimed.close()

    def changed(self, step: str) -> bool:
        """Whether the step's code, parameters, inputs or outputs are not those of its last run."""
        return self._ask(lambda: bool(self._stage(step).changed()))

    def anything_changed(self) -> bool:
        """Whether any step has to run."""
        return self._ask(lambda: any(stage.changed() for stage in self._pipeline()))

    def restore(self, step: str) -> bool:
        """Take the outputs out of DVC's cache, if the step ever ran with the same code, parameters and inputs.

        Where the cache holds other bytes than were recorded, these are removed, and nothing is restored.
        """

        def restore() -> bool:
            for path in self._cached(step):
                drop_if_damaged(path)
            stage = self._stage(step)
            try:
                self._repo.stage_cache.restore(stage)
            except RunCacheNotFoundError:
                return False
            except ConfirmRemoveError:
                # a failed run left outputs that no cache has; a run would remove them, too
                stage.remove_outs(force=True)
                self._repo.stage_cache.restore(stage)
            # as DVC does after a run: the stage still knows the outputs that were there before
            stage.save()
            stage.commit()
            stage.dump(update_pipeline=False)
            return True

        return self._ask(restore)

    def record(self, step: str, params: Params) -> None:
        """Tell DVC that the step has just run with these parameters.

        Raises:
            RuntimeError: params.yaml has changed since, so that DVC would record what did not happen.
        """
        if load_params() != params:
            raise RuntimeError(f"params.yaml changed while {step} ran; its result is not recorded. Run again.")
        self._ask(lambda: self._repo.commit(target=step, force=True))

    def check_inputs(self, step: str) -> None:
        """Hash what the step reads of other steps.

        Raises:
            ValueError: a file does not hold the bytes that were recorded.
        """
        deps = self._ask(lambda: self._stage(step).deps)
        needed = [Path(item.fs_path) for item in deps if not isinstance(item, ParamsDependency)]
        outs = self._ask(lambda: [out for stage in self._pipeline() for out in stage.outs])
        read = [out for out in outs if any(Path(out.fs_path).is_relative_to(item) for item in needed)]
        if found := [path for out in read for path in altered(out)]:
            names = ", ".join(str(path.relative_to(self._repo.root_dir)) for path in found[:5])
            raise ValueError(
                f"{step} would read {names}{', ...' if len(found) > 5 else ''}, where other bytes are than were "
                "recorded; python -m flows.verify lets DVC see it, and the next run makes it anew"
            )

    def unseen_changes(self) -> list[Path]:
        """Files that do not hold the recorded bytes unseen by DVC; a folder where its list of them is lost."""
        outs = self._ask(
            lambda: [
                out for out in self._repo.index.outs if out.hash_info and out.exists and not out.changed_checksum()
            ]
        )
        return [path for out in outs for path in altered(out)]

    def cached_objects(self) -> list[Path]:
        """All files of DVC's cache that are named after their content."""
        folder = Path(self._repo.cache.local.path)
        return sorted(path for path in folder.glob("*/*") if OBJECT.fullmatch(path.parent.name + path.name))

    def inputs(self, step: str) -> list[str]:
        """What the step reads of other steps, and the sections of the parameters that it depends on."""
        deps = self._ask(lambda: self._stage(step).deps)
        sections = [name for item in deps if isinstance(item, ParamsDependency) for name in item.params]
        files = [item.def_path for item in deps if not isinstance(item, ParamsDependency)]
        return [path for path in files if not path.startswith("tasks/")] + [f"params.yaml: {', '.join(sections)}"]

    def _set_half_written_aside(self) -> None:
        folder = Path(self._repo.tmp_dir)
        recorded, claims = Path(self._repo.root_dir) / LOCK_FILE, folder / RWLOCK_FILE
        with make_lock(str(folder / RWLOCK_LOCK), tmp_dir=str(folder)):
            for path in (recorded, claims):
                if not path.exists() or self._is_whole(path):
                    continue
                kept = folder / f"{path.name}.half-written"
                path.replace(kept)
                name, place = (each.relative_to(self._repo.root_dir) for each in (path, kept))
                log.error("%s was half-written, as by a DVC that was killed: moved to %s", name, place)

    def _is_whole(self, path: Path) -> bool:
        """Whether DVC can read one of its files."""
        text = path.read_text(encoding="utf-8", errors="replace")
        if "\n<<<<<<< " in text and path.name == LOCK_FILE:
            raise ValueError(
                f"{LOCK_FILE} holds both sides of a merge: take one of them (git checkout --ours {LOCK_FILE}, or "
                "--theirs), and run again; what ran before comes out of DVC's cache"
            )
        try:
            if path.name == LOCK_FILE:
                Lockfile(self._repo, str(path)).load()
            else:
                json.loads(text)
        except (YAMLFileCorruptedError, YAMLValidationError, json.JSONDecodeError):
            return False
        return True

    def _cached(self, step: str) -> list[Path]:
        """Files of DVC's cache that restoring the step would take, so far as they are there."""
        # of its own: with the inputs of now, DVC would take what the stage made last for what it is to make
        stage = self._stage(step)
        digests = [out.hash_info.value for out in stage.outs if out.hash_info]
        stage.save_deps()
        if entry := self._repo.stage_cache._load(stage):
            digests += [out["md5"] for out in entry["outs"]]
        place = self._repo.cache.local.oid_to_path
        lists = {Path(place(digest)) for digest in digests}
        files = {Path(place(entry["md5"])) for path in lists for entry in entries(path)}
        return sorted(path for path in lists | files if path.exists())

    def _pipeline(self) -> list[PipelineStage]:
        return [stage for stage in self._repo.index.stages if isinstance(stage, PipelineStage)]

    def _stage(self, step: str) -> PipelineStage:
        return self._repo.stage.load_one(name=step)

    def _ask(self, question: Callable[[], T]) -> T:
        told = False
        while True:
            try:
                # which also forgets stages and hashes: they may have changed since the last question
                with self._lock, lock_repo(self._repo):
                    return question()
            except LockError as error:
                if not told:
                    log.warning("Waiting: %s", " ".join(str(error).split("\n\n")[0].split()))
                    told = True
                time.sleep(PATIENCE)


def altered(out: Output) -> list[Path]:
    """Files of an output that do not hold the recorded bytes; a folder itself where DVC's list of its files is lost.

    Args:
        out: of a stage; missing files are none of those meant.
    """
    place = Path(out.fs_path)
    # data sets of other stores and of DVC 2 have hashes of other kinds
    if not out.hash_info or out.hash_info.name != "md5" or not out.use_cache or not place.exists():
        return []
    # a file has no list
    listed = entries(Path(out.cache.oid_to_path(out.hash_info.value)))
    if not listed:
        return [place] if digest_of(place) != out.hash_info.value else []
    files = {place / entry["relpath"]: entry["md5"] for entry in listed}
    return [path for path, digest in files.items() if path.is_file() and digest_of(path) != digest]


def entries(path: Path) -> list[dict[str, str]]:
    """Files that an object of DVC's cache lists; none where it is no list, not there or damaged."""
    if path.suffix != ".dir" or not path.exists() or is_damaged(path):
        return []
    found: list[dict[str, str]] = json.loads(path.read_bytes())
    return found


def is_damaged(path: Path) -> bool:
    """Whether a file of DVC's cache does not hold what its name says."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return digest != path.parent.name + path.stem


def drop_if_damaged(path: Path) -> bool:
    """Remove a file of DVC's cache that does not hold what its name says; whether it did not."""
    if not is_damaged(path):
        return False
    log.warning("Removed from DVC's cache, where it holds other bytes than were recorded: %s", path)
    path.unlink()
    return True


def metrics_of(revision: str) -> dict[str, float]:
    """Headline metrics of a commit or an experiment, by dotted name."""
    return flat(dvc.api.metrics_show("data/evaluate/metrics.json", rev=revision))


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of nested sections by dotted name."""
    found: dict[str, float] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found
