"""The one way in which every step is run: by its DVC stage, by a flow, by hand.

``python -m tasks.<step>`` calls :func:`main`; a flow wraps :func:`run_step`.
"""

import gc
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable

from tasks import paths
from tasks.params import Params, ParamsError, load_params
from tasks.tracking import Tracker, open_run

Step = Callable[[Params, Tracker], None]


def run_step(step: Step, params: Params, orchestrator: str = "python") -> None:
    """Recreate the step's own folder, open its tracking run, call it, and drop its checkpoints.

    The run is marked failed when the step raises, and the exception is let out; checkpoints then stay, and the next
    run of the step goes on from them.

    Args:
        step: function named like its module and its stage.
        params: all parameters of the pipeline.
        orchestrator: who runs the step (``dvc``, ``prefect``, ``python``); a tag of the run.
    """
    folder = paths.step_folder(step.__name__)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with open_run(step.__name__, folder, params, orchestrator) as tracker:
        step(params, tracker)
    shutil.rmtree(paths.checkpoint_folder(step.__name__), ignore_errors=True)


def main(step: Step) -> None:
    """Command-line entry of a step: the parameters in params.yaml, progress on standard error."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # imports make many objects and hardly any garbage: looking for it less often takes a tenth off a stage's start
    gc.set_threshold(100_000)
    # a polite kill ends like Ctrl-C, so that the tracking run is closed as killed
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # DVC sets this variable for the commands of its stages
    orchestrator = "dvc" if "DVC_STAGE" in os.environ else "python"
    try:
        run_step(step, load_params(), orchestrator)
    except (ParamsError, ValueError, OSError) as error:
        if os.environ.get("CT_ROBUSTNESS_TRACEBACK"):
            raise
        sys.exit(f"{step.__name__}: {error}")
