"""Access control: servers listen on loopback only, and a server with a password receives it."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from urllib.request import urlopen

import httpx
import psutil
import pytest

from flows.serve import credentials
from tasks.serving import registry
from tests.bundles import bundle_of, copy_completed
from tests.conftest import ROOT
from tests.operations.servers import free_port, prefect_client, wait_for
from tests.test_pipeline import make_workspace

BINARIES = Path(sys.executable).parent
DOCUMENTED = [ROOT / "README.md", ROOT / "Makefile", *sorted((ROOT / "docs").rglob("*.md"))]
STARTS_SERVER = (
    r"(?m)^\s*((?:\w+=\S+ )*(?:mlflow server|mlflow models serve|prefect server start)(?:[^\n]*\\\n)*[^\n]*)"
)


def test_every_documented_server_listens_on_loopback() -> None:
    commands = [
        command for file in DOCUMENTED for command in re.findall(STARTS_SERVER, file.read_text(encoding="utf-8"))
    ]
    assert len(commands) >= 3
    assert [command for command in commands if not re.search(r"(--host|-h) 127\.0\.0\.1\b", command)] == []


def test_no_code_listens_on_all_addresses() -> None:
    files = [
        # in compose.yaml servers listen in a private network; tests/test_compose.py checks the published ports
        *(file for file in ROOT.glob("containers/*") if file.name != "compose.yaml"),
        ROOT / "Makefile",
        *(ROOT / "tasks").rglob("*.py"),
        *(ROOT / "flows").rglob("*.py"),
    ]
    assert [file for file in files if "0.0.0.0" in file.read_text(encoding="utf-8")] == []


def listening_addresses(process: int) -> set[str]:
    """Addresses on which a process and its children listen; IPv4 addresses mapped to IPv6 as IPv4."""
    family = [psutil.Process(process), *psutil.Process(process).children(recursive=True)]
    sockets = [each for member in family for each in member.net_connections("tcp")]
    found = [ip_address(each.laddr.ip) for each in sockets if each.status == psutil.CONN_LISTEN]
    return {str(getattr(address, "ipv4_mapped", None) or address) for address in found}


@contextmanager
def started(command: list[str], folder: Path, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Start a process, and yield it with its log; at the end, stop it and its children."""
    path = {"PATH": f"{BINARIES}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    log = folder / "log.txt"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | path | environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
            # processes in the background of a shell ignore Ctrl-C, and so do their children
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        yield process, log
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_socket_on_all_addresses_is_found() -> None:
    with socket.socket() as listening:
        listening.bind(("0.0.0.0", 0))
        listening.listen()
        assert "0.0.0.0" in listening_addresses(os.getpid())


@pytest.mark.faults
def test_make_ui_listens_on_loopback_and_its_arguments_do_not_name_the_store(tmp_path: Path) -> None:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 5000)) == 0:
            pytest.skip("port 5000 is taken")
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    store = f"sqlite:///{tmp_path / 'store.db'}"
    # the environment of the tests replaces the one that make would install
    command = ["make", "--assume-old", ".venv/requirements-run.lock", "ui"]
    with started(command, tmp_path, MLFLOW_TRACKING_URI=store) as (process, log):
        wait_for(lambda: urlopen("http://127.0.0.1:5000/health", timeout=5).status == 200, process, log)
        assert listening_addresses(process.pid) == {"127.0.0.1"}
        # of a web page of another origin, and of another name for this machine
        search = "http://127.0.0.1:5000/api/2.0/mlflow/experiments/create"
        for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
            assert httpx.post(search, json={"name": "x"}, headers=headers).status_code == 403
        family = psutil.Process(process.pid).children(recursive=True)
        assert not any(store in " ".join(member.cmdline()) for member in family)
        assert (tmp_path / "store.db").is_file()


@pytest.mark.faults
def test_make_serve_listens_on_loopback_and_needs_the_password(tmp_path: Path) -> None:
    folder = make_workspace(tmp_path / "workspace")
    (folder / "prefect.yaml").write_bytes((ROOT / "prefect.yaml").read_bytes())
    port, secret = free_port(), "reader:pwOfPrefect"
    password = {"PREFECT_SERVER_API_AUTH_STRING": secret, "PREFECT_API_AUTH_STRING": secret}
    command = [sys.executable, "-m", "flows.serve", "--port", str(port)]
    with started(command, folder, **password) as (process, log):
        wait_for(lambda: "Serving:" in log.read_text(), process, log, 400)
        assert listening_addresses(process.pid) == {"127.0.0.1"}
        flows = f"http://127.0.0.1:{port}/api/deployments/filter"
        assert httpx.get(f"http://127.0.0.1:{port}/api/admin/version").status_code == 401
        # another web page can make the browser send the password, but not the token
        assert httpx.post(flows, json={}, auth=("reader", "pwOfPrefect")).status_code == 403
        with prefect_client(port, secret) as client:
            answer = client.post("/deployments/filter", json={}, headers={"Origin": "http://evil.example"})
        assert len(answer.json()) == 7
        assert "access-control-allow-origin" not in answer.headers
        assert "pwOfPrefect" not in log.read_text()


def test_a_password_is_generated_once_and_only_the_user_can_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_SERVER_API_AUTH_STRING", raising=False)
    generated = credentials()
    assert re.fullmatch(r"admin:[\w-]{30,}", generated)
    assert credentials() == generated
    assert Path(".prefect/credentials").stat().st_mode & 0o077 == 0
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "me:pw")
    assert credentials() == "me:pw"


@pytest.mark.faults
def test_a_served_model_listens_on_loopback(
    small_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # artifacts of a store without a server are in the current folder
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    bundle = bundle_of(copy_completed(small_workspace, tmp_path), "undefended", tmp_path / "bundles")
    registry.move_champion(registry.register_bundle(bundle, "toy", "A toy."), "first")
    port = free_port()
    command = ["mlflow", "models", "serve", "-m", "models:/toy@champion", "--env-manager", "local", "-p", str(port)]
    with started([*command, "-h", "127.0.0.1"], tmp_path) as (process, log):
        wait_for(lambda: urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).status == 200, process, log)
        assert listening_addresses(process.pid) == {"127.0.0.1"}


CLUSTER = """import sys, time
from flows.workers import Workers, runner_of

if __name__ == "__main__":
    runner = runner_of(Workers(runner=sys.argv[1], n_workers=1))
    if sys.argv[1] == "dask":
        from distributed import LocalCluster
        cluster = LocalCluster(**runner.cluster_kwargs)
    else:
        import ray
        ray.init(**runner.init_kwargs)
    print("up", flush=True)
    time.sleep(600)
"""


@pytest.mark.faults
@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_a_cluster_on_this_machine_listens_on_loopback(runner: str, tmp_path: Path) -> None:
    (tmp_path / "cluster.py").write_text(CLUSTER, encoding="utf-8")
    with started([sys.executable, "cluster.py", runner], tmp_path) as (process, log):
        wait_for(lambda: "up" in log.read_text().split(), process, log)
        assert listening_addresses(process.pid) == {"127.0.0.1"}
