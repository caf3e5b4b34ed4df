"""MLflow's store, asked one thing at a time.

Every method may be called again with the same arguments, by this process or, after an outage, by another, and nothing
is there twice. For this, runs have keys of our own: a random text in the run's tag ``run_key``, known before the store
has answered.
"""

import fcntl
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from tasks.tracking.masking import masked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModelOutput

EXPERIMENT = "ct-robustness"

DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "8",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}
"""Unless the user has set them. MLflow's own would wait four minutes for a server that is gone, where these take
seconds, print two lines for each of some hundred curves, and a bar for each file that is copied, and take a model that
is a pickle."""


class Store:
    """The store at :func:`tracking_uri`; opening it asks nothing yet.

    Every method raises whatever mlflow raises; :func:`is_unreachable` tells an outage from a mistake.
    """

    def __init__(self) -> None:
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        self._run_ids: dict[str, str] = {}

    @cached_property
    def client(self) -> "MlflowClient":
        """MLflow's client; the tables of an SQLite store are made if there are none.

        Raises:
            ValueError: there is no store of this kind.
        """
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            with _alone_with_sqlite() as file:
                if file and not file.exists():
                    # a kill in the middle would leave tables that no MlflowClient can go on from
                    partial = file.with_name(f"{file.name}.partial")
                    for left in file.parent.glob(f"{partial.name}*"):
                        left.unlink()
                    _ = MlflowClient(f"sqlite:///{partial}").search_experiments(max_results=1)
                    partial.rename(file)
                return MlflowClient(tracking_uri())
        except MlflowException as error:
            if is_unreachable(error):
                raise
            # without what caused it, whose message has the password
            raise ValueError(f"MLFLOW_TRACKING_URI can't be used: {masked(str(error)).strip()}") from None

    @cached_property
    def experiment_id(self) -> str:
        """The experiment of all runs, made if there is none."""
        from mlflow.exceptions import MlflowException

        if experiment := self.client.get_experiment_by_name(EXPERIMENT):
            return str(experiment.experiment_id)
        # beside the database; a server places artifacts itself
        location = None if os.environ.get("MLFLOW_TRACKING_URI") else (Path.cwd() / "mlartifacts").as_uri()
        # the UI opens on runs and charts, not on traces of language models
        tags = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return str(self.client.create_experiment(EXPERIMENT, artifact_location=location, tags=tags))
        except MlflowException as error:
            # another pipeline made it between the look and the making
            made_by_another = error.error_code == "RESOURCE_ALREADY_EXISTS"
            experiment = self.client.get_experiment_by_name(EXPERIMENT) if made_by_another else None
            if experiment is None:
                raise
            return str(experiment.experiment_id)

    def has(self, run: str) -> bool:
        """Whether the run of this key is in the store."""
        if run not in self._run_ids:
            runs = self.client.search_runs([self.experiment_id], f"tags.run_key = '{run}'", max_results=1)
            if runs:
                self._run_ids[run] = runs[0].info.run_id
        return run in self._run_ids

    def open(self, run: str, name: str, tags: Mapping[str, str], start_time: int, parent: str | None = None) -> None:
        """Make a run; the one call that must not be repeated where :meth:`has` finds it.

        Args:
            run: its key.
            name: what the UI calls it.
            tags: its tags.
            start_time: milliseconds since 1970.
            parent: key of the run that it belongs to.
        """
        of_parent = {"mlflow.parentRunId": self._run_id(parent)} if parent else {}
        made = self.client.create_run(
            self.experiment_id, start_time, tags={**tags, **of_parent, "run_key": run}, run_name=name
        )
        self._run_ids[run] = made.info.run_id

    def close(self, run: str, status: str, end_time: int) -> None:
        """End a run: ``FINISHED``, ``FAILED`` or ``KILLED``, at a time in milliseconds since 1970."""
        self.client.set_terminated(self._run_id(run), status, end_time)

    def kill(self, run: str) -> bool:
        """End a run and its curves as killed, when they were last heard of, if they are open; whether one was."""
        run_id = self._run_id(run)
        below = f"tags.`mlflow.parentRunId` = '{run_id}'"
        there = [*self.client.search_runs([self.experiment_id], below), self.client.get_run(run_id)]
        left = [each for each in there if each.info.status == "RUNNING"]
        for each in left:
            own = each.info.run_id
            heard = [self.client.get_metric_history(own, key)[-1].timestamp for key in each.data.metrics]
            self.client.set_terminated(own, "KILLED", max([each.info.start_time, *heard]))
        return bool(left)

    def metrics(self, run: str, points: Sequence[tuple[int, Mapping[str, float]]], time: int) -> None:
        """Metrics at integer steps, logged at a time in milliseconds since 1970."""
        from mlflow.entities import Metric

        entities = [Metric(key, value, time, step) for step, values in points for key, value in values.items()]
        for start in range(0, len(entities), 1000):
            self.client.log_batch(self._run_id(run), metrics=entities[start : start + 1000])

    def params(self, run: str, values: Mapping[str, str]) -> None:
        """Parameters."""
        from mlflow.entities import Param

        self.client.log_batch(self._run_id(run), params=[Param(key, value) for key, value in values.items()])

    def tags(self, run: str, values: Mapping[str, str]) -> None:
        """Tags."""
        for key, value in values.items():
            self.client.set_tag(self._run_id(run), key, value)

    def artifact(self, run: str, path: str, folder: str) -> None:
        """The file at ``path``, or all files of that folder, kept under ``folder``."""
        keep = self.client.log_artifacts if Path(path).is_dir() else self.client.log_artifact
        keep(self._run_id(run), path, folder or None)

    def dataset(self, run: str, name: str, source: str, digest: str, context: str) -> None:
        """A data set by DVC's digest and the path that it had in the workspace."""
        from mlflow.data.dataset_source_registry import resolve_dataset_source
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        with warnings.catch_warnings():
            # two kinds of local source fit every path; which is taken makes no difference here
            warnings.filterwarnings("ignore", message="The specified dataset source can be interpreted")
            resolved = resolve_dataset_source(source)
        # mypy takes it for abstract
        make: Any = MetaDataset
        dataset = make(source=resolved, name=name, digest=digest[:32])
        tags = [InputTag("mlflow.data.context", context), InputTag("dvc_md5", digest)]
        inputs = [DatasetInput(dataset._to_mlflow_entity(), tags)]
        try:
            self.client.log_inputs(self._run_id(run), datasets=inputs)
        except MlflowException:
            if tracking_uri().startswith("http"):
                # to a server the client has repeated it already
                raise
            # another run stored the same data set between the store's look and its insertion; now it is found
            self.client.log_inputs(self._run_id(run), datasets=inputs)

    def model(self, run: str, name: str, path: str) -> None:
        """A model that was saved in the folder at ``path``; its ``MLmodel`` is completed there by the ids it gets."""
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
        self._give_models(run_id, [LoggedModelOutput(logged.model_id, step=0)])

    def link(self, run: str, digests: Mapping[str, str]) -> list[str]:
        """Tag a run with the newest run of each step whose outputs have a digest, and list their models as its own.

        Args:
            run: key of the run to be tagged.
            digests: of each step's outputs.

        Returns:
            the steps of which no run was found.
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
            # what MLflow allows in a tag's name
            self.client.set_tag(run_id, f"run.{step.replace('@', '.')}", runs[0].info.run_id)
            if outputs := runs[0].outputs:
                models += outputs.model_outputs
        self._give_models(run_id, models)
        return missing

    def _give_models(self, run_id: str, models: Sequence["LoggedModelOutput"]) -> None:
        outputs = self.client.get_run(run_id).outputs
        there = {model.model_id for model in outputs.model_outputs} if outputs else set()
        if new := [model for model in models if model.model_id not in there]:
            self.client.log_outputs(run_id, new)

    def _run_id(self, run: str) -> str:
        assert self.has(run), f"run {run} was opened neither here nor before"
        return self._run_ids[run]


def is_unreachable(error: Exception) -> bool:
    """Whether the store is out: no connection, a time-out or an error of its own; not a mistake of the caller."""
    import requests

    status = _status_of(error)
    if status is None:
        return isinstance(error, (requests.ConnectionError, requests.Timeout))
    return status >= 500 or status in (408, 429)


def is_locked(error: Exception) -> bool:
    """Whether the store is there, and lets nobody in with this user and password."""
    return _status_of(error) in (401, 403)


def _status_of(error: Exception) -> int | None:
    """What a server answered, or would have."""
    import requests
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())  # type: ignore[no-untyped-call]  # mlflow's annotation
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code
    return None


@contextmanager
def _alone_with_sqlite() -> Iterator[Path | None]:
    """Whoever looks first into an SQLite store makes its tables; two at once would trip over each other.

    Yields:
        its file; None for another kind of store.
    """
    kind, _, path = tracking_uri().partition(":///")
    if kind != "sqlite":
        yield None
        return
    with Path(f"{path}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield Path(path)


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``, or SQLite in the working folder.

    User and password of a server go where MLflow looks for them, too, since its messages name the address as it is.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    address = urlsplit(uri)
    if address.scheme in ("http", "https") and address.username and address.password:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(address.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(address.password)
        return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()
    return uri


def experiment_id() -> str:
    """The one experiment of this project in the tracking store, made if it is not there yet."""
    return Store().experiment_id
