"""What DVC knows of the workspace: which steps there are, which have changed, and what they made before."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any, TypeVar

import dvc.api
import networkx
from dvc.dependency.param import ParamsDependency
from dvc.exceptions import ConfirmRemoveError
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.rwlock import rwlock
from dvc.stage import PipelineStage
from dvc.stage.cache import RunCacheNotFoundError

from tasks import paths
from tasks.params import Params, load_params

PATIENCE = 2
"""Seconds between two looks at a lock that another process holds."""

T = TypeVar("T")

log = logging.getLogger(__name__)


class Workspace:
    """The pipeline in the working folder, as ``dvc.yaml`` and ``dvc.lock`` tell it.

    Its calls may come from several threads. Other processes, ``dvc repro`` among them, are kept out by DVC's own locks;
    where one is at the same files, calls wait, and say for whom.
    """

    def __init__(self) -> None:
        self._repo = Repo()
        self._lock = Lock()

    def steps(self) -> dict[str, list[str]]:
        """Every step with the steps that it waits for, in an order in which they can run."""
        # a data set under `dvc add` or `dvc import-url` is a node of DVC's graph, but no step
        graph = self._repo.index.graph.subgraph(self._pipeline())
        stages = networkx.lexicographical_topological_sort(graph.reverse(), key=lambda stage: stage.addressing)
        return {stage.addressing: sorted(needed.addressing for needed in graph.successors(stage)) for stage in stages}

    @contextmanager
    def claimed(self, step: str) -> Iterator[None]:
        """A step's inputs are not written, and its outputs not touched, by another process in the meantime."""
        stage = self._stage(step)
        # DVC's own calls within the claim know it by the same words
        words = " ".join(sys.argv)
        read, write = ([str(item.fs_path) for item in items] for items in (stage.deps, stage.outs))
        claim = rwlock(self._repo.tmp_dir, self._repo.fs, words, read, write, hardlink=False)
        with ExitStack() as stack:
            self._ask(lambda: stack.enter_context(claim))
            try:
                yield
            finally:
                with self._lock:
                    stack.close()

    def changed(self, step: str) -> bool:
        """Whether the step's code, parameters, inputs or outputs are not those of its last run."""
        return self._ask(lambda: bool(self._stage(step).changed()))

    def anything_changed(self) -> bool:
        """Whether any step has to run."""
        return self._ask(lambda: any(stage.changed() for stage in self._pipeline()))

    def restore(self, step: str) -> bool:
        """Take the outputs out of DVC's cache, if the step ever ran with the same code, parameters and inputs."""

        def restore() -> bool:
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
        with self._lock:
            self._repo.commit(target=step, force=True)

    def inputs(self, step: str) -> list[str]:
        """What the step reads of other steps, and the sections of the parameters that it depends on."""
        stage = self._stage(step)
        sections = [name for item in stage.deps if isinstance(item, ParamsDependency) for name in item.params]
        files = [item.def_path for item in stage.deps if not isinstance(item, ParamsDependency)]
        return [path for path in files if not path.startswith("tasks/")] + [f"{paths.PARAMS}: {', '.join(sections)}"]

    def _pipeline(self) -> list[PipelineStage]:
        return [stage for stage in self._repo.index.stages if isinstance(stage, PipelineStage)]

    def _stage(self, step: str) -> PipelineStage:
        return self._repo.stage.load_one(name=step)

    def _ask(self, question: Callable[[], T]) -> T:
        told = False
        while True:
            try:
                with self._lock, self._repo.lock:
                    # stages and hashes may have changed since the last question
                    self._repo._reset()
                    return question()
            except LockError as error:
                if not told:
                    log.warning("Waiting: %s", " ".join(str(error).split("\n\n")[0].split()))
                    told = True
                time.sleep(PATIENCE)


def metrics_of(revision: str) -> dict[str, float]:
    """Headline metrics of a commit or an experiment, by dotted name."""
    return flat(dvc.api.metrics_show(paths.METRICS.as_posix(), rev=revision))


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of nested sections by dotted name."""
    found: dict[str, float] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found
