"""The flow's small decisions; tests/test_pipeline.py runs it whole."""

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from dvc.dvcfile import ProjectFile
from dvc.lock import LockError
from dvc.rwlock import rwlock
from prefect.states import Failed

from flows.dvc_pipeline import PATIENCE, DvcPipeline
from flows.flow import concurrent_steps, is_worth_retrying, load_step
from tasks.params import Params, load_params
from tests.conftest import ROOT
from tests.two_steps import make_two_steps


@pytest.mark.parametrize(
    ("error", "retried"),
    [(ConnectionError("no network"), True), (TimeoutError(), True), (ValueError("no such class"), False)],
)
def test_only_trouble_that_may_pass_is_retried(error: Exception, retried: bool) -> None:
    assert is_worth_retrying(None, None, Failed(data=error)) is retried


def test_steps_at_once_do_not_need_more_threads_than_there_are_cores(
    monkeypatch: pytest.MonkeyPatch, params_with: Callable[..., Params]
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert [concurrent_steps(params_with({"compute.threads": threads})) for threads in (1, 2, 3, 8)] == [4, 2, 1, 1]


def test_a_step_is_found_by_its_name() -> None:
    assert load_step("evaluate").__module__ == "tasks.evaluate"


def claim(workspace: DvcPipeline, step: str) -> None:
    with workspace.claimed(step):
        pass


class TestWorkspace:
    @pytest.fixture
    def workspace(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DvcPipeline:
        """Two steps, the second of which reads what the first wrote, one that runs for each defence, and another."""
        make_two_steps(
            tmp_path,
            "  third:\n"
            "    matrix: {defence: '${benchmark}'}\n"
            "    cmd: run third ${item.defence}\n"
            "    deps: [data/second]\n"
            "    outs: ['data/third/${item.defence}']\n"
            "  fourth: {cmd: run fourth, deps: [data/second], outs: [data/fourth]}\n",
        )
        monkeypatch.chdir(tmp_path)
        return DvcPipeline()

    def make(self, step: str, text: str) -> None:
        folder = Path("data") / step.replace("@", "/")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "out.txt").write_text(text)

    def test_steps_come_with_what_they_wait_for_in_an_order_in_which_they_can_run(self, workspace: DvcPipeline) -> None:
        steps = [("first", []), ("second", ["first"]), ("fourth", ["second"]), ("third@autoencoder", ["second"])]
        assert list(workspace.steps().items()) == steps

    def test_a_recorded_step_has_not_changed_until_its_output_or_parameter_does(self, workspace: DvcPipeline) -> None:
        assert workspace.changed("first")
        self.make("first", "1")
        workspace.record("first", load_params())
        assert not workspace.changed("first")
        self.make("first", "2")
        assert workspace.changed("first")

    def test_a_step_that_ran_before_with_the_same_parameters_is_restored(self, workspace: DvcPipeline) -> None:
        for step in workspace.steps():
            self.make(step, "1")
            workspace.record(step, load_params())
        shutil.rmtree("data")
        for step, output in (("first", "first"), ("second", "second"), ("third@autoencoder", "third/autoencoder")):
            assert workspace.changed(step)
            assert workspace.restore(step)
            assert (Path("data") / output / "out.txt").read_text() == "1"
            assert not workspace.changed(step)

    def test_outputs_of_other_parameters_come_back_as_they_were_recorded(self, workspace: DvcPipeline) -> None:
        text = Path("params.yaml").read_text(encoding="utf-8")
        for seed in (0, 1):
            Path("params.yaml").write_text(text.replace("seed: 0 ", f"seed: {seed} "), encoding="utf-8")
            for step in workspace.steps():
                self.make(step, f"seed {seed}")
                workspace.record(step, load_params())
        Path("params.yaml").write_text(text, encoding="utf-8")
        for step in workspace.steps():
            assert workspace.changed(step)
            assert workspace.restore(step)
        assert not workspace.anything_changed()
        subprocess.run([Path(sys.executable).parent / "dvc", "checkout", "--quiet"], check=True)
        for output in ("first", "second", "third/autoencoder"):
            assert (Path("data") / output / "out.txt").read_text() == "seed 0"

    def test_what_a_failed_run_left_does_not_keep_an_earlier_one_from_being_restored(
        self, workspace: DvcPipeline
    ) -> None:
        self.make("first", "1")
        workspace.record("first", load_params())
        self.make("first", "left by a run that failed")
        assert workspace.changed("first")
        assert workspace.restore("first")
        assert Path("data/first/out.txt").read_text() == "1"
        assert not workspace.changed("first")

    def test_threads_are_let_at_dvc_one_at_a_time(
        self, workspace: DvcPipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        load, inside, together = ProjectFile._load, Counter[str](), []

        def watched(file: ProjectFile) -> Any:
            inside["dvc"] += 1
            together.append(inside["dvc"])
            # so long that another thread would come
            time.sleep(0.05)
            try:
                return load(file)
            finally:
                inside["dvc"] -= 1

        monkeypatch.setattr(ProjectFile, "_load", watched)
        calls = [workspace.changed, workspace.inputs, workspace.check_inputs, partial(claim, workspace)]
        with ThreadPoolExecutor(len(calls)) as pool:
            for answer in [pool.submit(call, step) for step in workspace.steps() for call in calls]:
                answer.result()
        assert len(together) >= len(calls)
        assert set(together) == {1}

    @pytest.mark.parametrize(
        ("held", "call", "told"),
        [
            ("DvcPipeline().claimed('first')", lambda workspace: claim(workspace, "second"), "data/first"),
            ("DvcPipeline()._repo.lock", lambda workspace: workspace.record("first", load_params()), "lock"),
        ],
        ids=["claim", "record"],
    )
    def test_where_another_process_is_at_the_same_calls_wait_and_say_so(
        self,
        held: str,
        call: Callable[[DvcPipeline], None],
        told: str,
        workspace: DvcPipeline,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        self.make("first", "1")
        code = (
            f"import sys; from flows.dvc_pipeline import DvcPipeline\nwith {held}: print(flush=True); sys.stdin.read()"
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(call, workspace)
            # DVC itself tries for three seconds, then calls look again
            time.sleep(3 + PATIENCE)
            assert not done.done()
            process.stdin.close()
            done.result()
        assert process.wait() == 0
        (waiting,) = [record.message for record in caplog.records if record.message.startswith("Waiting")]
        assert told in waiting

    def test_what_two_steps_read_stays_claimed_until_the_last_is_done(self, workspace: DvcPipeline) -> None:
        repo = workspace._repo
        with workspace.claimed("third@autoencoder"):
            with workspace.claimed("fourth"):
                pass
            written = [str(Path("data/second").resolve())]
            other = rwlock(repo.tmp_dir, repo.fs, "dvc repro second", [], written, hardlink=False)
            with pytest.raises(LockError, match="third@autoencoder"):
                other.__enter__()

    def test_a_step_that_never_ran_cant_be_restored(self, workspace: DvcPipeline) -> None:
        assert not workspace.restore("first")

    def test_anything_has_changed_until_every_step_is_recorded(self, workspace: DvcPipeline) -> None:
        for step in workspace.steps():
            assert workspace.anything_changed()
            self.make(step, "1")
            workspace.record(step, load_params())
        assert not workspace.anything_changed()
        self.make("second", "2")
        assert workspace.anything_changed()

    def test_parameters_that_changed_while_a_step_ran_are_not_recorded(self, workspace: DvcPipeline) -> None:
        params = load_params()
        self.make("first", "1")
        text = Path("params.yaml").read_text(encoding="utf-8")
        Path("params.yaml").write_text(text.replace("seed: 0 ", "seed: 1 "), encoding="utf-8")
        with pytest.raises(RuntimeError, match=r"params\.yaml changed while first ran"):
            workspace.record("first", params)
