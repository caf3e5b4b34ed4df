"""What DVC knows of the workspace: which steps there are, which have changed, and what they made before."""

from collections.abc import Callable
from threading import Lock

import networkx
from dvc.repo import Repo
from dvc.stage import PipelineStage
from dvc.stage.cache import RunCacheNotFoundError

from tasks.params import Params, load_params


class Workspace:
    """The pipeline in the working folder, as ``dvc.yaml`` and ``dvc.lock`` tell it.

    Its calls may come from several threads; DVC's own lock keeps other processes out.
    """

    def __init__(self) -> None:
        self._repo = Repo()
        self._lock = Lock()

    def steps(self) -> dict[str, list[str]]:
        """Every step with the steps that it waits for, in an order in which they can run."""
        graph = self._repo.index.graph
        stages = networkx.lexicographical_topological_sort(graph.reverse(), key=lambda stage: stage.addressing)
        return {stage.addressing: sorted(needed.addressing for needed in graph.successors(stage)) for stage in stages}

    def changed(self, step: str) -> bool:
        """Whether the step's code, parameters, inputs or outputs are not those of its last run."""
        return self._ask(lambda: bool(self._stage(step).changed()))

    def anything_changed(self) -> bool:
        """Whether any step has to run."""
        return self._ask(lambda: any(stage.changed() for stage in self._repo.index.stages))

    def restore(self, step: str) -> bool:
        """Take the outputs out of DVC's cache, if the step ever ran with the same code, parameters and inputs."""

        def restore() -> bool:
            stage = self._stage(step)
            try:
                self._repo.stage_cache.restore(stage)
            except RunCacheNotFoundError:
                return False
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

    def _stage(self, step: str) -> PipelineStage:
        return self._repo.stage.load_one(name=step)

    def _ask(self, question: Callable[[], bool]) -> bool:
        with self._lock, self._repo.lock:
            # stages and hashes may have changed since the last question
            self._repo._reset()
            return question()
