"""The pipeline of the current folder in DVC: its steps, their changes, and outputs of earlier runs.

A flow runs a step in its own process and then commits the outputs to DVC. DVC has no public call for two parts of this,
so this module, and no other one, uses internals of DVC: the locks on files that keep ``dvc repro`` away from a running
step (``rwlock``), and outputs from the run cache without running the command (``stage_cache``).
"""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import dvc.api
from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.lock import LockError
from dvc.repo import Repo, lock_repo
from dvc.rwlock import rwlock
from dvc.scm import Git, SCMError
from dvc.stage.cache import RunCacheNotFoundError
from scmrepo.exceptions import SCMError as NoCommitError

from tasks.core.workspace import Workspace
from tasks.params import Params, flatten
from tasks.step_inputs import check_unchanged
from tasks.tracking import digest_of, masked

LOCK_FILE = Path("dvc.lock")
LOCK_POLL_SECONDS = 2

CACHED_OBJECT = re.compile(r"[0-9a-f]{32}(\.dir)?")
"""Name of a file in DVC's cache, with the name of its folder (two digits) in front."""

T = TypeVar("T")

log = logging.getLogger(__name__)


class DvcPipeline:
    """The pipeline of the current folder.

    Several threads may call the methods; they take turns. If another process holds DVC's locks, for example
    ``dvc repro``, a call waits and logs the name of that process once.

    A killed DVC can leave a half-written ``dvc.lock``. The file is moved to ``.dvc/tmp``, and the next run restores the
    outputs of finished steps from the run cache.

    Raises:
        ValueError: ``dvc.lock`` has merge conflicts, or the folder is no git repository with a commit.
    """

    def __init__(self) -> None:
        try:
            self._repo = Repo()
            if isinstance(self._repo.scm, Git):
                self._repo.scm.get_rev()
        except (NotDvcRepoError, SCMError, NoCommitError) as error:
            raise ValueError(
                f"{error}. DVC needs a git repository with a commit, which a downloaded archive does not have. In this "
                "folder, run: git init && git add . && git commit -m start"
            ) from None
        self._lock = Lock()
        self._call(self._move_half_written_files)

    def steps(self) -> dict[str, list[str]]:
        """All steps and the steps that each of them needs, in an order in which they can run."""
        graph = self._call(lambda: self._repo.index.graph)
        # a data set of `dvc add` or `dvc import-url` is a node without a command
        stages = sorted((stage for stage in graph if stage.cmd), key=lambda stage: stage.addressing)
        needed = {
            stage.addressing: sorted(each.addressing for each in graph.successors(stage) if each.cmd)
            for stage in stages
        }
        return {step: needed[step] for step in TopologicalSorter(needed).static_order()}

    def changed(self, step: str) -> bool:
        """Return whether code, parameters, inputs or outputs of a step differ from those of its last run."""
        return bool(self._call(lambda: self._repo.status(step)))

    def anything_changed(self) -> bool:
        """Return whether any step has changed."""
        status = self._call(lambda: self._repo.status())
        return any(step in status for step in self.steps())

    def inputs(self, step: str) -> list[str]:
        """Files and folders that a step depends on, without code."""
        paths = [dep.def_path for dep in self._stage(step).deps]
        return [path for path in paths if not path.startswith("tasks/")]

    @contextmanager
    def claimed(self, step: str) -> Iterator[None]:
        """Keep other processes from writing the inputs of a step and from touching its outputs."""
        stage = self._stage(step)
        inputs, outputs = ([item.fs_path for item in items] for items in (stage.deps, stage.outs))
        lock = partial(rwlock, self._repo.tmp_dir, self._repo.fs, hardlink=False)
        command = " ".join(sys.argv)

        def claim() -> ExitStack:
            with ExitStack() as stack:
                # DVC counts equal commands of one process once, and two steps may read the same file
                stack.enter_context(lock(f"{command}: {step}", inputs, []))
                # DVC's own calls use this command, so the claim does not block `record`
                stack.enter_context(lock(command, [], outputs))
                return stack.pop_all()

        claimed = self._call(claim)
        try:
            yield
        finally:
            self._call(claimed.close)

    def restore(self, step: str) -> bool:
        """Restore the outputs of a step from DVC's run cache.

        Returns:
            False if the step never ran with the present code, parameters and inputs, or if the cached outputs are
            damaged; damaged files are moved out of the cache.
        """

        def restore() -> bool:
            stage = self._repo.stage.load_one(name=step)
            # `dvc repro` removes them, too; they may be the rest of a failed run
            stage.remove_outs(force=True)
            try:
                self._repo.stage_cache.restore(stage)
            except RunCacheNotFoundError:
                return False
            self._repo.commit(step, force=True)
            return True

        if not self._call(restore):
            return False
        if corrupted_outputs(self._stage(step).outs):
            self.set_aside_damaged_objects()
            return False
        return True

    def record(self, step: str, params: Params) -> None:
        """Commit the outputs of a step that has just run with these parameters.

        Raises:
            ValueError: parameters or code have changed since then, so DVC would record other ones.
        """
        check_unchanged(Workspace(), step, params)
        self._call(lambda: self._repo.commit(step, force=True))

    def check_inputs(self, step: str) -> None:
        """Hash the outputs that a step reads.

        Raises:
            ValueError: an output does not hold the bytes that DVC recorded.
        """
        outs = [out for needed in self.steps()[step] for out in self._stage(needed).outs]
        if corrupted := corrupted_outputs(outs):
            raise ValueError(
                f"an input of {step} does not hold the recorded bytes: {', '.join(map(relative, corrupted))}. "
                "Run python -m flows.verify, then run again: DVC restores or repeats the step that made it."
            )

    def silent_corruption(self) -> list[Path]:
        """Outputs and data sets that do not hold the recorded bytes although DVC reports no change."""
        outs = self._call(lambda: [out for out in self._repo.index.outs if out.hash_info and is_unchanged(out)])
        return corrupted_outputs(outs)

    def set_aside_damaged_objects(self) -> list[Path]:
        """Move the files whose content does not match their name out of DVC's cache, and return their new paths.

        They are kept in ``.dvc/tmp/damaged``: a file can be the only copy of an image.
        """
        files = sorted(Path(self._repo.cache.local.path).glob("*/*"))
        objects = [path for path in files if CACHED_OBJECT.fullmatch(path.parent.name + path.name)]
        damaged = [path for path in objects if digest_of(path) != path.parent.name + path.stem]
        folder = Path(self._repo.tmp_dir) / "damaged"
        folder.mkdir(exist_ok=True)
        moved = [Path(shutil.move(path, folder / (path.parent.name + path.name))) for path in damaged]
        for path in moved:
            log.warning("Moved a damaged file out of DVC's cache: %s", relative(path))
        return moved

    def _stage(self, step: str) -> Any:
        return self._call(lambda: self._repo.stage.load_one(name=step))

    def _move_half_written_files(self) -> None:
        """Move ``dvc.lock`` and DVC's list of locked files away if a kill cut them off: DVC writes them in place."""
        folder = Path(self._repo.tmp_dir)
        for path, is_readable in ((LOCK_FILE, self._can_read_lock_file), (folder / "rwlock", is_json)):
            if path.exists() and not is_readable(path):
                moved = path.replace(folder / f"{path.name}.half-written")
                log.error("%s is half-written: moved to %s", relative(path), relative(moved))

    def _can_read_lock_file(self, path: Path) -> bool:
        if "\n<<<<<<< " in path.read_text(encoding="utf-8", errors="replace"):
            raise ValueError(
                f"{path} has merge conflicts. Take one side (git checkout --ours {path}, or --theirs) and run again: "
                "DVC restores the outputs of finished steps."
            )
        try:
            _ = self._repo.index.stages
        except DvcException as error:
            if path.name in str(error):
                return False
            raise
        return True

    def _call(self, function: Callable[[], T]) -> T:
        """Call a function that uses DVC, as the only thread and process that does."""
        has_warned = False
        while True:
            try:
                # lock_repo also drops the cached stages and hashes, which may have changed
                with self._lock, lock_repo(self._repo):
                    return function()
            except LockError as error:
                if not has_warned:
                    log.warning("Waiting: %s", " ".join(str(error).split("\n\n")[0].split()))
                    has_warned = True
                time.sleep(LOCK_POLL_SECONDS)


def is_unchanged(out: Any) -> bool:
    """Return whether DVC finds no change of an output."""
    try:
        return out.exists and not out.changed_checksum()
    except FileNotFoundError:
        # a link to a file of the cache that is no longer there
        return False


def corrupted_outputs(outs: Iterable[Any]) -> list[Path]:
    """Paths of the outputs that exist and do not hold the recorded bytes.

    Args:
        outs: outputs of stages and data sets. Those outside of DVC's cache, and those that DVC 2 or another store
            hashed, are not checked.
    """
    return [
        path
        for out in outs
        if out.hash_info and out.hash_info.name == "md5" and out.use_cache
        if (path := Path(out.fs_path)).exists() and digest_of(path) != out.hash_info.value
    ]


def is_json(path: Path) -> bool:
    """Return whether a file holds one JSON value."""
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def relative(path: Path) -> str:
    """A path as seen from the current folder."""
    return Path(os.path.relpath(path)).as_posix()


def metrics_of(revision: str) -> dict[str, float]:
    """Headline metrics of a commit or an experiment, by dotted name."""
    # dvc.api.metrics_show also reads the workspace, and fails if it has no results
    return flatten(json.loads(dvc.api.read("data/evaluate/metrics.json", rev=revision)))


def run_dvc(*arguments: str) -> str:
    """Run DVC's command line of this environment, and return its output.

    Raises:
        RuntimeError: DVC failed. The message has the last lines of the output.
    """
    dvc = Path(sys.executable).parent / "dvc"
    done = subprocess.run(  # noqa: S603  a list of arguments, no shell  # nosec B603
        [dvc, *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if done.returncode:
        lines = "\n".join(done.stdout.splitlines()[-15:])
        raise RuntimeError(masked(f"dvc {' '.join(arguments)} failed:\n{lines}"))
    return done.stdout
