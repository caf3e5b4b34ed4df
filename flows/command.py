"""Flows on the command line: progress on standard error, and one message if a flow fails."""

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import psutil

from tasks.params import load_params
from tasks.runner import log_to_stderr, needs_traceback
from tasks.tracking import masked

STOP_TIMEOUT = 10
"""Seconds after a signal in which a flow can record its end; then the process ends."""


def run_flow(flow: Any, **parameters: Any) -> Any:
    """Run a flow and return its result. Invalid parameters and a failed run end the process with a message.

    Args:
        flow: a Prefect flow.
        parameters: of the flow.
    """
    # `flows.pipeline` imports this module, and does not import Prefect if no step has changed
    from prefect.exceptions import ParameterTypeError

    log_to_stderr()
    end_after_signals()
    # the message at the end of the process replaces what Prefect logs about a failure
    for name in ("prefect.flows", "prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # if the server is slow, this line would come after that message
    for name in ("EventsWorker", "APILogWorker"):
        logging.getLogger(name).addFilter(lambda record: not record.getMessage().startswith("Still processing items"))
    try:
        load_params()
        flow.validate_parameters(parameters)
    except ParameterTypeError as error:
        sys.exit(f"{flow.name}: {error}")
    except ValueError as error:
        sys.exit(str(error))
    with message_after_ctrl_c():
        state = flow(**parameters, return_state=True)
    if not state.is_completed():
        cause = state.result(raise_on_failure=False)
        if isinstance(cause, BaseException) and needs_traceback(cause):
            sys.stderr.write(masked("".join(traceback.format_exception(cause))))
        # the exception itself has a better message than the state
        sys.exit(masked(f"{flow.name}: {cause or state.message}"))
    return state.result()


@contextmanager
def message_after_ctrl_c() -> Iterator[None]:
    """End this process after Ctrl-C with one message."""
    try:
        yield
    except KeyboardInterrupt:
        end(signal.SIGINT)


def end(number: int, _frame: object = None) -> NoReturn:
    """End this process and its children after a signal, without waiting for the threads of the running steps."""
    for child in psutil.Process().children(recursive=True):
        child.terminate()
    name = signal.Signals(number).name
    print(f"Ended by {name}. Finished steps are kept; the next run resumes.", file=sys.stderr, flush=True)
    os._exit(128 + number)


def end_after_signals() -> None:
    """End this process and its children soon after Ctrl-C or SIGTERM.

    Prefect waits for running steps, which are threads that nothing can stop. A later run ends their tracking runs as
    killed, and resumes from their checkpoints.
    """
    received, write = os.pipe()
    os.set_blocking(write, False)
    # Prefect replaces handlers of signals, but not this
    signal.set_wakeup_fd(write)

    def watch() -> None:
        while (number := os.read(received, 1)[0]) not in (signal.SIGINT, signal.SIGTERM):
            pass
        # Ctrl-C also ends Prefect's temporary server, and later messages are about the lost connection
        logging.disable()
        time.sleep(STOP_TIMEOUT)
        end(number)

    # a flow that has no running step in this process ends earlier: Prefect then restores this handler and calls it
    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=watch, daemon=True).start()


def log_progress() -> None:
    """Let the steps of a flow run log their progress; ``prefect.toml`` sends these lines to Prefect's UI."""
    for name in ("flows", "tasks"):
        logging.getLogger(name).setLevel(logging.INFO)
