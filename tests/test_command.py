"""Flows on the command line: signals, and proxies."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT

FLOW = """
import signal, subprocess, sys, time
from flows import command

command.STOP_TIMEOUT = STOP_TIMEOUT
command.end_after_signals()

def crash(*_):
    print("crash detected", flush=True)
    if command.STOP_TIMEOUT == 600:
        signal.signal(signal.SIGTERM, earlier)
        signal.raise_signal(signal.SIGTERM)

# as Prefect does in a flow
earlier = signal.signal(signal.SIGTERM, crash)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
while True:
    time.sleep(600)
"""


@pytest.mark.parametrize("stop_timeout", [0.5, 600], ids=["while a step runs", "at once if no step runs"])
def test_a_flow_ends_soon_after_sigterm_with_its_children(stop_timeout: float, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FLOW.replace("= STOP_TIMEOUT", f"= {stop_timeout}")]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
        child.wait(60)
        assert "crash detected" in process.stdout.read()


INTERRUPTED = """
import subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from flows import command

command.STOP_TIMEOUT = STOP_TIMEOUT

class Flow:
    name = "example"

    def validate_parameters(self, parameters):
        pass

    def __call__(self, return_state):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stderr=subprocess.DEVNULL)
        print(child.pid, flush=True)
        if command.STOP_TIMEOUT == 600:
            time.sleep(600)
        # as Prefect waits for the threads of steps
        with ThreadPoolExecutor() as pool:
            pool.submit(time.sleep, 600).result()

command.run_flow(Flow())
"""


@pytest.mark.parametrize("stop_timeout", [0.5, 600], ids=["while a step runs", "at once if no step runs"])
def test_a_flow_ends_soon_after_ctrl_c_with_one_message(stop_timeout: float, tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    command = [sys.executable, "-c", INTERRUPTED.replace("= STOP_TIMEOUT", f"= {stop_timeout}")]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == "Ended by SIGINT. Finished steps are kept; the next run resumes.\n"
        assert process.returncode == 128 + signal.SIGINT
        child.wait(60)


FAILED = """
from pathlib import Path
import numpy
from prefect.states import Failed
from flows.command import run_flow
from tasks.params import load_params

class Flow:
    name = "example"

    def validate_parameters(self, parameters):
        pass

    def __call__(self, return_state):
        try:
            CAUSE
        except ValueError as error:
            return Failed(data=error)

run_flow(Flow())
"""


@pytest.mark.parametrize(
    ("cause", "printed"),
    [
        ("load_params(Path('absent.yaml'))", r"example: absent\.yaml[^\n]*\n"),
        ("numpy.zeros(2).reshape(3)", r"Traceback \(most recent call last\):\n.*\nexample: cannot reshape array.*\n"),
    ],
    ids=["a message of the project", "an error inside a library"],
)
def test_a_failed_flow_prints_its_message_and_the_traceback_of_an_error_inside_a_library(
    cause: str, printed: str, tmp_path: Path
) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("CT_ROBUSTNESS_TRACEBACK", None)
    command = [sys.executable, "-c", FAILED.replace("CAUSE", cause)]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert re.fullmatch(printed, ended.stderr, re.DOTALL), ended.stderr


def test_servers_on_this_machine_are_not_asked_through_a_proxy() -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = "import tasks, httpx, requests\n"
    for host in ("127.0.0.1", "localhost"):
        address = f"http://{host}:{server.server_port}"
        code += f"assert {{httpx.get({address!r}).status_code, requests.get({address!r}).status_code}} == {{204}}\n"
    code += "import os; assert os.environ['no_proxy'] == 'example.org,127.0.0.1,localhost'"
    # nothing listens on this port
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    environment = os.environ | proxies | {"NO_PROXY": "example.org", "PYTHONPATH": str(ROOT)}
    environment.pop("no_proxy", None)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    server.shutdown()
