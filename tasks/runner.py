"""The one way in which every step is run: by its DVC stage, by a flow, by hand.

``python -m tasks.<step>``, or ``python -m tasks.<step> <defence>``, calls :func:`main`; a flow wraps :func:`run_step`.
"""

import argparse
import gc
import inspect
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable

from tasks import paths
from tasks.params import Params, ParamsError, load_params
from tasks.tracking import masked, open_run

Step = Callable[..., None]
"""Takes the parameters and a tracker, and the name of a defence if it runs for each."""


def run_step(step: Step, params: Params, orchestrator: str = "python", defence: str | None = None) -> None:
    """Recreate the step's own folder, open its tracking run, call it, and drop its checkpoints.

    The run is marked failed when the step raises, and the exception is let out; checkpoints then stay, and the next
    run of the step goes on from them.

    Args:
        step: function named like its module and its stage.
        params: all parameters of the pipeline.
        orchestrator: who runs the step (``dvc``, ``prefect``, ``python``); a tag of the run.
        defence: the one that the step shall run for, if it runs for each.
    """
    folder = paths.step_folder(step.__name__, defence)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with open_run(paths.step_of(folder), folder, params, orchestrator) as tracker:
        if defence is None:
            step(params, tracker)
        else:
            step(params, tracker, defence)
    shutil.rmtree(paths.checkpoint_folder(step.__name__, defence), ignore_errors=True)


def main(step: Step) -> None:
    """Command-line entry of a step: the parameters in params.yaml, progress on standard error."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # imports make many objects and hardly any garbage: looking for it less often takes a tenth off a stage's start
    gc.set_threshold(100_000)
    # a polite kill ends like Ctrl-C, so that the tracking run is closed as killed
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # DVC sets this variable for the commands of its stages
    orchestrator = "dvc" if "DVC_STAGE" in os.environ else "python"
    parser = argparse.ArgumentParser(prog=f"python -m tasks.{step.__name__}", description=inspect.getdoc(step))
    if "defence" in inspect.signature(step).parameters:
        parser.add_argument("defence", help="its name in defences of params.yaml")
    defence = vars(parser.parse_args()).get("defence")
    try:
        params = load_params()
        if defence is not None and defence not in params.defences:
            raise ValueError(f"{defence!r} is none of the defences in {paths.PARAMS}: {list(params.defences)}")
        run_step(step, params, orchestrator, defence)
    except (ParamsError, ValueError, OSError) as error:
        if os.environ.get("CT_ROBUSTNESS_TRACEBACK"):
            raise
        sys.exit(masked(f"{step.__name__}: {error}"))
