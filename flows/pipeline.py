"""Run the pipeline by Prefect: ``python -m flows.pipeline``."""

import argparse
import sys

from flows.command import message_after_ctrl_c, run_flow
from flows.dvc_pipeline import DvcPipeline
from tasks.params import load_params
from tasks.runner import log_to_stderr


def main() -> None:
    """Bring every result up to date by Prefect. If no step has changed, the command ends at once."""
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description=main.__doc__)
    parser.add_argument("--force", action="store_true", help="run every step, also unchanged ones")
    parser.add_argument(
        "--runner",
        default="in_process",
        choices=["in_process", "threads", "dask", "ray"],
        help="workers that share the steps that train, attack and analyse (default: %(default)s)",
    )
    parser.add_argument(
        "--n-workers", default=2, type=int, help="threads, or processes of a new cluster (default: %(default)s)"
    )
    parser.add_argument("--scheduler", help="address of an existing cluster")
    workers = vars(parser.parse_args())
    force = workers.pop("force")
    log_to_stderr()
    with message_after_ctrl_c():
        try:
            load_params()
            anything_to_do = force or DvcPipeline().anything_changed()
        except ValueError as error:
            sys.exit(str(error))
        if not anything_to_do:
            print("Nothing to do: DVC finds every step up to date.")
            return
        # Prefect takes seconds to import
        from flows.flow import pipeline

    for step, outcome in run_flow(pipeline, force=force, workers=workers).items():
        print(f"{step}: {outcome}")


if __name__ == "__main__":
    main()
