"""How a flow is run from the command line: progress on standard error, one sentence where it fails."""

import logging
import os
import sys
from typing import Any

from prefect.exceptions import ParameterTypeError

from tasks.params import ParamsError, load_params
from tasks.tracking import masked


def run_flow(flow: Any, **parameters: Any) -> Any:
    """What a flow returns; the process ends with a message where it can't be run, or fails.

    Args:
        flow: of Prefect.
        parameters: of the flow.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # mlflow sets its own loggers up when it is imported
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    for chatty in ("dvc", "httpx", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if not os.environ.get("CT_ROBUSTNESS_TRACEBACK"):
        # the message that ends the process says it in a sentence
        for traced in ("prefect.flow_runs", "prefect.task_runs"):
            logging.getLogger(traced).setLevel(logging.CRITICAL)
    # what it logs of a refusal is what the message says
    logging.getLogger("prefect.flows").setLevel(logging.CRITICAL)
    try:
        load_params()
        flow.validate_parameters(parameters)
    except ParamsError as error:
        sys.exit(str(error))
    except ParameterTypeError as error:
        sys.exit(f"{flow.name}: {error}")
    state = flow(**parameters, return_state=True)
    if not state.is_completed():
        # an exception of ours says it better than the state about it
        sys.exit(masked(f"{flow.name}: {state.result(raise_on_failure=False) or state.message}"))
    return state.result()
