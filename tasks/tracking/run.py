"""The run of a step: what the step says goes to MLflow, and into the outbox from the moment in which MLflow is out."""

import importlib.util
import logging
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.core.workspace import Workspace
from tasks.params import Params
from tasks.tracking.digests import digest_of
from tasks.tracking.masking import masked
from tasks.tracking.open_runs import end_killed, noted
from tasks.tracking.outbox import Journal, now, reason, waiting
from tasks.tracking.store import Store, is_locked, is_unreachable, tracking_uri
from tasks.tracking.tracker import MAX_NOTE_CHARACTERS, MAX_PARAM_CHARACTERS, Tracker

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

log = logging.getLogger(__name__)


class _RunTracker(Tracker):
    """Turns what a step says into calls of the store, on paper if need be."""

    def __init__(self, workspace: Workspace, step: str, tags: Mapping[str, str]) -> None:
        self.workspace = workspace
        self.step = step
        self.run = uuid.uuid4().hex
        self.opening: dict[str, Any] = {"name": step, "tags": dict(tags), "start_time": now()}
        self.store = Store()
        self.journal: Journal | None = None

    def open(self) -> None:
        """Begin the run, and end those of this workspace that were killed."""
        self._say("open", **self.opening)
        if self.journal is None:
            end_killed(self.workspace, self.store)

    def _say(self, call: str, run: str = "", **arguments: Any) -> Any:
        """Call the store for a run (this one), or write the call down; None if it was written down."""
        run = run or self.run
        if self.journal is None:
            try:
                return getattr(self.store, call)(run, **arguments)
            except Exception as error:
                if is_locked(error):
                    raise ValueError(
                        f"the tracking store at {masked(tracking_uri())} refuses user and password: set "
                        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
                    ) from error
                if not is_unreachable(error):
                    raise
                begun = (call, run) != ("open", self.run)
                self._turn_to_outbox(f"the tracking store can't be reached ({reason(error)})", begun)
        assert self.journal is not None
        self.journal.write(call, run, arguments)
        return None

    def _turn_to_outbox(self, why: str, begun: bool) -> None:
        self.journal = Journal(self.run, self.opening, begun)
        log.warning(
            "%s: %s. What the step says from here on is kept in %s; when the store is back, send it:\n"
            "    python -m tasks.tracking sync",
            self.step,
            why,
            self.journal.folder,
        )

    def close(self, status: str) -> None:
        """End the run."""
        try:
            self._say("close", status=status, end_time=now())
        finally:
            if self.journal is not None:
                self.journal.end()

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self._metrics(self.run, [(step, values)])

    def _metrics(self, run: str, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        # plain numbers, which JSON keeps to the last bit
        plain = [(int(step), {key: float(value) for key, value in values.items()}) for step, values in points]
        self._say("metrics", run, points=plain, time=now())

    def params(self, values: Mapping[str, Any]) -> None:
        texts = {key: str(value) for key, value in values.items()}
        if too_long := [key for key, text in texts.items() if len(text) > MAX_PARAM_CHARACTERS]:
            raise ValueError(
                f"parameters {too_long} are longer than the {MAX_PARAM_CHARACTERS} characters that are kept"
            )
        self._say("params", values=texts)

    def tags(self, values: Mapping[str, str]) -> None:
        self._say("tags", values=dict(values))

    def artifact(self, path: Path, folder: str = "") -> None:
        self._say("artifact", path=str(path), folder=folder)

    def dataset(self, path: Path, name: str, context: str) -> None:
        self._say("dataset", name=name, source=path.as_posix(), digest=digest_of(path), context=context)

    def model(self, name: str, module: "nn.Module", example: "np.ndarray") -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "model")
            if threading.current_thread() is threading.main_thread():
                _save_model(path, module, example)
            else:
                # torch.export patches torch's modules for all threads, and another step may be training in one of them
                with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
                    process.submit(_save_model, path, module, example).result()
            self._say("model", name=name, path=path)

    def curve(
        self,
        name: str,
        tags: Mapping[str, str],
        points: Sequence[tuple[int, Mapping[str, float]]],
        artifacts: Sequence[Path] = (),
    ) -> None:
        run = uuid.uuid4().hex
        self._say("open", run, name=name, tags={**tags, "kind": "curve"}, start_time=now(), parent=self.run)
        self._metrics(run, points)
        for path in artifacts:
            self._say("artifact", run, path=str(path), folder="")
        self._say("close", run, status="FINISHED", end_time=now())

    def note(self, markdown: str) -> None:
        if len(markdown) > MAX_NOTE_CHARACTERS:
            raise ValueError(
                f"a note of {len(markdown)} characters is longer than the {MAX_NOTE_CHARACTERS} that are kept"
            )
        self._say("tags", values={"mlflow.note.content": markdown})

    def link_steps(self) -> None:
        steps = {self.workspace.step_of(folder): folder for folder in self.workspace.outputs()}
        digests = {step: digest_of(folder) for step, folder in steps.items() if step != self.step}
        missing = self._say("link", digests=digests)
        for step in missing or []:
            log.info(
                "no run in the tracking store made what is in %s now: not linked",
                self.workspace.data.joinpath(*step.split("@")).as_posix(),
            )
        if missing and self.journal is None and waiting():
            # they may be the ones that are missed: this run shall be sent after them
            self._turn_to_outbox("runs of other steps wait in the outbox", begun=True)
            self._say("link", digests=digests)


@contextmanager
def open_run(
    workspace: Workspace,
    step: str,
    folder: Path,
    params: Params,
    orchestrator: str,
    tags: Mapping[str, str] | None = None,
) -> Iterator[Tracker]:
    """Tracking run of one step: opened, tagged with the digest of ``folder`` at the end, failed on an exception.

    Where the store is out, or goes out, a warning says so, the step goes on, and what it says waits in the outbox.
    Without mlflow installed the step runs untracked, and says so.
    """
    if importlib.util.find_spec("mlflow") is None:
        log.info("mlflow is not installed: %s runs untracked", step)
        yield Tracker()
        return

    tags = {"step": step, "orchestrator": orchestrator, "kind": "step", **(tags or {})}
    if commit := _git_commit():
        tags["mlflow.source.git.commit"] = commit
    tracker = _RunTracker(workspace, step, tags)
    with noted(workspace, tracker.run):
        tracker.open()
        try:
            flat = params.flat()
            name, _, defence = step.partition("@")
            sections = (f"{name}.", f"defences.{defence}.") if defence else (f"{name}.",)
            own = {key: value for key, value in flat.items() if key.startswith(sections) or "." not in key}
            tracker.params(flat if step == "report" else own)
            yield tracker
            tracker.tags({"outputs_md5": digest_of(folder)})
        except BaseException as error:
            tracker.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        tracker.close("FINISHED")


def _save_model(path: str, module: "nn.Module", example: "np.ndarray") -> None:
    import mlflow
    import torch

    with torch.no_grad():
        output = module(torch.from_numpy(example)).numpy()
    mlflow.pytorch.save_model(
        module,
        path,
        input_example=example,
        signature=mlflow.models.infer_signature(example, output),
        # MLflow's default but on Databricks, where it is a pickle
        serialization_format="pt2",
        # given, since working them out starts a process of nine seconds
        pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
    )


def _git_commit() -> str | None:
    try:
        command = ["git", "rev-parse", "HEAD"]
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603  fixed  # nosec B603
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
