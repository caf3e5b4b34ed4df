"""Find silent corruption of outputs and of DVC's cache: ``python -m flows.verify``.

DVC detects a change of a file by its time, size and inode, and it does not hash what it restores from its cache. So a
byte that changes on the disk is not detected. This command hashes everything.
"""

import argparse
import logging
import os
import sys

from flows.dvc_pipeline import DvcPipeline, relative

FOUND = 3
"""Exit status if files do not hold the recorded bytes; ``make repro`` continues after it, and stops at other errors."""


def verify(pipeline: DvcPipeline) -> list[str]:
    """Move damaged files out of DVC's cache, and give corrupted outputs a new time, so that DVC detects the change.

    Returns:
        One line for each corrupted file or output; empty if everything holds the recorded bytes.
    """
    found = [f"{relative(path)}: moved out of the cache" for path in pipeline.set_aside_damaged_objects()]
    for path in pipeline.silent_corruption():
        for file in [path] if path.is_file() else path.rglob("*"):
            os.utime(file)
        found.append(f"{relative(path)}: DVC detects the change now")
    return found


def main() -> None:
    """Hash all outputs and DVC's cache. The next run restores or repeats the outputs with other bytes than recorded."""
    parser = argparse.ArgumentParser(prog="python -m flows.verify", description=main.__doc__)
    parser.parse_args()
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)
    try:
        found = verify(DvcPipeline())
    except ValueError as error:
        sys.exit(f"verify: {error}")
    if not found:
        print("No silent corruption: everything that DVC calls unchanged holds the recorded bytes.")
        return
    print("These files do not hold the recorded bytes:\n" + "\n".join(found))
    print("Run dvc repro or the flow. For your own data sets run dvc pull or dvc checkout.", file=sys.stderr)
    sys.exit(FOUND)


if __name__ == "__main__":
    main()
