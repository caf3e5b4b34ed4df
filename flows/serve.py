"""Prefect on this machine: ``python -m flows.serve`` starts a server, deploys ``prefect.yaml``, and works off runs."""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tasks.params import ParamsError, load_params

POOL = "ct-robustness"
START = 120
"""Seconds that the server may take until it answers."""
PATIENCE = 5
"""Seconds that a process may take to end."""


def main() -> None:
    """Serve on loopback until Ctrl-C; the server's database is in .prefect."""
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=main.__doc__)
    parser.add_argument("--port", default=4200, type=int, help="(%(default)s)")
    port = parser.parse_args().port
    try:
        load_params()
    except ParamsError as error:
        sys.exit(str(error))
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            sys.exit(f"Port {port} is taken, perhaps by a server that runs already; choose another (--port).")
    # a polite kill ends like Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ |= {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    # where prefect.yaml lets runs work; shells keep it up to date, os.chdir and other callers do not
    os.environ["PWD"] = str(Path.cwd())
    running = [prefect("server", "start", "--host", "127.0.0.1", "--port", str(port))]
    try:
        wait_until_healthy(running[0], port)
        for command in (("work-pool", "create", POOL, "--type", "process", "--overwrite"), ("deploy", "--all")):
            if prefect("--no-prompt", *command).wait():
                sys.exit(f"prefect {' '.join(command)} failed.")
        running.append(prefect("worker", "start", "--pool", POOL))
        print(
            f"Serving: http://127.0.0.1:{port} shows deployments and runs. Ctrl-C ends server and worker.", flush=True
        )
        while all(process.poll() is None for process in running):
            time.sleep(1)
        sys.exit("Server or worker has ended by itself.")
    except KeyboardInterrupt:
        print("Ending.", flush=True)
    finally:
        for process in reversed(running):
            end(process)


def prefect(*arguments: str) -> subprocess.Popen[bytes]:
    """Prefect's own command line, of this environment, out of reach of Ctrl-C, which would meet it twice."""
    command = [str(Path(sys.executable).parent / "prefect"), *arguments]
    return subprocess.Popen(command, start_new_session=True)  # noqa: S603  fixed but for the port  # nosec B603


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and after a while it and its runs: an idle worker does not hear the first signal."""
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def wait_until_healthy(server: subprocess.Popen[bytes], port: int) -> None:
    """Return once the server answers; leave if it has ended or takes too long."""
    ends = time.monotonic() + START
    while time.monotonic() < ends and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=5):  # http, as it says  # nosec B310
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.5)
    sys.exit(f"Prefect's server did not answer on port {port}.")


if __name__ == "__main__":
    main()
