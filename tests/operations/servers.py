"""Real servers on loopback, for as long as a test needs them."""

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit
from urllib.request import urlopen

import httpx
import pytest

S3_KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
"""Credentials for the S3 server of the tests, which accepts any."""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def wait_for(is_up: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, seconds: float = 180) -> None:
    """Wait until a server answers.

    Raises:
        RuntimeError: it ended, or did not answer in time; with what it wrote.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            if is_up():
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"{process.args} is not up:\n{log.read_text()}")


@contextmanager
def prefect_client(port: int, credentials: str) -> Iterator[httpx.Client]:
    """A client of a Prefect server with a password, and with protection against requests of other web pages."""
    user, _, password = credentials.partition(":")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}/api", auth=(user, password), timeout=60) as client:
        token = client.get("/csrf-token", params={"client": "tests"}).json()["token"]
        client.headers.update({"Prefect-Csrf-Client": "tests", "Prefect-Csrf-Token": token})
        yield client


@contextmanager
def postgres() -> Iterator[str]:
    """A private PostgreSQL; its address for SQLAlchemy. Skips where there is none."""
    binaries = [*Path("/usr/lib/postgresql").glob("*/bin"), *map(Path, os.environ["PATH"].split(os.pathsep))]
    found = next((folder for folder in binaries if (folder / "initdb").is_file()), None)
    if found is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    # it refuses to run as root
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        if user:
            shutil.chown(folder, user)
        data, log, port = folder / "data", folder / "log", free_port()
        initialise = [found / "initdb", "--pgdata", data, "--username", "mlflow", "--auth", "trust", "--no-sync"]
        subprocess.run(initialise, check=True, stdout=subprocess.DEVNULL, user=user, cwd=folder)
        options = ["listen_addresses=127.0.0.1", f"port={port}", f"unix_socket_directories={folder}", "fsync=off"]
        command = [found / "postgres", "-D", data, *(word for option in options for word in ("-c", option))]
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, user=user, cwd=folder)
        try:
            wait_for(lambda: socket.create_connection(("127.0.0.1", port), 1).close() is None, process, log)
            yield f"postgresql://mlflow@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)
    finally:
        shutil.rmtree(folder)


@contextmanager
def s3_server(folder: Path, *buckets: str) -> Iterator[str]:
    """An S3-compatible server that keeps objects in memory, with empty buckets; its address."""
    import boto3

    port, log = free_port(), folder / "s3.log"
    with running([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], log) as process:
        wait_for(lambda: socket.create_connection(("127.0.0.1", port), 1).close() is None, process, log)
        address = f"http://127.0.0.1:{port}"
        client = boto3.client(
            "s3",
            endpoint_url=address,
            aws_access_key_id=S3_KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=S3_KEYS["AWS_SECRET_ACCESS_KEY"],
            region_name=S3_KEYS["AWS_DEFAULT_REGION"],
        )
        for bucket in buckets:
            client.create_bucket(Bucket=bucket)
        yield address


class MlflowServer:
    """A tracking server that can be killed and started again on the same port."""

    def __init__(self, folder: Path, backend: str, artifacts: str, environment: dict[str, str] | None = None) -> None:
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._log = folder / "mlflow.log"
        self._environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"} | (environment or {})
        self._command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--backend-store-uri", backend, "--artifacts-destination", artifacts, "--workers", "1"),
        ]

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self._log.open("ab") as file:
            self.process = subprocess.Popen(
                self._command, stdout=file, stderr=file, env=self._environment, start_new_session=True
            )
        wait_for(lambda: urlopen(f"{self.address}/health", timeout=5).status == 200, self.process, self._log)

    def signal(self, number: signal.Signals) -> None:
        """Signal it and the processes that it started."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End it as a crash would."""
        self.signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def mlflow_server(
    folder: Path, backend: str, artifacts: str, environment: dict[str, str] | None = None
) -> Iterator[MlflowServer]:
    """A tracking server that runs already."""
    server = MlflowServer(folder, backend, artifacts, environment)
    server.start()
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()


@contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended at the end."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


class Wire:
    """Passes requests on to a server until it is cut, after a number of them.

    The request after that one is dropped: before it reaches the server, or, ``answer_lost``, after it.
    """

    def __init__(self, server: str) -> None:
        self.n_passed = 0
        self.cut_after: int | None = None
        self.answer_lost = False
        lock = threading.Lock()
        wire = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self) -> None:
                body = self.body()
                with lock:
                    is_cut = wire.cut_after is not None and wire.n_passed >= wire.cut_after
                    last_word = is_cut and wire.answer_lost and wire.n_passed == wire.cut_after
                    wire.n_passed += 1
                self.close_connection = is_cut
                if is_cut and not last_word:
                    return
                upstream = http.client.HTTPConnection(urlsplit(server).netloc, timeout=60)
                upstream.request(self.command, self.path, body, dict(self.headers.items()) | {"Connection": "close"})
                answer = upstream.getresponse()
                content = answer.read()
                if last_word:
                    return
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "content-length", "connection", "date", "server"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on  # noqa: N815  http.server's names

            def body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") == "chunked":
                    return b"".join(iter(lambda: chunk_of(self.rfile), b""))
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def log_message(self, *_: object) -> None:
                """Be quiet."""

        self._listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._listener.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._listener.server_port}"
        threading.Thread(target=self._listener.serve_forever, daemon=True).start()

    def cut(self, after: int | None, answer_lost: bool = False) -> None:
        """Cut it after so many more requests; ``None`` mends it."""
        self.n_passed, self.cut_after, self.answer_lost = 0, after, answer_lost

    def close(self) -> None:
        """Listen no more."""
        self._listener.shutdown()
        self._listener.server_close()


def chunk_of(file: IO[bytes]) -> bytes:
    """The next chunk of a chunked body."""
    chunk = file.read(int(file.readline(), 16))
    file.readline()
    return chunk
