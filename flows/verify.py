"""Whether outputs and DVC's cache hold the bytes that were recorded: ``python -m flows.verify``.

DVC looks at times and sizes, and would go on with a byte that turned on a disk. This reads everything.
"""

import argparse
import logging
import os
import sys

from flows.dvc_pipeline import DvcPipeline, drop_if_damaged


def verify(pipeline: DvcPipeline) -> list[str]:
    """Make DVC see what is damaged: such files of its cache are removed, such outputs get a new time.

    Args:
        pipeline: whose outputs and cache are hashed.

    Returns:
        What was found and done, a line each; none if everything is as it was recorded.
    """
    found = [
        f"{os.path.relpath(path)}: other bytes than were recorded; removed from the cache"
        for path in pipeline.cached_objects()
        if drop_if_damaged(path)
    ]
    for path in pipeline.unseen_changes():
        for file in [path] if path.is_file() else path.rglob("*"):
            os.utime(file)
        found.append(f"{os.path.relpath(path)}: other bytes than were recorded; DVC sees it now")
    return found


def main() -> None:
    """Read all outputs and DVC's cache; what does not hold the recorded bytes is made anew by the next run."""
    parser = argparse.ArgumentParser(prog="python -m flows.verify", description=main.__doc__)
    parser.parse_args()
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)
    found = verify(DvcPipeline())
    if not found:
        print("Everything holds the bytes that were recorded.")
        return
    print("\n".join(found))
    sys.exit("Now run dvc repro (or the flow); for data sets of your own, dvc pull or dvc checkout.")


if __name__ == "__main__":
    main()
