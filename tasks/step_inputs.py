"""Inputs of a step: what it depends on, their locks, and checks that they fit and stay the same until the end."""

import json
import logging
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ruamel.yaml import YAML

from tasks.core.locks import locked
from tasks.core.made_with import check_made_with
from tasks.core.source import check_sources
from tasks.core.workspace import DEFENCE_STEPS, SCHEMA_VERSION, Workspace
from tasks.params import Params, load_params
from tasks.params.params import STEP_PARAMS

log = logging.getLogger(__name__)


@contextmanager
def step_lock(workspace: Workspace, step: str, params: Params) -> Iterator[list[str]]:
    """Lock the output folder of a step, and the outputs of other steps that it reads.

    Args:
        workspace: where the step runs.
        step: ``step`` or ``step@defence``.
        params: all parameters.

    Yields:
        The dependencies of the step (:func:`deps_of`).
    """
    deps, reads = deps_of(workspace, step, params), set[str]()
    for path in map(Path, deps):
        if path.parts[0] != "data" or path.suffix:
            continue
        if path.name in DEFENCE_STEPS:
            reads |= {f"{path.name}@{each}" for each in params.selected_defences}
        else:
            reads.add("@".join(path.parts[1:]))
    with locked(workspace.locks, [step], reads):
        yield deps


def check_prepared(workspace: Workspace, params: Params) -> None:
    """Check that the images were prepared by this version for the classes of the parameters.

    A step by hand may not have done this.

    Raises:
        ValueError: the version of the outputs, the classes, their order or the positive class differ.
    """
    info = json.loads(workspace.dataset_info.read_text(encoding="utf-8"))
    if (version := info.get("schema_version")) != SCHEMA_VERSION:
        raise ValueError(
            f"{workspace.dataset_info} has the schema_version {version}, and only {SCHEMA_VERSION} is supported. "
            "Another version of this project made the outputs in data. Run all steps again: dvc repro"
        )
    present = {"classes": list(params.acquire.classes), "positive_class": params.acquire.positive_class}
    prepared = {key: info[key] for key in present}
    check_made_with(workspace.dataset_info, "prepare", prepared, workspace.params_file, present)


def set_aside_deselected(workspace: Workspace, params: Params) -> None:
    """Move the results of defences that are not in ``selected_defences`` to ``checkpoints/deselected``.

    Steps such as ``evaluate`` depend on the folders of all defences. DVC would count results that the pipeline no
    longer makes as inputs, and the step would run again in every clone that lacks them. If the defence is selected
    again, DVC restores its results from the cache. They are not deleted: DVC does not have those of a step by hand.

    Raises:
        ValueError: a folder cannot be moved.
    """
    for step in DEFENCE_STEPS:
        for folder in sorted((workspace.data / step).glob("*/")):
            if folder.name not in params.selected_defences:
                name, target = folder.relative_to(workspace.root), workspace.deselected / step / folder.name
                with locked(workspace.locks, [f"{step}@{folder.name}"]):
                    if not folder.exists():
                        continue
                    try:
                        shutil.rmtree(target, ignore_errors=True)
                        target.parent.mkdir(parents=True, exist_ok=True)
                        shutil.move(folder, target)
                    except OSError as error:
                        raise ValueError(
                            f"{name} cannot be moved: {error}. The defence is not in selected_defences, and steps "
                            "that depend on all defences must not read its results. Remove it by hand."
                        ) from error
                moved = target.relative_to(workspace.root)
                log.info("moved %s to %s: the defence is not in selected_defences", name, moved)


def deps_of(workspace: Workspace, step: str, params: Params) -> list[str]:
    """Files and folders that a step depends on according to dvc.yaml; none if there is no such file."""
    name, _, defence = step.partition("@")
    dvc_file = workspace.root / "dvc.yaml"
    stages = YAML(typ="safe").load(dvc_file)["stages"] if dvc_file.is_file() else {}
    values = params.flat() | {"item.defence": defence}
    deps = stages.get(name, {}).get("deps", [])
    return [re.sub(r"\$\{([\w.]+)\}", lambda match: str(values[match[1]]), dep) for dep in deps]


def given_files(workspace: Workspace, deps: Iterable[str]) -> list[Path]:
    """Files of the user among dependencies: images, models, plug-ins."""
    given = [workspace.root / dep for dep in deps if not dep.startswith(("data/", "tasks/"))]
    files = [file for path in given for file in (path, *path.rglob("*")) if file.is_file()]
    # Python writes its caches when it imports a plug-in
    return [file for file in files if "__pycache__" not in file.parts]


def states_of_given_files(workspace: Workspace, deps: Iterable[str]) -> dict[str, tuple[int, int, int]]:
    """Inode, size and time of :func:`given_files`.

    A file that is replaced by another one of the same size and time has another inode. The time of the status is not
    compared: a hard link to the file changes it.
    """
    states = {file.as_posix(): file.stat() for file in given_files(workspace, deps)}
    return {name: (state.st_ino, state.st_size, state.st_mtime_ns) for name, state in states.items()}


def check_unchanged(workspace: Workspace, step: str, params: Params) -> None:
    """Check that parameters and code have not changed since a step ran, because DVC records their present state.

    Args:
        workspace: its params.yaml is compared, if there is one.
        step: ``step`` or ``step@defence``; for another name, all parameters are compared.
        params: the parameters with which the step ran.

    Raises:
        ValueError: they have changed, or params.yaml is no longer valid.
    """
    check_sources(step)
    if not workspace.params_file.exists():
        return
    name, _, defence = step.partition("@")
    before, now = (
        each.of_step(name, defence or None) if name in STEP_PARAMS else each.flat()
        for each in (params, load_params(workspace.params_file))
    )
    if changed := sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key)):
        raise ValueError(
            f"{workspace.params_file} changed while {step} ran: {', '.join(changed)}. The parameters must stay the "
            "same until the end, since the result would be recorded with the new values. Run again."
        )
