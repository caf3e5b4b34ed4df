"""The runner: output folders, checkpoints, messages of errors, and signals."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from tasks.core import source
from tasks.core.checkpoints import Checkpoints
from tasks.core.workspace import Workspace
from tasks.params import Params, load_params
from tasks.runner import run_step
from tasks.step_inputs import set_aside_deselected
from tasks.tracking import EXPERIMENT, Tracker
from tests.conftest import ROOT


@pytest.fixture
def workspace(own_store: str, tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def train_defence(workspace: Workspace, params: Params, tracker: Tracker, defence: str) -> None:
    torch.empty(1 << 55, dtype=torch.uint8)


def attack(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    bytearray(1 << 62)


def evaluate(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    (workspace.checkpoint_folder("evaluate") / "part").mkdir(parents=True)
    raise RuntimeError("another error")


def test_out_of_memory_names_the_parameter_to_lower(workspace: Workspace, params_with: Callable[..., Params]) -> None:
    with pytest.raises(MemoryError, match=r"out of memory: .*allocate.* Lower defences\.jpeg\.training\.batch_size in"):
        run_step(train_defence, workspace, params_with(), defence="jpeg")
    with pytest.raises(MemoryError, match=r"Lower attack\.batch_size in .*params\.yaml"):
        run_step(attack, workspace, params_with())


def test_another_error_is_raised_unchanged_and_checkpoints_stay(
    workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    with pytest.raises(RuntimeError, match="another error"):
        run_step(evaluate, workspace, params_with())
    assert (workspace.checkpoint_folder("evaluate") / "part").is_dir()


def test_a_step_starts_with_an_empty_folder_and_ends_without_checkpoints(
    workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    found: list[Path] = []

    def prepare(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        found.extend(workspace.prepare.iterdir())
        (workspace.prepare / "old.txt").write_text("x")
        workspace.checkpoint_folder("prepare").mkdir(parents=True)

    for _ in range(2):
        run_step(prepare, workspace, params_with())
    assert found == []
    assert not workspace.checkpoint_folder("prepare").exists()


def test_results_of_deselected_defences_are_removed_before_a_step_that_depends_on_all(
    workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    deps = {"evaluate": "[data/attack_defence, data/train_defence]", "attack": "[data/prepare]"}
    stages = "".join(f"  {step}: {{deps: {of_step}}}\n" for step, of_step in deps.items())
    (workspace.root / "dvc.yaml").write_text(f"stages:\n{stages}")
    folders = [
        workspace.data / step / name for step in ("train_defence", "attack_defence") for name in ("jpeg", "median")
    ]
    for folder in folders:
        (folder / "part").mkdir(parents=True)
    (workspace.data / "attack_defence" / ".gitignore").write_text("/jpeg")
    found: list[list[str]] = []

    def attack(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        found.append(sorted(path.parent.name for path in workspace.data.glob("*_defence/*/part")))

    def evaluate(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        attack(workspace, params, tracker)

    params = params_with({"selected_defences": ["autoencoder", "jpeg"]})
    run_step(attack, workspace, params)
    run_step(evaluate, workspace, params)
    assert found == [["jpeg", "jpeg", "median", "median"], ["jpeg", "jpeg"]]
    assert (workspace.data / "attack_defence" / ".gitignore").is_file()


MAIN = """
import sys, time
from tasks.params import Params
from tasks.runner import main

def train_defence(workspace, params, tracker, defence):
    print("started", flush=True)
    {body}

main(train_defence)
"""


def start(folder: Path, body: str, *arguments: str, code: Path = ROOT) -> subprocess.Popen[str]:
    """Start a step of the repository's parameters in a folder, with the package ``tasks`` of the folder ``code``."""
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "-c", MAIN.format(body=body), *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(code)},
        # a shell lets its commands in the background ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("body", "defence", "stderr"),
    [
        ("raise OSError('no network')", "jpeg", "train_defence: no network\n"),
        ("pass", "unknown", r"train_defence: defence: 'unknown'. params.yaml has autoencoder, "),
        ("raise ValueError('a bug')", "jpeg", "Traceback (most recent call last):\n"),
    ],
    ids=["message", "unknown defence", "error outside of tasks"],
)
def test_a_failed_step_prints_one_message_or_a_traceback(
    body: str, defence: str, stderr: str, workspace: Workspace
) -> None:
    process = start(workspace.root, body, "--defence", defence)
    printed = process.communicate()[1]
    assert process.returncode == 1
    assert printed.startswith(stderr), printed


def test_results_that_cannot_be_moved_are_one_message_and_not_logged_as_moved(
    workspace: Workspace, params_with: Callable[..., Params], caplog: pytest.LogCaptureFixture
) -> None:
    (workspace.train_defence / "deselected").mkdir(parents=True)
    workspace.deselected.parent.mkdir(exist_ok=True)
    # a file in place of the folder
    workspace.deselected.touch()
    caplog.set_level("INFO", "tasks.step_inputs")
    with pytest.raises(ValueError, match=r"^data/train_defence/deselected cannot be moved: .* Remove it by hand\.$"):
        set_aside_deselected(workspace, params_with())
    assert not caplog.messages


def test_results_of_a_deselected_defence_are_set_aside_and_not_lost(
    workspace: Workspace, params_with: Callable[..., Params]
) -> None:
    folder = workspace.train_defence / "deselected"
    for text in ("first", "second"):
        folder.mkdir(parents=True)
        (folder / "weights").write_text(text)
        set_aside_deselected(workspace, params_with())
        assert not folder.exists()
        assert (workspace.deselected / "train_defence" / "deselected" / "weights").read_text() == text


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_step_prints_one_message_keeps_its_checkpoints_and_ends_its_tracking_run_as_killed(
    sent: signal.Signals, workspace: Workspace
) -> None:
    body = "workspace.checkpoint_folder('train_defence', defence).mkdir(parents=True)\n    time.sleep(600)"
    process = start(workspace.root, body, "--defence", "jpeg")
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    folder = workspace.checkpoint_folder("train_defence", "jpeg")
    while not folder.exists():
        time.sleep(0.01)
    process.send_signal(sent)
    printed = process.communicate()[1]
    assert printed == f"train_defence: ended by {sent.name}. Checkpoints are kept; the next run resumes.\n"
    assert process.returncode == 128 + sent
    assert folder.exists()
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED"


class TestChanges:
    """Parameters and code must not change while a step runs: DVC would record the new ones for the old result."""

    @pytest.fixture
    def copy(self, tmp_path: Path) -> Path:
        """A folder with a copy of ``tasks/`` and the repository's parameters."""
        folder = tmp_path / "copy"
        shutil.copytree(ROOT / "tasks", folder / "tasks", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "params.yaml", folder)
        return folder

    @pytest.mark.parametrize(
        ("file", "edit", "message"),
        [
            ("params.yaml", "seed: 1 #", "train_defence: params.yaml changed while train_defence@jpeg ran: seed. The"),
            ("params.yaml", "seed: [", "train_defence: params.yaml is not valid YAML: "),
            ("tasks/core/workspace.py", "# edited\n#", "train_defence: code changed while train_defence@jpeg ran: "),
            ("tasks/labelling/human.py", "# edited, not loaded\n#", ""),
        ],
        ids=["parameter", "invalid parameters", "loaded code", "other code"],
    )
    def test_a_change_of_what_a_step_uses_fails_the_step(
        self, file: str, edit: str, message: str, copy: Path, workspace: Workspace
    ) -> None:
        body = (
            f"from pathlib import Path\n    path = Path({file!r})\n"
            f"    path.write_text({edit!r} + path.read_text().replace('seed: 0', ''))\n"
            "    workspace.checkpoint_folder('train_defence', defence).mkdir(parents=True)"
        )
        process = start(copy, body, "--defence", "jpeg", code=copy)
        printed = process.communicate()[1]
        assert process.returncode == bool(message), printed
        assert message in printed
        # they have the names of the old code and parameters
        assert (copy / "checkpoints" / "train_defence" / "jpeg").exists() == bool(message)

    def test_a_change_while_the_tracking_run_closes_fails_the_step(
        self, workspace: Workspace, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        @contextmanager
        def slowly_closed(*_arguments: object) -> Iterator[Tracker]:
            yield Tracker()
            workspace.params_file.write_text((ROOT / "params.yaml").read_text().replace("seed: 0", "seed: 1"))

        monkeypatch.setattr("tasks.runner.open_run", slowly_closed)
        shutil.copy(ROOT / "params.yaml", workspace.root)

        def prepare(workspace: Workspace, params: Params, tracker: Tracker) -> None:
            """Do nothing."""

        with pytest.raises(ValueError, match=r"params\.yaml changed while prepare ran: seed"):
            run_step(prepare, workspace, load_params(workspace.params_file))

    def test_a_file_that_is_replaced_by_one_of_the_same_size_and_time_fails_the_step(
        self, workspace: Workspace, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "mlflow", None)
        shutil.copy(ROOT / "dvc.yaml", workspace.root)
        (folder := workspace.root / "images").mkdir()
        for name in ("1.png", "other"):
            (folder / name).write_bytes(name[:1].encode())
            os.utime(folder / name, ns=(0, 0))
        (folder / "other").rename(workspace.root / "other")

        def acquire(workspace: Workspace, params: Params, tracker: Tracker) -> None:
            (workspace.root / "other").replace(folder / "1.png")

        with pytest.raises(ValueError, match=r"files changed while acquire ran: .*1\.png"):
            run_step(acquire, workspace, params_with())

    @pytest.mark.parametrize("file", ["images/COVID/1.png", "images/COVID/new.png", "images/__pycache__/x.pyc"])
    def test_a_change_of_a_file_of_the_user_fails_the_step(
        self, file: str, workspace: Workspace, params_with: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # without mlflow the runner does not track
        monkeypatch.setitem(sys.modules, "mlflow", None)
        shutil.copy(ROOT / "dvc.yaml", workspace.root)
        for folder in ("COVID", "__pycache__"):
            (workspace.root / "images" / folder).mkdir(parents=True)
        (workspace.root / "images" / "COVID" / "1.png").write_bytes(b"1")

        def acquire(workspace: Workspace, params: Params, tracker: Tracker) -> None:
            (workspace.root / file).write_bytes(b"other")

        if "__pycache__" in file:
            run_step(acquire, workspace, params_with())
            return
        with pytest.raises(ValueError, match=f"files changed while acquire ran: .*{file}. The inputs must stay"):
            run_step(acquire, workspace, params_with())

    def test_a_checkpoint_of_changed_code_is_not_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        changed = source.AT_START | {"core/checkpoints.py": "another digest"}
        monkeypatch.setattr(source, "AT_START", changed)
        with pytest.raises(ValueError, match=r"code changed while a part ran: tasks/core/checkpoints\.py\. "):
            Checkpoints(tmp_path, ["core"], 1).get_or_compute("a part", lambda folder: None)
        assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]
