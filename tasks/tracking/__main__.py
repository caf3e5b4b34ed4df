"""``python -m tasks.tracking sync``: send what waits in the outbox."""

import argparse
import logging
import sys

from tasks.tracking.outbox import outbox, sync, waiting


def main() -> None:
    """Send what steps said while the tracking store was out; exit with 1 if something is left."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.tracking", description="What the tracking store has not heard."
    )
    parser.add_argument("command", choices=["sync"], help="send it to MLFLOW_TRACKING_URI, the oldest run first")
    parser.add_argument("--moved", action="store_true", help="the store has another address than when the runs began")
    moved = parser.parse_args().moved
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if not waiting():
        print(f"nothing waits in {outbox()}")
        return
    if not sync(moved):
        sys.exit(f"still in {outbox()}: {len(waiting())}")


if __name__ == "__main__":
    main()
