"""Prefect on this machine: ``python -m flows.serve`` starts a server and a worker, and deploys ``prefect.yaml``."""

import argparse
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tasks.core.durable import rename_durably
from tasks.params import ParamsError, load_params

POOL = "ct-robustness"
CREDENTIALS = Path(".prefect/credentials")
"""User and password of the server, ``user:password``, in the folder of its database."""
START_TIMEOUT = 120
"""Seconds after which the start of the server fails."""
STOP_TIMEOUT = 5
"""Seconds after which a process that was asked to end gets a second signal."""


def main() -> None:
    """Run a Prefect server and a worker until Ctrl-C. The database and password of the server are in .prefect."""
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=main.__doc__)
    parser.add_argument("--port", default=4200, type=int, help="port of the server on 127.0.0.1 (default: %(default)s)")
    port = parser.parse_args().port
    try:
        load_params()
    except ParamsError as error:
        sys.exit(str(error))
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            sys.exit(f"--port: {port} is in use, perhaps by another server. Choose another port: make serve PORT=4201")
    # SIGTERM ends like Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    address = f"http://127.0.0.1:{port}"
    # a web page of another origin, in the browser of the user, must not start runs
    os.environ.setdefault("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", address)
    os.environ.setdefault("PREFECT_SERVER_CSRF_PROTECTION_ENABLED", "true")
    os.environ["PREFECT_SERVER_API_AUTH_STRING"] = os.environ["PREFECT_API_AUTH_STRING"] = credentials()
    os.environ |= {"PREFECT_API_URL": f"{address}/api", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    # prefect.yaml reads the folder of runs from this variable, and only shells keep it up to date
    os.environ["PWD"] = str(Path.cwd())
    running = [prefect("server", "start", "--host", "127.0.0.1", "--port", str(port))]
    try:
        wait_until_healthy(running[0], port)
        # it reads the variables that are set above
        from flows.server import (
            audit_is_scheduled,
            create_automation_for_killed_runs,
            mark_runs_of_killed_worker,
            set_audit_schedule,
        )

        # a deployment pauses the schedule
        is_scheduled = audit_is_scheduled()
        for command in (("work-pool", "create", POOL, "--type", "process", "--overwrite"), ("deploy", "--all")):
            if prefect("--no-prompt", *command).wait():
                sys.exit(f"prefect {' '.join(command)} failed. Its messages are above.")
        if is_scheduled:
            set_audit_schedule(True)
        create_automation_for_killed_runs()
        running.append(prefect("worker", "start", "--pool", POOL))
        print(f"Serving: {address}. Ctrl-C stops the server and the worker.", flush=True)
        if CREDENTIALS.exists():
            print(f"The UI asks for the user and the password in {CREDENTIALS}. Commands in another terminal need:")
            print(f"export PREFECT_API_URL={address}/api PREFECT_API_AUTH_STRING=$(cat {CREDENTIALS})", flush=True)
        while running[0].poll() is None:
            time.sleep(1)
            status = running[1].poll()
            if status is None:
                continue
            if status >= 0:
                break
            print("The worker was killed. Its runs are marked as crashed, and a new worker starts.", flush=True)
            # the processes of its runs
            signal_session(running[1], signal.SIGKILL)
            # they end shortly after the signal
            time.sleep(1)
            mark_runs_of_killed_worker(POOL)
            running[1] = prefect("worker", "start", "--pool", POOL)
        sys.exit("The server or the worker has ended unexpectedly. Its messages are above.")
    except KeyboardInterrupt:
        print("Stopping.", flush=True)
    finally:
        for process in reversed(running):
            end(process)


def credentials() -> str:
    """User and password of the server: of the environment, or generated once for this folder."""
    if given := os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        return given
    # an empty file has no password
    if not CREDENTIALS.exists() or not CREDENTIALS.stat().st_size:
        CREDENTIALS.parent.mkdir(exist_ok=True)
        partial = CREDENTIALS.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        partial.touch(mode=0o600)
        partial.write_text(f"admin:{secrets.token_urlsafe(24)}", encoding="utf-8")
        rename_durably(partial, CREDENTIALS)
    return CREDENTIALS.read_text(encoding="utf-8")


def prefect(*arguments: str) -> subprocess.Popen[bytes]:
    """Start a command of Prefect's command line in a session of its own, so that Ctrl-C reaches only this process."""
    command = [str(Path(sys.executable).parent / "prefect"), *arguments]
    return subprocess.Popen(command, start_new_session=True)  # noqa: S603  fixed but for the port  # nosec B603


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop a process, and after a timeout all processes of its session: an idle worker ignores the first signal."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        signal_session(process, signal.SIGTERM)
        process.wait()


def signal_session(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to all processes that a process has started in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def wait_until_healthy(server: subprocess.Popen[bytes], port: int) -> None:
    """Wait until the server answers. End this process if the server has ended or the wait takes too long."""
    ends = time.monotonic() + START_TIMEOUT
    while time.monotonic() < ends and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=5):  # http, as it says  # nosec B310
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.5)
    sys.exit(f"Prefect's server does not answer on port {port}. Its messages are above.")


if __name__ == "__main__":
    main()
