"""MLflow's store: one method for each call that a journal can hold.

Every method may be repeated with the same arguments, also by another process after an outage: nothing is stored twice.
For this, each run has a key: a random text in its tag ``run_key``, which is known before the store answers.
"""

import fcntl
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.core.durable import rename_durably
from tasks.core.workspace import Workspace
from tasks.tracking.address import experiment_name, home, tracking_uri
from tasks.tracking.digests import digest_of
from tasks.tracking.errors import is_unavailable
from tasks.tracking.masking import masked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModelOutput

DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "8",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}
"""Environment variables that are set unless the user has set them. MLflow's own defaults wait four minutes for an
unavailable server, print two lines for each of some hundred curves and a progress bar for each copied file, and load
models that are pickles."""


class Store:
    """An experiment in the store at :func:`tracking_uri`. It connects at the first call.

    The methods raise the exceptions of mlflow; :func:`is_unavailable` distinguishes an outage from an error.
    """

    def __init__(self, experiment: str = "") -> None:
        """Choose the experiment.

        Args:
            experiment: its name; empty: :func:`experiment_name`.
        """
        self.experiment = experiment or experiment_name()
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        self._run_ids: dict[str, str] = {}

    @cached_property
    def client(self) -> "MlflowClient":
        """MLflow's client. The tables of an SQLite store are created if there are none.

        Raises:
            ValueError: MLFLOW_TRACKING_URI is invalid.
        """
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            with _sqlite_lock() as file:
                if file and not file.exists():
                    # a kill while MLflow creates the tables would leave a database that it cannot open
                    partial = file.with_name(f"{file.name}.partial")
                    for left in file.parent.glob(f"{partial.name}*"):
                        left.unlink()
                    _ = MlflowClient(f"sqlite:///{partial}").search_experiments(max_results=1)
                    rename_durably(partial, file)
                return MlflowClient(tracking_uri())
        except MlflowException as error:
            if is_unavailable(error):
                raise
            # not chained: the message of the cause has the password
            raise ValueError(f"MLFLOW_TRACKING_URI cannot be used: {masked(str(error)).strip()}") from None

    @cached_property
    def experiment_id(self) -> str:
        """Id of the experiment of all runs, which is created if it does not exist.

        Raises:
            ValueError: the experiment was deleted.
        """
        from mlflow.exceptions import MlflowException

        if experiment := self.client.get_experiment_by_name(self.experiment):
            if experiment.lifecycle_stage == "deleted":
                raise ValueError(
                    f"MLFLOW_EXPERIMENT_NAME: {self.experiment!r} was deleted in the tracking store. Only an active "
                    "or a new experiment is allowed. Set another name, or restore it: mlflow experiments restore "
                    f"--experiment-id {experiment.experiment_id}"
                )
            return str(experiment.experiment_id)
        # beside the database; a server chooses the location itself
        location = None if os.environ.get("MLFLOW_TRACKING_URI") else (home().absolute() / "mlartifacts").as_uri()
        # the UI opens on runs and charts, not on traces of language models
        tags = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return str(self.client.create_experiment(self.experiment, artifact_location=location, tags=tags))
        except MlflowException as error:
            # another process may have created it in the meantime
            exists = error.error_code == "RESOURCE_ALREADY_EXISTS"
            experiment = self.client.get_experiment_by_name(self.experiment) if exists else None
            if experiment is None:
                raise
            return str(experiment.experiment_id)

    def has(self, run: str) -> bool:
        """Return whether the run of this key is in the store."""
        if run not in self._run_ids:
            runs = self.client.search_runs([self.experiment_id], f"tags.run_key = '{run}'", max_results=1)
            if runs:
                self._run_ids[run] = runs[0].info.run_id
        return run in self._run_ids

    def open(self, run: str, name: str, tags: Mapping[str, str], start_time: int, parent: str | None = None) -> None:
        """Create a run. This is the only call that must not be repeated if :meth:`has` finds the run.

        Args:
            run: its key.
            name: its name in the UI.
            tags: its tags.
            start_time: milliseconds since 1970.
            parent: key of the parent run.
        """
        of_parent = {"mlflow.parentRunId": self._run_id(parent)} if parent else {}
        made = self.client.create_run(
            self.experiment_id, start_time, tags={**tags, **of_parent, "run_key": run}, run_name=name
        )
        self._run_ids[run] = made.info.run_id

    def monitor(self, run: str) -> Any:
        """Start to log system metrics of a run if ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING`` is true.

        Returns:
            MLflow's monitor, with the method ``finish``; None if the variable is not true.
        """
        from mlflow import environment_variables
        from mlflow.system_metrics import system_metrics_monitor

        # MLflow has no types for them
        is_enabled: Any = environment_variables.MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
        create: Any = system_metrics_monitor.SystemMetricsMonitor
        if not is_enabled.get():
            return None
        monitor = create(self._run_id(run), tracking_uri=self.client.tracking_uri)
        monitor.start()
        return monitor

    def close(self, run: str, status: str, end_time: int) -> None:
        """End a run as ``FINISHED``, ``FAILED`` or ``KILLED``, at a time in milliseconds since 1970."""
        self.client.set_terminated(self._run_id(run), status, end_time)

    def kill(self, run: str) -> bool:
        """End a run and its curves as killed, at the time of their last metric, and return whether one was open."""
        run_id = self._run_id(run)
        children = self.client.search_runs([self.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
        still_open = [each for each in (*children, self.client.get_run(run_id)) if each.info.status == "RUNNING"]
        for each in still_open:
            own = each.info.run_id
            times = [self.client.get_metric_history(own, key)[-1].timestamp for key in each.data.metrics]
            self.client.set_terminated(own, "KILLED", max([each.info.start_time, *times]))
        return bool(still_open)

    def metrics(self, run: str, points: Sequence[tuple[int, Mapping[str, float]]], time: int) -> None:
        """Log metrics at integer steps; the time is in milliseconds since 1970."""
        from mlflow.entities import Metric

        entities = [Metric(key, value, time, step) for step, values in points for key, value in values.items()]
        for start in range(0, len(entities), 1000):
            self.client.log_batch(self._run_id(run), metrics=entities[start : start + 1000])

    def params(self, run: str, values: Mapping[str, str]) -> None:
        """Log parameters."""
        from mlflow.entities import Param

        entities = [Param(key, value) for key, value in values.items()]
        for start in range(0, len(entities), 100):
            self.client.log_batch(self._run_id(run), params=entities[start : start + 100])

    def tags(self, run: str, values: Mapping[str, str]) -> None:
        """Set tags."""
        for key, value in values.items():
            self.client.set_tag(self._run_id(run), key, value)

    def artifact(self, run: str, path: str, folder: str) -> None:
        """Log the file at ``path``, or all files of that folder, below ``folder``."""
        log = self.client.log_artifacts if Path(path).is_dir() else self.client.log_artifact
        log(self._run_id(run), path, folder or None)

    def images(self, run: str, path: str, time: int) -> None:
        """Log the PNG files in the folder ``path`` as images under their names; the time is in milliseconds."""
        from PIL import Image

        run_id = self._run_id(run)
        logged = {Path(file.path).name.partition("+")[0] for file in self.client.list_artifacts(run_id, "images")}
        for file in sorted(Path(path).glob("*.png")):
            if file.stem not in logged:
                with Image.open(file) as image:
                    self.client.log_image(run_id, image, key=file.stem, timestamp=time)

    def dataset(self, run: str, name: str, source: str, digest: str, context: str) -> None:
        """Log a data set: its digest in DVC, and its path in the workspace."""
        from mlflow.data.dataset_source_registry import resolve_dataset_source
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        with warnings.catch_warnings():
            # every path fits two kinds of local source; both give the same result here
            warnings.filterwarnings("ignore", message="The specified dataset source can be interpreted")
            resolved = resolve_dataset_source(source)
        # mypy reports it as abstract
        create: Any = MetaDataset
        dataset = create(source=resolved, name=name, digest=digest[:32])
        tags = [InputTag("mlflow.data.context", context), InputTag("dvc_md5", digest)]
        inputs = [DatasetInput(dataset._to_mlflow_entity(), tags)]
        try:
            self.client.log_inputs(self._run_id(run), datasets=inputs)
        except MlflowException:
            if tracking_uri().startswith("http"):
                # MLflow's HTTP client has repeated the call
                raise
            # SQLite: another run has stored the same data set at the same time; the second call finds it
            self.client.log_inputs(self._run_id(run), datasets=inputs)

    def model(self, run: str, name: str, path: str) -> None:
        """Log a model that was saved in the folder ``path``. Its ids are written to the file ``MLmodel`` there."""
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        run_id = self._run_id(run)
        found = self.client.search_logged_models(
            [self.experiment_id], f"source_run_id = '{run_id}' AND name = '{name}'", max_results=1
        )
        if found:
            logged = found[0]
        else:
            params = self.client.get_run(run_id).data.params
            logged = self.client.create_logged_model(self.experiment_id, name, run_id, params=params)
        saved = Model.load(path)
        saved.run_id, saved.model_id, saved.model_uuid = run_id, logged.model_id, logged.model_id
        saved.artifact_path = logged.artifact_location
        saved.save(str(Path(path) / "MLmodel"))
        self.client.log_model_artifacts(logged.model_id, path)
        self.client.finalize_logged_model(logged.model_id, "READY")
        self._add_models(run_id, [LoggedModelOutput(logged.model_id, step=0)])

    def link(self, run: str, digests: Mapping[str, str]) -> list[str]:
        """Tag a run with the newest runs that made given outputs, and list their models as its own.

        Args:
            run: key of the run to tag.
            digests: of the outputs, by step.

        Returns:
            The steps for which no run was found.
        """
        run_id = self._run_id(run)
        models: list[LoggedModelOutput] = []
        missing = []
        for step, digest in digests.items():
            runs = self.client.search_runs(
                [self.experiment_id],
                filter_string=f"tags.outputs_md5 = '{digest}' and tags.step = '{step}'",
                order_by=["attributes.start_time DESC"],
                max_results=1,
            )
            if not runs:
                missing.append(step)
                continue
            # a tag's name must not have an @
            self.client.set_tag(run_id, f"run.{step.replace('@', '.')}", runs[0].info.run_id)
            if outputs := runs[0].outputs:
                models += outputs.model_outputs
        self._add_models(run_id, models)
        return missing

    def minutes(self, digests: Mapping[str, str]) -> dict[str, float]:
        """Minutes that the newest runs took that made given outputs, by step; without steps of which no run is found.

        The time of killed runs just before is added, since a step resumes from their checkpoints. If the whole process
        was killed, its run ends with its last metric.

        Args:
            digests: of the outputs, by step.
        """
        found = {}
        for step, digest in digests.items():
            runs = self.client.search_runs(
                [self.experiment_id], f"tags.step = '{step}'", order_by=["attributes.start_time DESC"]
            )
            made = [run.data.tags.get("outputs_md5") == digest for run in runs]
            if any(made):
                newest, *earlier = (run.info for run in runs[made.index(True) :])
                own = [newest, *takewhile(lambda info: info.status == "KILLED", earlier)]
                found[step] = round(sum(info.end_time - info.start_time for info in own) / 60_000, 2)
        return found

    def _add_models(self, run_id: str, models: Sequence["LoggedModelOutput"]) -> None:
        outputs = self.client.get_run(run_id).outputs
        listed = {model.model_id for model in outputs.model_outputs} if outputs else set()
        if new := [model for model in models if model.model_id not in listed]:
            self.client.log_outputs(run_id, new)

    def _run_id(self, run: str) -> str:
        assert self.has(run), f"run {run} does not exist"
        return self._run_ids[run]


@contextmanager
def _sqlite_lock() -> Iterator[Path | None]:
    """Lock an SQLite store: MLflow creates its tables at the first use, and two processes must not do it at once.

    Yields:
        Its file; None for another kind of store.
    """
    kind, _, path = tracking_uri().partition(":///")
    if kind != "sqlite":
        yield None
        return
    # options of the connection can follow
    database = Path(path.partition("?")[0])
    with database.with_name(f"{database.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield database


def experiment_id() -> str:
    """Id of this project's experiment in the tracking store, which is created if it does not exist."""
    return Store().experiment_id


def minutes_of_steps(workspace: Workspace) -> dict[str, float]:
    """Minutes that the steps took that made the present outputs of a workspace: :meth:`Store.minutes`."""
    return Store().minutes({workspace.step_of(folder): digest_of(folder) for folder in workspace.outputs()})
