"""Passwords in the environment: none is in a file, a message or a log."""

import base64
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tasks.core.workspace import Workspace
from tasks.params import Params
from tasks.serving import registry
from tasks.tracking import masked, open_run, tracking_uri
from tasks.tracking.outbox import sync, waiting
from tests.operations.servers import mlflow_server
from tests.test_pipeline import make_workspace

SECRET = "pwOfTracking"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:pw@host:5000/api failed", "http://host:5000/api failed"),
        ("http://me:p@pw@host:5000", "http://host:5000"),
        ("'postgresql://me:p/w@host:5432/mlflow'", "'postgresql://host:5432/mlflow'"),
        ("postgresql://user:12/34secret@localhost/db", "postgresql://localhost/db"),
        ("postgresql://user:12?34#secret@localhost/db", "postgresql://localhost/db"),
        ("https://token@host and https://me:123@other", "https://host and https://other"),
        (
            "https://s3/x?X-Amz-Signature=a1&X-Amz-Security-Token=b2&X-Amz-Date=3",
            "https://s3/x?X-Amz-Signature=***&X-Amz-Security-Token=***&X-Amz-Date=3",
        ),
        ("https://blob/x?sv=1&sig=a%2Fb", "https://blob/x?sv=1&sig=***"),
        ("postgresql://host/db?user=me&password=pw&sslmode=x", "postgresql://host/db?user=me&password=***&sslmode=x"),
    ],
)
def test_users_and_passwords_are_removed_from_addresses(text: str, shown: str) -> None:
    assert masked(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/#/models/x@champion",
        "sqlite:////srv/a@b/mlflow.db",
        "models:/ct-robustness@champion is not at http://host, ask me@example.org",
    ],
)
def test_a_text_without_password_is_not_changed(text: str) -> None:
    assert masked(text) == text


@pytest.fixture
def rejecting() -> Iterator[tuple[str, list[str]]]:
    """Address of a server that rejects every password, and the passwords that it received."""
    received: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            received.append(self.headers.get("Authorization", ""))
            self.send_error(401)

        do_POST = do_GET  # noqa: N815  http.server's names

        def log_message(self, *_: object) -> None:
            """Do not log."""

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{listener.server_port}", received
    listener.shutdown()
    listener.server_close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Workspace().data.mkdir()
    # the fixture restores these variables, which the code sets from an address
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    return tmp_path


def test_a_password_is_sent_to_the_server_and_is_in_no_message(
    rejecting: tuple[str, list[str]], folder: Path, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, received = rejecting
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}%21@{address}")
    message = f"^the tracking store at http://{address} refuses user and password: set MLFLOW_TRACKING_USERNAME"
    with (
        pytest.raises(ValueError, match=message) as raised,
        open_run(Workspace(), "prepare", Workspace().data, params_with(), "python"),
    ):
        pass
    assert tracking_uri() == f"http://{address}"
    assert set(received) == {"Basic " + base64.b64encode(f"me:{SECRET}!".encode()).decode()}
    assert SECRET not in "".join(map(repr, [raised.value, raised.value.__cause__, raised.value.__context__]))


def test_a_password_is_in_no_journal_and_no_warning_of_an_outage(
    folder: Path, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:a@{SECRET}@127.0.0.1:9")
    with open_run(Workspace(), "prepare", Workspace().data, params_with(), "python") as tracker:
        tracker.metrics({"data/n": 1})
    (journal,) = waiting()
    assert not sync()
    assert "the tracking store is unavailable" in caplog.text
    assert "not sent" in caplog.text
    assert SECRET not in caplog.text
    assert [file for file in journal.rglob("*") if file.is_file() and SECRET in file.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("scheme", ["ftp", "postgres"])
def test_the_error_of_an_invalid_address_does_not_contain_its_password(
    scheme: str, folder: Path, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://me:{SECRET}@127.0.0.1/x")
    message = rf"^MLFLOW_TRACKING_URI cannot be used: .*unsupported URI '{scheme}://127\.0\.0\.1/x'"
    with (
        pytest.raises(ValueError, match=message) as raised,
        open_run(Workspace(), "prepare", Workspace().data, params_with(), "python"),
    ):
        pass
    assert raised.value.__cause__ is None
    with pytest.raises(ValueError, match=message):
        registry.find("toy@champion")


PLANTED = {
    "KAGGLE_KEY": "keyOfKaggle",
    "KAGGLE_API_TOKEN": "tokenOfKaggle",
    "AWS_SECRET_ACCESS_KEY": "keyOfAws",
    "PREFECT_API_AUTH_STRING": "me:pwOfPrefect",
}
OF_REMOTE = "pwOfRemote"


@pytest.mark.faults
class TestEverythingThatIsWritten:
    """Files and output of steps and flows, with a tracking server that needs a password, and without the server."""

    @pytest.fixture(scope="class")
    def place(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A folder with all files that they wrote, and their output in ``output``."""
        place = tmp_path_factory.mktemp("secrets")
        workspace, home = make_workspace(place / "workspace"), place.parent / "secrets-home"
        (home / ".kaggle").mkdir(parents=True)
        (home / ".kaggle" / "kaggle.json").write_text('{"username": "me", "key": "fileOfKaggle"}')
        (place / "output").mkdir()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | PLANTED | {"HOME": str(home), "PATH": path, "AWS_ACCESS_KEY_ID": "me"}
        commands = []

        def execute(*command: str, fails: bool = False, **more: str) -> None:
            done = subprocess.run(
                command, cwd=workspace, env=environment | more, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            commands.append(command)
            (place / "output" / f"{len(commands):02d}").write_bytes(done.stdout)
            assert (done.returncode != 0) == fails, (command, done.stdout.decode())

        def python(*module: str, fails: bool = False, **more: str) -> None:
            execute(sys.executable, "-m", *module, fails=fails, **more)

        for words in (["init", "-q"], ["config", "user.email", "me@example.org"], ["config", "user.name", "me"]):
            execute("git", *words)
        remote = f"http://me:{OF_REMOTE}@127.0.0.1:9/store"
        execute("dvc", "remote", "add", "--local", "--default", "store", remote)
        (place / "server").mkdir()
        store, artifacts = f"sqlite:///{place / 'server' / 'store.db'}", str(place / "server" / "artifacts")
        with mlflow_server(place / "server", store, artifacts) as server:
            environment["MLFLOW_TRACKING_URI"] = f"http://me:{SECRET}@127.0.0.1:{server.port}"
            python("flows.pipeline")
            python("flows.register", "--target", "autoencoder")
            python("flows.export", "unknown@champion", "x.pt2", fails=True)
        execute("git", "add", "dvc.lock", "dvc.yaml", "params.yaml")
        execute("git", "commit", "-q", "-m", "results")
        (workspace / ".dvc" / "cache").rename(place / "cache")
        python("flows.data_changes", "HEAD", fails=True)
        (place / "cache").rename(workspace / ".dvc" / "cache")
        # the server is unavailable
        python("tasks.evaluate")
        python("tasks.tracking", "sync", fails=True)
        python("flows.register", "--target", "undefended", fails=True)
        python("flows.export", "ct-robustness@champion", "x.pt2", fails=True)
        for scheme in ("ftp", "mysql"):
            invalid = f"{scheme}://me:{SECRET}@127.0.0.1:9/x"
            python("tasks.evaluate", fails=True, MLFLOW_TRACKING_URI=invalid)
            python("flows.export", "ct-robustness@champion", "x.pt2", fails=True, MLFLOW_TRACKING_URI=invalid)
        return place

    @pytest.mark.parametrize("secret", [SECRET, OF_REMOTE, "fileOfKaggle", *PLANTED.values()])
    def test_no_file_contains_a_secret(self, place: Path, secret: str) -> None:
        files = [file for file in place.rglob("*") if file.is_file()]
        # DVC's local configuration, which git ignores, is the place for the password of a remote
        files.remove(place / "workspace" / ".dvc" / "config.local")
        assert [file for file in files if secret.encode() in file.read_bytes()] == []

    def test_the_searched_files_are_not_empty(self, place: Path) -> None:
        workspace = place / "workspace"
        for path in (Workspace().report_html, Path("dvc.lock"), Path(".prefect/prefect.db")):
            assert (workspace / path).stat().st_size > 1000
        assert (place / "server" / "store.db").stat().st_size > 1000
        assert len([*(workspace / "tracking-outbox").glob("*/journal.jsonl")]) == 1
        assert OF_REMOTE in (workspace / ".dvc" / "config.local").read_text(encoding="utf-8")
