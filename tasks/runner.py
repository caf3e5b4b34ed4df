"""Run a step: for its DVC stage, for a flow, or by hand.

``python -m tasks.<step>`` and ``python -m tasks.<step> --defence <defence>`` call :func:`main`; flows call
:func:`run_step`.
"""

import argparse
import inspect
import json
import logging
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ruamel.yaml import YAML

from tasks.core.locks import locked
from tasks.core.made_with import check_made_with
from tasks.core.source import check_sources
from tasks.core.workspace import DEFENCE_STEPS, SCHEMA_VERSION, Workspace
from tasks.params import Params, load_params
from tasks.params.params import STEP_PARAMS
from tasks.tracking import masked, open_run

log = logging.getLogger(__name__)

Step = Callable[..., None]
"""Takes the workspace, the parameters and a tracker, and the name of a defence if it runs once for each defence."""


def run_step(
    step: Step,
    workspace: Workspace,
    params: Params,
    orchestrator: str = "python",
    defence: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Lock and empty the output folder of a step, open its tracking run, call the step, and remove its checkpoints.

    If the step raises an exception, the run is marked as failed, and the checkpoints stay: the next run of the step
    resumes from them.

    Args:
        step: function with the name of its module and its stage.
        workspace: where the step reads and writes.
        params: all parameters of the pipeline.
        orchestrator: a tag of the run: ``dvc``, ``prefect`` or ``python``.
        defence: name of the defence, for a step that runs once for each defence.
        tags: further tags of the run.

    Raises:
        MemoryError: out of memory; the message names the parameter to lower.
        ValueError: parameters, code or files of the user changed while the step ran.
    """
    folder = workspace.step_folder(step.__name__, defence)
    name = workspace.step_of(folder)
    with step_lock(workspace, name, params) as deps:
        if "data/prepare" in deps and workspace.dataset_info.is_file():
            check_prepared(workspace, params)
        if any(dep in (f"data/{each}" for each in DEFENCE_STEPS) for dep in deps):
            remove_deselected(workspace, params)
        given = states_of_given_files(workspace, deps)

        def check_inputs() -> None:
            check_unchanged(workspace, name, params)
            if changed := given.items() ^ states_of_given_files(workspace, deps).items():
                files = ", ".join(sorted({file for file, _ in changed})[:5])
                raise ValueError(
                    f"files changed while {name} ran: {files}. The inputs must stay the same until the end, since the "
                    "result would be recorded with the new files. Run again."
                )

        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with open_run(workspace, name, folder, params, orchestrator, tags) as tracker:
            try:
                step(workspace, params, tracker, *filter(None, [defence]))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                cause = str(error).partition("\n")[0] or type(error).__name__
                raise MemoryError(
                    f"out of memory: {cause}. Lower {batch_size_key(step.__name__, defence)} in "
                    f"{workspace.params_file}, or set compute.device to a device with more memory."
                ) from error
            check_inputs()
        # once more, since closing the tracking run takes seconds and DVC records the inputs after it
        check_inputs()
        shutil.rmtree(workspace.checkpoint_folder(step.__name__, defence), ignore_errors=True)


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


def remove_deselected(workspace: Workspace, params: Params) -> None:
    """Remove the results of defences that are not in ``selected_defences``.

    Steps such as ``evaluate`` depend on the folders of all defences. DVC would count results that the pipeline no
    longer makes as inputs, and the step would run again in every clone that lacks them. If the defence is selected
    again, DVC restores its results from the cache.

    Raises:
        ValueError: a folder cannot be removed.
    """
    for step in DEFENCE_STEPS:
        for folder in sorted((workspace.data / step).glob("*/")):
            if folder.name not in params.selected_defences:
                name = folder.relative_to(workspace.root)
                with locked(workspace.locks, [f"{step}@{folder.name}"]):
                    if not folder.exists():
                        continue
                    try:
                        shutil.rmtree(folder)
                    except OSError as error:
                        raise ValueError(
                            f"{name} cannot be removed: {error}. The defence is not in selected_defences, and steps "
                            "that depend on all defences must not read its results. Remove it by hand."
                        ) from error
                log.info("removed %s: the defence is not in selected_defences", name)


def deps_of(workspace: Workspace, step: str, params: Params) -> list[str]:
    """Files and folders that a step depends on according to dvc.yaml; none if there is no such file."""
    name, _, defence = step.partition("@")
    dvc_file = workspace.root / "dvc.yaml"
    stages = YAML(typ="safe").load(dvc_file)["stages"] if dvc_file.is_file() else {}
    values = params.flat() | {"item.defence": defence}
    deps = stages.get(name, {}).get("deps", [])
    return [re.sub(r"\$\{([\w.]+)\}", lambda match: str(values[match[1]]), dep) for dep in deps]


def states_of_given_files(workspace: Workspace, deps: Iterable[str]) -> dict[str, tuple[int, int, int]]:
    """Inode, size and time of the files of the user among the dependencies of a step: images, models, plug-ins.

    A file that is replaced by another one of the same size and time has another inode. The time of the status is not
    compared: a hard link to the file changes it.
    """
    given = [workspace.root / dep for dep in deps if not dep.startswith(("data/", "tasks/"))]
    files = [file for path in given for file in (path, *path.rglob("*")) if file.is_file()]
    # Python writes its caches when it imports a plug-in
    states = {file.as_posix(): file.stat() for file in files if "__pycache__" not in file.parts}
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


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the machine or its GPU is out of memory. Torch has several classes for it."""
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("can't allocate memory", "out of memory", "CUDNN_STATUS_ALLOC_FAILED")
    )


def batch_size_key(step: str, defence: str | None) -> str:
    """Dotted key of the batch size of a step."""
    return {
        "train_classifier": "train_classifier.batch_size",
        "train_surrogates": "train_classifier.batch_size",
        "train_autoencoder": "train_autoencoder.batch_size",
        "train_defence": f"defences.{defence}.training.batch_size",
        "simulate_labelling": "active_learning.training.batch_size",
    }.get(step, "attack.batch_size")


def main(step: Step) -> None:
    """Run a step from the command line, with the parameters of params.yaml and progress on standard error."""
    log_to_stderr()
    # ends like Ctrl-C, so that the tracking run ends as killed
    signal.signal(signal.SIGTERM, interrupt)
    # DVC sets this variable for the commands of its stages
    orchestrator = "dvc" if "DVC_STAGE" in os.environ else "python"
    parser = argparse.ArgumentParser(prog=f"python -m tasks.{step.__name__}", description=inspect.getdoc(step))
    if "defence" in inspect.signature(step).parameters:
        parser.add_argument("--defence", required=True, help="a name in defences of params.yaml")
    defence = vars(parser.parse_args()).get("defence")
    try:
        workspace, params = Workspace(), load_params()
        if defence is not None and defence not in params.defences:
            raise ValueError(
                f"defence: {defence!r}. {workspace.params_file} has {', '.join(params.defences)}. Choose one of them, "
                "or add it to defences."
            )
        run_step(step, workspace, params, orchestrator, defence)
    except KeyboardInterrupt as interrupted:
        number = signal.SIGTERM if signal.SIGTERM in interrupted.args else signal.SIGINT
        log.error("%s: ended by %s. Checkpoints are kept; the next run resumes.", step.__name__, number.name)
        sys.exit(128 + number)
    except (ValueError, OSError, MemoryError) as error:
        if needs_traceback(error):
            raise
        sys.exit(masked(f"{step.__name__}: {error}"))


def interrupt(number: int, _frame: object) -> None:
    """Handle a signal as Ctrl-C, with the signal as argument of the exception."""
    raise KeyboardInterrupt(signal.Signals(number))


def log_to_stderr() -> None:
    """Print the log lines of steps and flows, and only warnings of other packages."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("dvc", "httpx", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # read when mlflow is imported
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")


def needs_traceback(error: BaseException) -> bool:
    """Return whether an error is printed with its traceback, and not as one message for the user.

    OSError and MemoryError are messages: they name what the user has to change. Other exceptions are messages if a
    module of ``tasks`` or ``flows`` raised them, or if they come from another process and have no traceback.
    """
    if os.environ.get("CT_ROBUSTNESS_TRACEBACK"):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, OSError | MemoryError) or not frames:
        return False
    root = Path(__file__).resolve().parents[1]
    raised_in = Path(frames[-1].filename).resolve()
    return not any(raised_in.is_relative_to(root / package) for package in ("tasks", "flows"))
