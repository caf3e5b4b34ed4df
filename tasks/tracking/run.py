"""The run of a step: logged to MLflow, or journalled while MLflow's store is unavailable."""

import importlib.util
import logging
import re
import tempfile
import threading
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.core.workspace import SCHEMA_VERSION, Workspace
from tasks.params import Params
from tasks.params.params import STEP_PARAMS
from tasks.tracking.address import tracking_uri
from tasks.tracking.digests import digest_of
from tasks.tracking.errors import is_login_refused, is_unavailable
from tasks.tracking.masking import masked, plain_markdown
from tasks.tracking.open_runs import end_killed, registered
from tasks.tracking.origin import origin_tags
from tasks.tracking.outbox import Journal, now, reason, waiting
from tasks.tracking.store import Store
from tasks.tracking.tracker import MAX_NOTE_CHARACTERS, MAX_PARAM_CHARACTERS, Tracker

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

log = logging.getLogger(__name__)


NOT_IN_METRIC_KEYS = re.compile(r"[^/\w.\- :]")
"""Characters that MLflow does not allow in the name of a metric, such as quotation marks and per-cent signs."""


def metric_key(name: str) -> str:
    """Name of a metric in MLflow: ``_`` and its code in place of each character that is not allowed.

    So the classes ``5 %`` and ``5 &`` have different metrics, ``5 _25`` and ``5 _26``.
    """
    return NOT_IN_METRIC_KEYS.sub(lambda match: "".join(f"_{ord(each):x}" for each in match[0]), name)


class _MlflowTracker(Tracker):
    """Logs to MLflow's store. From the first failed connection on, all calls go to a journal in the outbox."""

    def __init__(self, workspace: Workspace, step: str, tags: Mapping[str, str]) -> None:
        self.workspace = workspace
        self.step = step
        self.run = uuid.uuid4().hex
        self.opening: dict[str, Any] = {"name": step, "tags": dict(tags), "start_time": now()}
        self.logged_params: dict[str, str] = {}
        self.store = Store()
        self.journal: Journal | None = None
        self.monitor: Any = None

    def open(self) -> None:
        """Create the run, end the runs of killed steps of this workspace, and start to log system metrics."""
        self._call("open", **self.opening)
        if self.journal is None:
            end_killed(self.workspace, self.store)
            self.monitor = self.store.monitor(self.run)

    def close(self, status: str) -> None:
        """End the run."""
        if self.monitor:
            self.monitor.finish()
        try:
            self._call("close", status=status, end_time=now())
        finally:
            if self.journal is not None:
                self.journal.end()

    def _call(self, method: str, run: str = "", **arguments: Any) -> Any:
        """Call a method of the store for a run (default: this run), or append the call to the journal.

        Returns:
            The result of the method; None if the call was journalled.
        """
        run = run or self.run
        if self.journal is None:
            try:
                return getattr(self.store, method)(run, **arguments)
            except Exception as error:
                if is_login_refused(error):
                    raise ValueError(
                        f"the tracking store at {masked(tracking_uri())} refuses user and password: set "
                        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
                    ) from error
                if not is_unavailable(error):
                    raise
                exists = (method, run) != ("open", self.run)
                self._start_journal(f"the tracking store is unavailable ({reason(error)})", exists)
        assert self.journal is not None
        self.journal.write(method, run, arguments)
        return None

    def _start_journal(self, why: str, run_exists: bool) -> None:
        self.journal = Journal(self.run, self.opening, run_exists)
        log.warning(
            "%s: %s. The run is journalled in %s. When the store is available again, send the journal:\n"
            "    python -m tasks.tracking sync",
            self.step,
            why,
            self.journal.folder,
        )

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self._metrics(self.run, [(step, values)])

    def _metrics(self, run: str, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        # Python's floats survive JSON exactly
        plain = [
            (int(step), {metric_key(key): float(value) for key, value in values.items()}) for step, values in points
        ]
        self._call("metrics", run, points=plain, time=now())

    def params(self, values: Mapping[str, Any]) -> None:
        texts = {key: str(value) for key, value in values.items()}
        if too_long := [key for key, text in texts.items() if len(text) > MAX_PARAM_CHARACTERS]:
            raise ValueError(
                f"values of the parameters {too_long} are too long. At most {MAX_PARAM_CHARACTERS} characters are "
                "allowed. Log long values as an artifact."
            )
        self.logged_params |= texts
        self._call("params", values=texts)

    def tags(self, values: Mapping[str, str]) -> None:
        self._call("tags", values=dict(values))

    def artifact(self, path: Path, folder: str = "") -> None:
        self._call("artifact", path=str(path), folder=folder)

    def images(self, path: Path) -> None:
        self._call("images", path=str(path), time=now())

    def dataset(self, path: Path, name: str, context: str) -> None:
        self._call("dataset", name=name, source=path.as_posix(), digest=digest_of(path), context=context)

    def model(self, name: str, module: "nn.Module", example: "np.ndarray") -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "model")
            if threading.current_thread() is threading.main_thread():
                _save_model(path, module, example)
            else:
                # torch.export patches torch for all threads, and another step can be training in one of them
                with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
                    process.submit(_save_model, path, module, example).result()
            self._call("model", name=name, path=path)

    def curve(
        self,
        name: str,
        tags: Mapping[str, str],
        points: Sequence[tuple[int, Mapping[str, float]]],
        artifacts: Sequence[Path] = (),
    ) -> None:
        run = uuid.uuid4().hex
        # a search by step finds the step alone
        inherited = {tag: value for tag, value in self.opening["tags"].items() if tag != "step"}
        tags = {**inherited, **tags, "kind": "curve"}
        self._call("open", run, name=name, tags=tags, start_time=now(), parent=self.run)
        self._call("params", run, values=self.logged_params)
        self._metrics(run, points)
        for path in artifacts:
            self._call("artifact", run, path=str(path), folder="")
        self._call("close", run, status="FINISHED", end_time=now())

    def note(self, markdown: str) -> None:
        if len(markdown) > MAX_NOTE_CHARACTERS:
            raise ValueError(
                f"the note has {len(markdown)} characters. At most {MAX_NOTE_CHARACTERS} are allowed. Shorten it."
            )
        self._call("tags", values={"mlflow.note.content": plain_markdown(markdown)})

    def link_steps(self) -> None:
        steps = {self.workspace.step_of(folder): folder for folder in self.workspace.outputs()}
        digests = {step: digest_of(folder) for step, folder in steps.items() if step != self.step}
        missing = self._call("link", digests=digests)
        for step in missing or []:
            log.info("No run in the tracking store made the present outputs of %s: not linked", step)
        if missing and self.journal is None and waiting():
            # a missing run can be in the outbox, and this run must be sent after it
            self._start_journal("runs of other steps are in the outbox", run_exists=True)
            self._call("link", digests=digests)


@contextmanager
def open_run(
    workspace: Workspace,
    step: str,
    folder: Path,
    params: Params,
    orchestrator: str,
    tags: Mapping[str, str] | None = None,
) -> Iterator[Tracker]:
    """Open the tracking run of a step.

    The run logs the parameters that the step reads; the run of the report logs all. Its tags say with which code and on
    which machine it was computed (:func:`tasks.tracking.origin.origin_tags`). At the end it is tagged with the
    digest of the outputs; an exception marks it as failed. If the store becomes unavailable, a warning is logged, and
    all further calls are journalled in the outbox. Without mlflow the step runs untracked.

    Args:
        workspace: where the step runs.
        step: ``step`` or ``step@defence``; for another name all parameters are logged.
        folder: output folder of the step.
        params: all parameters.
        orchestrator: a tag of the run: ``dvc``, ``prefect`` or ``python``.
        tags: further tags of the run.
    """
    if importlib.util.find_spec("mlflow") is None:
        log.info("mlflow is not installed: %s runs untracked", step)
        yield Tracker()
        return

    own = {"step": step, "orchestrator": orchestrator, "kind": "step", "schema_version": str(SCHEMA_VERSION)}
    tags = {**own, **origin_tags(), **(tags or {})}
    tracker = _MlflowTracker(workspace, step, tags)
    with registered(workspace, tracker.run):
        tracker.open()
        try:
            name, _, defence = step.partition("@")
            # the run of the report stands for the whole pipeline
            has_own_params = name in STEP_PARAMS and name != "report"
            tracker.params(params.of_step(name, defence or None) if has_own_params else params.flat())
            yield tracker
            tracker.tags({"outputs_md5": digest_of(folder)})
        except BaseException as error:
            try:
                tracker.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            except Exception as untracked:
                # the error of the step is more important
                log.error("The tracking run of %s was not ended: %s", step, reason(untracked))
            raise
        tracker.close("FINISHED")


def _save_model(path: str, module: "nn.Module", example: "np.ndarray") -> None:
    import mlflow
    import torch

    with torch.no_grad():
        output = module(torch.from_numpy(example)).numpy()
    with warnings.catch_warnings():
        # about tensors that are parts of a larger one; all weights are saved
        warnings.filterwarnings("ignore", message="No complete tensor found in the group")
        mlflow.pytorch.save_model(
            module,
            path,
            input_example=example,
            signature=mlflow.models.infer_signature(example, output),
            # on Databricks the default is a pickle
            serialization_format="pt2",
            # MLflow's inference of requirements starts a process and takes nine seconds
            pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
        )
