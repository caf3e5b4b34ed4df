"""``python -m tasks.tracking sync``: send the journals in the outbox to the tracking store."""

import argparse
import logging
import sys

from tasks.tracking.outbox import outbox, sync, waiting


def main() -> None:
    """Send the journals of an outage to the tracking store. The exit status is 1 if a journal is left."""
    parser = argparse.ArgumentParser(prog="python -m tasks.tracking", description=main.__doc__)
    parser.add_argument("command", choices=["sync"], help="send the journals to MLFLOW_TRACKING_URI, oldest first")
    parser.add_argument("--moved", action="store_true", help="the store has a new address since the runs began")
    moved = parser.parse_args().moved
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if not waiting():
        print(f"{outbox()} is empty: nothing to send")
        return
    if not sync(moved):
        sys.exit(f"journals left in {outbox()}: {len(waiting())}")


if __name__ == "__main__":
    main()
