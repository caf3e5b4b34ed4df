"""The flow ``classifier_audit``: the pipeline on a trained classifier and images of the user, in its own workspace.

``python -m flows.audit --model FILE --images FOLDER`` writes the parameters and starts the flow.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import pandas as pd
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field
from ruamel.yaml import YAML

from flows.audit_options import NAME
from flows.audit_run import AUDITS, attack_steps, describe_result, renewed, run_steps
from flows.command import log_progress
from flows.server import NOTIFY
from tasks.core.locks import locked
from tasks.core.workspace import Workspace
from tasks.dataset.data_versions import write_reference
from tasks.dataset.folder import list_files
from tasks.dataset.table import read_table
from tasks.models.imported import ImportedClassifier
from tasks.models.loading import import_classifier
from tasks.params import UNDEFENDED, Params, load_params
from tasks.tracking import plain_markdown
from tasks.tracking.imported import download_program

DATA_STEPS = ("check_params", "acquire", "validate", "prepare")
TRAINING_STEPS = ("train_classifier", "train_surrogates", "train_autoencoder")


@flow(name="classifier_audit", **NOTIFY)
def classifier_audit(name: Annotated[str, Field(pattern=NAME)] = "classifier") -> str:
    """Run the pipeline on an imported classifier in the workspace ``audits/NAME``, without active learning.

    Args:
        name: folder below audits. Its params.yaml has the classifier and the images.

    Returns:
        The result in a few sentences.
    """
    log_progress()
    workspace = Workspace(AUDITS / name)
    with locked(AUDITS / ".locks", [name]):
        params = load_params(workspace.params_file)
        check_outside(name, params)
        renewed(workspace.data)
        defences = params.selected_defences
        run_steps([(step, "") for step in DATA_STEPS], workspace, params, name)
        # the report compares the images with a version of the data; an audit has only this one
        write_reference(pd.read_parquet(workspace.manifest), workspace.reference)
        training = [(step, "") for step in TRAINING_STEPS] + [("train_defence", defence) for defence in defences]
        run_steps([*training, *attack_steps(defences, with_report=True)], workspace, params, name)
        n_test = int((pd.read_parquet(workspace.split)["split"] == "test").sum())
        outcome = describe_result(workspace, params, UNDEFENDED, name, n_test)
    create_markdown_artifact(key="audit", markdown=plain_markdown(outcome), description=f"Audit of {name}")
    return outcome


def check_outside(name: str, params: Params) -> None:
    """Check that no file of the user is below ``audits/NAME/data``, which the audit empties.

    Raises:
        ValueError: one is.
    """
    workspace = Workspace(AUDITS / name)
    data, acquire = workspace.data.resolve(), params.acquire
    paths = {"acquire.folder": acquire.folder, "acquire.table.salt_file": acquire.table.salt_file}
    for key, path in (paths | {"classifier.folder": params.classifier.folder}).items():
        if (workspace.root / Path(path).expanduser()).resolve().is_relative_to(data):
            raise ValueError(
                f"{key}: {path} is in {workspace.data}, which the audit empties. Move it, or use another --name."
            )


def count_images(params: Params) -> dict[str, int]:
    """Number of images of each class in the folder of the images.

    Raises:
        ValueError: a class has no images, or the table cannot be used.
    """
    acquire = params.acquire
    if acquire.source != "folder":
        raise ValueError(f"acquire.source: {acquire.source}. An audit needs a folder. Add --images.")
    folder = Path(acquire.folder)
    if acquire.table.file:
        counts = read_table(folder, acquire.table, acquire.classes)["class"].value_counts().to_dict()
    else:
        counts = {name: len(list_files(folder / name)) for name in acquire.classes if (folder / name).is_dir()}
    if empty := [name for name in acquire.classes if not counts.get(name)]:
        raise ValueError(
            f"--images: {folder} has no images of the classes {empty}. There must be a subfolder with images for each "
            f"of {list(acquire.classes)}. Correct the folder or --classes."
        )
    return {name: counts[name] for name in acquire.classes}


def try_import(params: Params) -> ImportedClassifier:
    """Import the classifier into a temporary workspace, so that a wrong model stops before any work.

    Raises:
        FileNotFoundError: a file of the classifier is missing.
        ValueError: a file is refused, or the network does not fit the declared input and output.
    """
    settings, classifier = params.prepare, params.classifier
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        workspace.train_classifier.mkdir(parents=True)
        downloaded = download_program(classifier.uri, workspace.root) if classifier.uri else None
        model, _ = import_classifier(
            classifier,
            params.acquire.classes,
            params.acquire.positive_class,
            settings.image_size,
            settings.channels,
            workspace,
            downloaded,
        )
    return model


def write_workspace(name: str, params: Params) -> Workspace:
    """Create the workspace of an audit with its parameter file and the user's plug-ins.

    If an audit of this name is running, wait until it has ended.
    """
    workspace = Workspace(AUDITS / name)
    with locked(AUDITS / ".locks", [name]):
        workspace.root.mkdir(parents=True, exist_ok=True)
        with workspace.params_file.open("w", encoding="utf-8") as file:
            YAML(typ="safe").dump(params.model_dump(mode="json", by_alias=True, exclude_unset=True), file)
        if Workspace().plugins.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(Workspace().plugins, workspace.plugins, dirs_exist_ok=True, ignore=ignored)
    return workspace
