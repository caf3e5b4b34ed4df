"""The whole way by Prefect: ``python -m flows.pipeline`` brings the workspace up to date."""

import argparse
import logging
import sys
from typing import Any

from flows.dvc_pipeline import DvcPipeline
from tasks.params import ParamsError, load_params
from tasks.tracking import masked


def main() -> None:
    """Bring the workspace up to date; with nothing to do, Prefect is not even imported."""
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description=main.__doc__)
    parser.add_argument("--force", action="store_true", help="run every step, also those that DVC finds unchanged")
    parser.add_argument(
        "--runner", default="in_process", choices=["in_process", "threads", "dask", "ray"], help="(%(default)s)"
    )
    parser.add_argument("--n-workers", default=2, type=int, help="threads, or processes of a cluster (%(default)s)")
    parser.add_argument("--scheduler", help="address of a cluster that is there already")
    given = vars(parser.parse_args())
    force = given.pop("force")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for chatty in ("dvc", "httpx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        load_params()
    except ParamsError as error:
        sys.exit(str(error))
    if not force and not DvcPipeline().anything_changed():
        print("Nothing to do: DVC finds every step up to date.")
        return
    from flows.flow import pipeline
    from flows.spread import Workers

    try:
        workers = Workers(**given)
    except ValueError as error:
        sys.exit(str(error))
    state: Any = pipeline(force=force, workers=workers, return_state=True)
    if not state.is_completed():
        sys.exit(masked(f"pipeline failed: {state.message}"))
    for step, outcome in state.result().items():
        print(f"{step}: {outcome}")


if __name__ == "__main__":
    main()
