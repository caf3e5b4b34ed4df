"""The one way in which every step is run: by its DVC stage, by a flow, by hand.

``python -m tasks.<step>``, or ``python -m tasks.<step> <defence>``, calls :func:`main`; a flow wraps :func:`run_step`.
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

from tasks.core.workspace import Workspace
from tasks.params import Params, load_params
from tasks.tracking import masked, open_run

Step = Callable[..., None]
"""Takes the parameters and a tracker, and the name of a defence if it runs for each."""


def run_step(
    step: Step,
    workspace: Workspace,
    params: Params,
    orchestrator: str = "python",
    defence: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Recreate the step's own folder, open its tracking run, call it, and drop its checkpoints.

    The run is marked failed when the step raises, and the exception is let out; checkpoints then stay, and the next
    run of the step goes on from them.

    Args:
        step: function named like its module and its stage.
        workspace: where it reads and writes.
        params: all parameters of the pipeline.
        orchestrator: who runs the step (``dvc``, ``prefect``, ``python``); a tag of the run.
        defence: name of the defence, for a step that runs once for each.
        tags: further tags of the run.

    Raises:
        MemoryError: too little of it; with the parameter to lower.
    """
    folder = workspace.step_folder(step.__name__, defence)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with open_run(workspace, workspace.step_of(folder), folder, params, orchestrator, tags) as tracker:
        try:
            if defence is None:
                step(workspace, params, tracker)
            else:
                step(workspace, params, tracker, defence)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            said = str(error).partition("\n")[0] or type(error).__name__
            raise MemoryError(
                f"out of memory ({said}); lower {batch_size_of(step.__name__, defence)} in "
                f"{workspace.params_file}, or compute where there is more (compute.device)"
            ) from error
    shutil.rmtree(workspace.checkpoint_folder(step.__name__, defence), ignore_errors=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out, of the machine or of its GPU; torch has no one class for it."""
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("can't allocate memory", "out of memory", "CUDNN_STATUS_ALLOC_FAILED")
    )


def batch_size_of(step: str, defence: str | None) -> str:
    """Dotted key of the parameter that decides how many images a step holds at once."""
    return {
        "train_classifier": "train_classifier.batch_size",
        "train_autoencoder": "train_autoencoder.batch_size",
        "train_defence": f"defences.{defence}.training.batch_size",
        "active_learning": "active_learning.training.batch_size",
    }.get(step, "attack.batch_size")


def main(step: Step) -> None:
    """Command-line entry of a step: the parameters in params.yaml, progress on standard error."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # a polite kill ends like Ctrl-C, so that the tracking run is closed as killed
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # DVC sets this variable for the commands of its stages
    orchestrator = "dvc" if "DVC_STAGE" in os.environ else "python"
    parser = argparse.ArgumentParser(prog=f"python -m tasks.{step.__name__}", description=inspect.getdoc(step))
    if "defence" in inspect.signature(step).parameters:
        parser.add_argument("defence", help="its name in defences of params.yaml")
    defence = vars(parser.parse_args()).get("defence")
    try:
        workspace, params = Workspace(), load_params()
        if defence is not None and defence not in params.defences:
            raise ValueError(f"{defence!r} is none of the defences in {workspace.params_file}: {list(params.defences)}")
        run_step(step, workspace, params, orchestrator, defence)
    except (ValueError, OSError, MemoryError) as error:
        if os.environ.get("CT_ROBUSTNESS_TRACEBACK") or not is_ours(error):
            raise
        sys.exit(masked(f"{step.__name__}: {error}"))


def is_ours(error: BaseException) -> bool:
    """Whether an exception is a message of this project for its user, and not an error inside a library.

    OSError and MemoryError name what the user has to change, whoever raises them. Other exceptions are ours if a
    module of ``tasks`` raised them.
    """
    if isinstance(error, OSError | MemoryError):
        return True
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    return raised_in.is_relative_to(Path(__file__).resolve().parent)
