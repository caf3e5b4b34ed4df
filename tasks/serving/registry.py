"""MLflow's model registry: versions of defended models, the present champion and earlier ones.

A version is a bundle (:mod:`tasks.serving.bundle`) with MLflow's pyfunc interface. The alias ``candidate`` marks the
version of the last registration, the alias ``champion`` the version in use. The tags ``champion.moved.<time>`` of a
registered model record the changes of its champion. The tag ``champion.before`` of a version is the champion that it
replaced.
"""

import json
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.core.digests import PYTHON_CACHE, digest_of_folder
from tasks.serving.bundle import CARD, check_digest, check_trust, read_bundle
from tasks.serving.mlflow_model import save_mlflow_model
from tasks.tracking import EXPERIMENT, experiment_id, masked, tracking_uri
from tasks.tracking.outbox import now
from tasks.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

CANDIDATE, CHAMPION = "candidate", "champion"
BEFORE = "champion.before"
"""Tag of a version: the champion that it replaced; empty if there was none."""
MOVED = "champion.moved."
"""Prefix of the tags of a registered model that record the changes of its champion."""
MAX_DESCRIPTION = 5000
"""Maximum number of characters of a description or a tag in MLflow."""

DESCRIPTION = (
    "Classifiers of medical images, evaluated under adversarial attack. `candidate`: registered last; `champion`: "
    "in use. For research, not for diagnosis."
)


@dataclass(frozen=True)
class Move:
    """One change of the champion."""

    when: str
    """UTC, ISO 8601 with microseconds."""
    version: int
    """The new champion."""
    before: int | None
    """The previous champion."""
    why: str
    """Reason of the change."""


@dataclass(frozen=True)
class Registered:
    """A version in the registry."""

    name: str
    version: int
    target: str
    digest: str
    """SHA-256 of the layers and weights of the target."""
    files_digest: str
    """SHA-256 of all files of the bundle."""

    @property
    def label(self) -> str:
        """Name for folders and messages: ``ct-robustness-v3``."""
        return f"{self.name}-v{self.version}"


def register_bundle(folder: Path, name: str, summary: str) -> Registered:
    """Register a bundle as the next version of a model.

    Args:
        folder: of the bundle.
        name: name of the registered model; created if there is none.
        summary: of the model card; the description of the version.
    """
    import mlflow

    bundle, store, run = read_bundle(folder), Store(), uuid.uuid4().hex
    client = store.client
    _make_model(client, name)
    tags = {"kind": "registration", "target": bundle.target, "digest": bundle.digest, "mlflow.note.content": summary}
    store.open(run, f"register {bundle.target}", tags, now())
    status = "FAILED"
    try:
        store.artifact(run, str(folder / CARD), "")
        with tempfile.TemporaryDirectory() as temporary:
            path = str(Path(temporary) / "defended")
            save_mlflow_model(folder, path)
            store.model(run, "defended", path)
            logged = mlflow.models.Model.load(path)
        made = client.create_model_version(
            name,
            f"models:/{logged.model_id}",
            logged.run_id,
            tags={
                "target": bundle.target,
                "digest": bundle.digest,
                "files_digest": digest_of_folder(folder),
                "dataset": bundle.dataset,
            },
            description=_checked(summary),
            model_id=logged.model_id,
        )
        status = "FINISHED"
    finally:
        store.close(run, status, now())
    return _registered(made)


def find_version(name: str, folder: Path) -> Registered | None:
    """The latest version with the files of a bundle, which are also its model card and the digests of seen images.

    Args:
        name: of the registered model.
        folder: of the bundle.
    """
    digest = digest_of_folder(folder)
    found = [each for each in map(_registered, _search(name)) if each.files_digest == digest]
    return max(found, key=lambda each: each.version, default=None)


def make_candidate(model: Registered) -> None:
    """Give a version the alias ``candidate``."""
    Store().client.set_registered_model_alias(model.name, CANDIDATE, str(model.version))


def all_versions(name: str) -> list[Registered]:
    """Versions of a model, oldest first; empty if the model does not exist.

    Raises:
        ValueError: the name has an apostrophe.
    """
    return sorted(map(_registered, _search(name)), key=lambda each: each.version)


def find(model: str) -> Registered:
    """Find a version by ``name@alias`` or ``name/version``.

    Raises:
        ValueError: another form, or the version does not exist.
    """
    from mlflow.exceptions import MlflowException

    name, at, alias = model.partition("@")
    number = ""
    if not at:
        name, _, number = model.rpartition("/")
    if not name or not (alias or number.isdecimal()):
        raise ValueError(
            f"model version: {model!r}. Write name@alias or name/version, such as {EXPERIMENT}@{CHAMPION}."
        )
    client = Store().client
    try:
        found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    except MlflowException as error:
        versions = ", ".join(f"{each.name}/{each.version}" for each in all_versions(name)) or "none"
        raise ValueError(
            f"{model} is not in the registry {masked(tracking_uri())}: {error.message.rstrip('.')}. Versions of "
            f"{name}: {versions}. Name one of them, or register a model: python -m flows.register"
        ) from None
    return _registered(found)


def version_with(name: str, alias: str) -> Registered | None:
    """The version of a model with an alias; None if no version has it."""
    client = Store().client
    aliases: dict[str, str] = next(
        (each.aliases for each in client.search_registered_models(f"name = '{name}'") if each.name == name), {}
    )
    return _registered(client.get_model_version(name, aliases[alias])) if alias in aliases else None


def download(model: Registered, folder: Path, trust: bool = False) -> Path:
    """Copy the bundle of a version into a folder, and return the folder of the bundle.

    Nothing of the bundle is loaded before all its files have been compared with the tags of the version.

    Args:
        model: the version.
        folder: of the copy.
        trust: accept a bundle that runs code of its author, or sends images to a server, when it is loaded.

    Raises:
        ValueError: the bundle has another target, other weights or other files than the tags of the version, has
            compiled Python files, or needs trust.
    """
    import mlflow

    folder.mkdir(parents=True, exist_ok=True)
    uri, store = f"models:/{model.name}/{model.version}/artifacts", Store().client.tracking_uri
    artifacts = mlflow.artifacts.download_artifacts(uri, dst_path=str(folder), tracking_uri=store, registry_uri=store)
    # its name is that of the registered folder
    (bundle,) = Path(artifacts).iterdir()
    if caches := list(bundle.rglob(PYTHON_CACHE)):
        raise ValueError(
            f"{caches[0]}: Python would run compiled files of this folder in place of those of the bundle, and they "
            "are not part of its digest. Do not use this version: register the model again."
        )
    if (found := digest_of_folder(bundle)) != model.files_digest:
        raise ValueError(
            f"{bundle}: the digest of its files is {found}, but the registry has "
            f"{model.files_digest or 'none, since an earlier version of this project registered it'}. Do not use this "
            "version: register the model again."
        )
    if not trust:
        check_trust(bundle)
    check_digest(bundle, model.target, model.digest)
    return bundle


def move_champion(model: Registered, why: str) -> Move:
    """Make a version the champion, and record the change."""
    client, before = Store().client, version_with(model.name, CHAMPION)
    client.set_model_version_tag(model.name, str(model.version), BEFORE, str(before.version) if before else "")
    return _move(client, model, before, why)


def restore_champion(name: str) -> Move:
    """Return to the previous champion.

    Raises:
        ValueError: there is no champion, or there was none before it.
    """
    client, champion = Store().client, version_with(name, CHAMPION)
    if champion is None:
        raise ValueError(f"{name} has no {CHAMPION}. Promote a model first: python -m flows.promote")
    before = client.get_model_version(name, str(champion.version)).tags.get(BEFORE)
    if not before:
        raise ValueError(f"there is no champion before {champion.label}. Register and promote another model.")
    return _move(client, find(f"{name}/{before}"), champion, f"return from version {champion.version}")


def history(name: str) -> list[Move]:
    """Changes of the champion, oldest first."""
    tags: dict[str, str] = Store().client.get_registered_model(name).tags
    return [Move(**json.loads(tags[key])) for key in sorted(tags) if key.startswith(MOVED)]


def log_audit(model: Registered, outcome: str, files: Sequence[Path]) -> None:
    """Log the result of an audit as an MLflow run with files; a tag of the version refers to the run."""
    client = Store().client
    tags = {"kind": "audit", "model": model.name, "version": str(model.version)}
    tags["mlflow.note.content"] = _checked(outcome)
    run = client.create_run(experiment_id(), run_name=f"audit {model.label}", tags=tags)
    for file in files:
        client.log_artifact(run.info.run_id, str(file))
    client.set_terminated(run.info.run_id, "FINISHED")
    client.set_model_version_tag(model.name, str(model.version), f"audit.{_now()}", run.info.run_id)


def _move(client: "MlflowClient", model: Registered, before: Registered | None, why: str) -> Move:
    move = Move(_now(), model.version, before.version if before else None, why)
    # before the alias, so that no change is without a record
    record = json.dumps(asdict(move), ensure_ascii=False)
    client.set_registered_model_tag(model.name, MOVED + move.when, _checked(record))
    client.set_registered_model_alias(model.name, CHAMPION, str(model.version))
    return move


def _search(name: str) -> "list[ModelVersion]":
    # the name is a part of the query
    if "'" in name:
        raise ValueError(
            f"name of a registered model: {name!r}. It must not contain an apostrophe. Choose another name."
        )
    return list(Store().client.search_model_versions(f"name = '{name}'"))


def _make_model(client: "MlflowClient", name: str) -> None:
    if not any(each.name == name for each in client.search_registered_models(f"name = '{name}'")):
        client.create_registered_model(name, description=DESCRIPTION)


def _registered(version: "ModelVersion") -> Registered:
    target, digest, files_digest = (version.tags.get(key, "") for key in ("target", "digest", "files_digest"))
    return Registered(version.name, int(version.version), target, digest, files_digest)


def _checked(text: str) -> str:
    if len(text) > MAX_DESCRIPTION:
        raise ValueError(
            f"text for the registry: {len(text)} characters. At most {MAX_DESCRIPTION} are allowed. Shorten it: "
            f"{text[:80]}..."
        )
    return text


def _now() -> str:
    # a tag's name must not have the plus sign of +00:00
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
