"""Run a step: for its DVC stage, for a flow, or by hand.

``python -m tasks.<step>`` and ``python -m tasks.<step> --defence <defence>`` call :func:`main`; flows call
:func:`run_step`.
"""

import argparse
import inspect
import logging
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from tasks.core.workspace import DEFENCE_STEPS, Workspace
from tasks.params import Params, load_params
from tasks.step_inputs import check_prepared, check_unchanged, set_aside_deselected, states_of_given_files, step_lock
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
            set_aside_deselected(workspace, params)
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
