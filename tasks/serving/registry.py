"""The model registry: versions of defended models, who is champion, and who was.

A version is a bundle (:mod:`tasks.serving.bundle`) behind MLflow's pyfunc interface. Two aliases say what is what:
``candidate`` was registered last, ``champion`` is served. Each move of ``champion`` is a tag of the registered model,
named after its time; the tag ``champion.before`` of a version says whose place it took.
"""

import io
import json
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version as version_of_package
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks import serving
from tasks.serving.bundle import CARD, EXAMPLES, read_bundle
from tasks.tracking import experiment_id, masked, tracking_uri
from tasks.tracking.outbox import now
from tasks.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature
    from mlflow.tracking import MlflowClient

CANDIDATE, CHAMPION = "candidate", "champion"
BEFORE = "champion.before"
"""Tag of a version: the champion whose place it took; empty if there was none."""
MOVED = "champion.moved."
"""How tags of the registered model begin that tell when the champion changed, and why."""
MAX_DESCRIPTION = 5000
"""Characters that MLflow keeps of a description, and of a tag's value."""

PACKAGES = (
    *("mlflow", "torch", "torchvision", "numpy", "pandas", "pillow", "safetensors", "pydantic", "ruamel.yaml"),
    *("scipy", "scikit-learn", "pyarrow", "adversarial-robustness-toolbox"),
)
"""What a bundle needs to be loaded and asked."""

DESCRIPTION = (
    "Classifiers of medical images that were evaluated under attack. `candidate`: registered last; `champion`: served. "
    "For research, not for diagnosis."
)


@dataclass(frozen=True)
class Move:
    """One change of the champion."""

    when: str
    """UTC, ISO 8601 to the microsecond."""
    version: int
    """The champion from then on."""
    before: int | None
    """The champion until then."""
    why: str


@dataclass(frozen=True)
class Registered:
    """A version in the registry."""

    name: str
    version: int
    target: str
    digest: str
    """Of the target's layers and weights."""

    @property
    def label(self) -> str:
        """``ct-robustness-v3``: for folders and people."""
        return f"{self.name}-v{self.version}"


def register_bundle(folder: Path, name: str, summary: str, alias: str | None = CANDIDATE) -> Registered:
    """Register a bundle as the next version of a model.

    Args:
        folder: the bundle.
        name: of the registered model; made if there is none.
        summary: what the model card comes to: the version's description.
        alias: that the version gets.
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
            mlflow.pyfunc.save_model(
                path,
                python_model=str(Path(str(serving.__file__)).parent / "pyfunc.py"),
                artifacts={"bundle": str(folder.resolve())},
                code_paths=[str(Path(str(serving.__file__)).parents[1])],
                signature=_signature(),
                input_example=_input_example(folder),
                # given, since working them out starts a process of many seconds
                pip_requirements=[f"{package}=={version_of_package(package)}" for package in PACKAGES],
            )
            store.model(run, "defended", path)
            logged = mlflow.models.Model.load(path)
        made = client.create_model_version(
            name,
            f"models:/{logged.model_id}",
            logged.run_id,
            tags={"target": bundle.target, "digest": bundle.digest, "dataset": bundle.dataset},
            description=_checked(summary),
            model_id=logged.model_id,
        )
        status = "FINISHED"
    finally:
        store.close(run, status, now())
    if alias:
        client.set_registered_model_alias(name, alias, made.version)
    return _registered(made)


def find_version(name: str, digest: str) -> Registered | None:
    """The latest version whose target has this digest, if there is one."""
    found = [each for each in all_versions(name) if each.digest == digest]
    return found[-1] if found else None


def all_versions(name: str) -> list[Registered]:
    """Versions of a model, oldest first; none where there is no such model."""
    # a name goes into a query
    if "'" in name:
        raise ValueError(f"{name!r}: a model's name can't hold an apostrophe")
    found = Store().client.search_model_versions(f"name = '{name}'")
    return sorted(map(_registered, found), key=lambda each: each.version)


def find(model: str) -> Registered:
    """A version by ``name@alias`` or ``name/version``.

    Raises:
        ValueError: written otherwise, or there is no such version.
    """
    from mlflow.exceptions import MlflowException

    name, at, alias = model.partition("@")
    number = ""
    if not at:
        name, _, number = model.rpartition("/")
    if not name or not (alias or number.isdecimal()):
        raise ValueError(f"{model!r} names no model version: write name@alias or name/version, such as name@champion")
    client = Store().client
    try:
        found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    except MlflowException as error:
        there = [f"{each.name}/{each.version}" for each in all_versions(name)]
        raise ValueError(
            f"{model} is not in the registry {masked(tracking_uri())}: {error.message.rstrip('.')}; there "
            f"{'are ' + ', '.join(there) if there else 'is no version of ' + name} (python -m flows.register)"
        ) from None
    return _registered(found)


def holder_of(name: str, alias: str) -> Registered | None:
    """The version that an alias stands for; None if there is none."""
    client = Store().client
    aliases: dict[str, str] = next(
        (each.aliases for each in client.search_registered_models(f"name = '{name}'") if each.name == name), {}
    )
    return _registered(client.get_model_version(name, aliases[alias])) if alias in aliases else None


def download(model: Registered, folder: Path) -> Path:
    """The bundle of a version, copied below a folder."""
    import mlflow

    folder.mkdir(parents=True, exist_ok=True)
    uri, store = f"models:/{model.name}/{model.version}/artifacts", Store().client.tracking_uri
    artifacts = mlflow.artifacts.download_artifacts(uri, dst_path=str(folder), tracking_uri=store, registry_uri=store)
    # called there as it was when it was registered
    (bundle,) = Path(artifacts).iterdir()
    return bundle


def move_champion(model: Registered, why: str) -> Move:
    """Make a version the champion, and write down whose place it took, when and why."""
    client, before = Store().client, holder_of(model.name, CHAMPION)
    client.set_model_version_tag(model.name, str(model.version), BEFORE, str(before.version) if before else "")
    return _move(client, model, before, why)


def champion_back(name: str) -> Move:
    """Make the version champion again whose place the champion took.

    Raises:
        ValueError: there is no champion, or none was before it.
    """
    client, champion = Store().client, holder_of(name, CHAMPION)
    if champion is None:
        raise ValueError(f"{name} has no champion")
    before = client.get_model_version(name, str(champion.version)).tags.get(BEFORE)
    if not before:
        raise ValueError(f"{champion.label} is champion, and the history knows of none before it")
    return _move(client, find(f"{name}/{before}"), champion, f"back from version {champion.version}")


def history(name: str) -> list[Move]:
    """Changes of the champion, oldest first."""
    tags: dict[str, str] = Store().client.get_registered_model(name).tags
    return [Move(**json.loads(tags[key])) for key in sorted(tags) if key.startswith(MOVED)]


def note_audit(model: Registered, outcome: str, files: Sequence[Path]) -> None:
    """Keep what an audit of a version found: a run with the files, and a tag of the version that leads to it."""
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
    # written first: an alias never moves without a trace
    told = json.dumps(asdict(move), ensure_ascii=False)
    client.set_registered_model_tag(model.name, MOVED + move.when, _checked(told))
    client.set_registered_model_alias(model.name, CHAMPION, str(model.version))
    return move


def _make_model(client: "MlflowClient", name: str) -> None:
    if not any(each.name == name for each in client.search_registered_models(f"name = '{name}'")):
        client.create_registered_model(name, description=DESCRIPTION)


def _registered(version: "ModelVersion") -> Registered:
    return Registered(
        version.name, int(version.version), version.tags.get("target", ""), version.tags.get("digest", "")
    )


def _checked(text: str) -> str:
    if len(text) > MAX_DESCRIPTION:
        raise ValueError(
            f"{len(text)} characters are more than the {MAX_DESCRIPTION} that the registry keeps: {text[:80]}..."
        )
    return text


def _now() -> str:
    # a plus sign can't be in a tag's name
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _signature() -> "ModelSignature":
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import Array, Map

    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.binary, "image", required=False),
        ColSpec(Array(Array(DataType.double)), "pixels", required=False),
    ]
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "class"),
        ColSpec(Map(DataType.double), "probabilities"),
        ColSpec(DataType.double, "entropy"),
        ColSpec(DataType.double, "detector_score", required=False),
        ColSpec(Array(DataType.string), "warnings"),
    ]
    return ModelSignature(Schema(inputs), Schema(outputs))


def _input_example(folder: Path) -> Any:
    import pandas as pd
    from PIL import Image

    files = []
    for pixels in np.load(folder / EXAMPLES, allow_pickle=False)[:2, 0]:
        Image.fromarray(pixels).save(file := io.BytesIO(), format="PNG")
        files.append(file.getvalue())
    return pd.DataFrame({"image": files})
