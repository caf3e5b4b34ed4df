"""What a step says about itself, and where MLflow hears it; the only importer of mlflow.

The store is ``MLFLOW_TRACKING_URI``; without it, SQLite in the working folder. Run ids are passed
explicitly, since MLflow's active run belongs to a thread and steps may run in several.
"""

import hashlib
import json
import logging
import os
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import paths
from tasks.params import Params

if TYPE_CHECKING:
    import numpy as np
    from mlflow.entities import LoggedModelOutput
    from torch import nn

EXPERIMENT = "ct-robustness"
MAX_PARAM_CHARACTERS = 6000
MAX_NOTE_CHARACTERS = 8000

log = logging.getLogger(__name__)


class Tracker:
    """What a step can say; this one hears nothing and needs no mlflow."""

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Numbers at one step (an epoch; ε in thousandths of a grey level). The part before ``/`` makes a section."""

    def params(self, values: Mapping[str, Any]) -> None:
        """Parameters beyond those that every step's run carries.

        Raises:
            ValueError: a value longer than the store keeps.
        """

    def tags(self, values: Mapping[str, str]) -> None:
        """Tags of the run."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file, or a folder with all that is in it, kept under ``folder``."""

    def dataset(self, path: Path, name: str, context: str) -> None:
        """A data set by DVC's digest of the file or folder at ``path``."""

    def model(self, name: str, module: "nn.Module", example: "np.ndarray") -> None:
        """A network with signature and input example, float32 ``(N, 1, H, W)``, N at least 2."""

    def curve(
        self,
        name: str,
        tags: Mapping[str, str],
        points: Sequence[tuple[int, Mapping[str, float]]],
        artifacts: Sequence[Path] = (),
    ) -> None:
        """A child run with the same metric keys as every other curve of its kind, at integer steps, and files."""

    def note(self, markdown: str) -> None:
        """The description that the run's page shows.

        Raises:
            ValueError: longer than the store keeps.
        """

    def link_steps(self) -> None:
        """Tag this run with the runs of steps that made what is now in ``data/``, and list their models as its own.

        Runs are found by the digests of their outputs. A step without one is named in a log line.
        """


class _MlflowTracker(Tracker):
    def __init__(self, step: str, run_id: str, experiment_id: str) -> None:
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient()
        self.step = step
        self.run_id = run_id
        self.experiment_id = experiment_id

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self._log_metrics(self.run_id, [(step, values)])

    def _log_metrics(self, run_id: str, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entities = [Metric(key, float(value), now, step) for step, values in points for key, value in values.items()]
        for start in range(0, len(entities), 1000):
            self.client.log_batch(run_id, metrics=entities[start : start + 1000])

    def params(self, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        texts = {key: str(value) for key, value in values.items()}
        if too_long := [key for key, text in texts.items() if len(text) > MAX_PARAM_CHARACTERS]:
            raise ValueError(
                f"parameters {too_long} are longer than the {MAX_PARAM_CHARACTERS} characters that are kept"
            )
        self.client.log_batch(self.run_id, params=[Param(key, text) for key, text in texts.items()])

    def tags(self, values: Mapping[str, str]) -> None:
        for key, value in values.items():
            self.client.set_tag(self.run_id, key, value)

    def artifact(self, path: Path, folder: str = "") -> None:
        keep = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
        keep(self.run_id, str(path), folder or None)

    def dataset(self, path: Path, name: str, context: str) -> None:
        from mlflow.data.dataset_source_registry import resolve_dataset_source
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        digest = digest_of(path)
        with warnings.catch_warnings():
            # two kinds of local source fit every path; which is taken makes no difference here
            warnings.filterwarnings("ignore", message="The specified dataset source can be interpreted")
            source = resolve_dataset_source(path.as_posix())
        # mypy takes it for abstract
        make: Any = MetaDataset
        dataset = make(source=source, name=name, digest=digest[:32])
        tags = [InputTag("mlflow.data.context", context), InputTag("dvc_md5", digest)]
        inputs = [DatasetInput(dataset._to_mlflow_entity(), tags)]
        try:
            self.client.log_inputs(self.run_id, datasets=inputs)
        except MlflowException:
            # another run stored the same data set between the store's look and its insertion; now it is found
            self.client.log_inputs(self.run_id, datasets=inputs)

    def model(self, name: str, module: "nn.Module", example: "np.ndarray") -> None:
        if threading.current_thread() is threading.main_thread():
            _log_model(self.run_id, name, module, example)
            return
        # torch.export patches torch's modules for all threads, and another step may be training in one of them
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
            process.submit(_log_model, self.run_id, name, module, example).result()

    def curve(
        self,
        name: str,
        tags: Mapping[str, str],
        points: Sequence[tuple[int, Mapping[str, float]]],
        artifacts: Sequence[Path] = (),
    ) -> None:
        run = self.client.create_run(
            self.experiment_id, run_name=name, tags={**tags, "kind": "curve", "mlflow.parentRunId": self.run_id}
        )
        self._log_metrics(run.info.run_id, points)
        for path in artifacts:
            self.client.log_artifact(run.info.run_id, str(path))
        self.client.set_terminated(run.info.run_id, "FINISHED")

    def note(self, markdown: str) -> None:
        if len(markdown) > MAX_NOTE_CHARACTERS:
            raise ValueError(
                f"a note of {len(markdown)} characters is longer than the {MAX_NOTE_CHARACTERS} that are kept"
            )
        self.client.set_tag(self.run_id, "mlflow.note.content", markdown)

    def link_steps(self) -> None:
        models: list[LoggedModelOutput] = []
        for folder in paths.outputs():
            step = paths.step_of(folder)
            if step == self.step:
                continue
            runs = self.client.search_runs(
                [self.experiment_id],
                filter_string=f"tags.outputs_md5 = '{digest_of(folder)}' and tags.step = '{step}'",
                order_by=["attributes.start_time DESC"],
                max_results=1,
            )
            if not runs:
                log.info("no run in the tracking store made what is in %s now: not linked", folder.as_posix())
                continue
            # what MLflow allows in a tag's name
            self.client.set_tag(self.run_id, f"run.{step.replace('@', '.')}", runs[0].info.run_id)
            if outputs := runs[0].outputs:
                models += outputs.model_outputs
        if models:
            self.client.log_outputs(self.run_id, models)


@contextmanager
def open_run(step: str, folder: Path, params: Params, orchestrator: str) -> Iterator[Tracker]:
    """Tracking run of one step: opened, tagged with the digest of ``folder`` at the end, failed on an exception.

    Without mlflow installed the step runs untracked, and says so.
    """
    try:
        import mlflow
    except ModuleNotFoundError:
        log.info("mlflow is not installed: %s runs untracked", step)
        yield Tracker()
        return

    mlflow.set_tracking_uri(tracking_uri())
    experiment_id = _experiment_id()
    client = mlflow.MlflowClient()
    tags = {"step": step, "orchestrator": orchestrator, "kind": "step"}
    if commit := _git_commit():
        tags["mlflow.source.git.commit"] = commit
    run = client.create_run(experiment_id, run_name=step, tags=tags)
    tracker = _MlflowTracker(step, run.info.run_id, experiment_id)
    try:
        flat = params.flat()
        name, _, defence = step.partition("@")
        sections = (f"{name}.", f"defences.{defence}.") if defence else (f"{name}.",)
        own = {key: value for key, value in flat.items() if key.startswith(sections) or "." not in key}
        tracker.params(flat if step == "report" else own)
        yield tracker
        tracker.tags({"outputs_md5": digest_of(folder)})
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt)
        client.set_terminated(run.info.run_id, "KILLED" if killed else "FAILED")
        raise
    client.set_terminated(run.info.run_id, "FINISHED")


def _log_model(run_id: str, name: str, module: "nn.Module", example: "np.ndarray") -> None:
    import mlflow
    import torch

    mlflow.set_tracking_uri(tracking_uri())
    with torch.no_grad():
        output = module(torch.from_numpy(example)).numpy()
    with mlflow.start_run(run_id=run_id):
        mlflow.pytorch.log_model(
            module,
            name=name,
            input_example=example,
            signature=mlflow.models.infer_signature(example, output),
            # given, since working them out starts a process of nine seconds
            pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
        )


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``, or SQLite in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def digest_of(path: Path) -> str:
    """MD5 of a file or folder as DVC writes it into dvc.lock (``.dir`` ends a folder's)."""
    if path.is_file():
        return _md5(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    listing = [{"md5": _md5(file), "relpath": file.relative_to(path).as_posix()} for file in files]
    listing.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _experiment_id() -> str:
    import mlflow

    client = mlflow.MlflowClient()
    if experiment := client.get_experiment_by_name(EXPERIMENT):
        return str(experiment.experiment_id)
    # beside the database; a server places artifacts itself
    location = None if os.environ.get("MLFLOW_TRACKING_URI") else (Path.cwd() / "mlartifacts").as_uri()
    # the UI opens on runs and charts, not on traces of language models
    tags = {"mlflow.experimentKind": "custom_model_development"}
    return str(client.create_experiment(EXPERIMENT, artifact_location=location, tags=tags))


def _git_commit() -> str | None:
    try:
        command = ["git", "rev-parse", "HEAD"]
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603  fixed
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
