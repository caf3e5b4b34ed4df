"""The pipeline flow: its decisions, and its use of DVC. ``test_pipeline_flow.py`` runs the whole flow."""

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from dvc.lock import LockError
from dvc.rwlock import rwlock
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, LogFilter, LogFilterFlowRunId
from prefect.states import Failed

import flows.flow
from flows.command import log_progress
from flows.dvc_pipeline import LOCK_POLL_SECONDS, DvcPipeline
from flows.flow import concurrent_steps, is_worth_retrying
from flows.workers import load_step
from tasks.params import Params, load_params
from tests.conftest import ROOT
from tests.two_steps import make_two_steps, read_output, write_output

DVC_PATIENCE_SECONDS = 3
"""Time for which DVC itself tries to get a lock."""

MORE_STAGES = """\
  third:
    matrix: {defence: [autoencoder]}
    cmd: run third ${item.defence}
    deps: [data/second]
    outs: ['data/third/${item.defence}']
  fourth: {cmd: run fourth, deps: [data/second], outs: [data/fourth]}
"""


@pytest.mark.parametrize(
    ("error", "retried"),
    [(ConnectionError("no network"), True), (TimeoutError(), True), (ValueError("no such class"), False)],
)
def test_only_errors_of_network_and_file_system_are_retried(error: Exception, retried: bool) -> None:
    assert is_worth_retrying(None, None, Failed(data=error)) is retried


def test_concurrent_steps_need_no_more_threads_than_cores(
    monkeypatch: pytest.MonkeyPatch, params_with: Callable[..., Params]
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert [concurrent_steps(params_with({"compute.threads": threads})) for threads in (1, 2, 3, 8)] == [4, 2, 1, 1]


def test_log_lines_of_steps_are_logs_of_the_flow_run(server: str) -> None:
    @flow
    def example() -> None:
        log_progress()
        logging.getLogger("tasks.example").info("progress of a step")

    run = example(return_state=True).state_details.flow_run_id
    messages: list[str] = []
    for _ in range(60):
        with get_client(sync_client=True) as client:
            logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run])))
        messages = [each.message for each in logs]
        if "progress of a step" in messages:
            return
        time.sleep(0.5)
    raise AssertionError(messages)


def test_a_step_is_a_task_run_with_its_name_its_tags_and_its_log_lines(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_two_steps(tmp_path, MORE_STAGES)
    monkeypatch.chdir(tmp_path)

    def run_example(name: str, _workspace: Any, _params: Any, _orchestrator: str, defence: str | None) -> None:
        step = "@".join(filter(None, [name, defence]))
        logging.getLogger("tasks.example").info("progress of %s", step)
        # two threads that import the same packages can wait for each other forever
        assert set(loaded) == {"first", "second", "third", "fourth"}, "a step runs before all steps are imported"
        write_output(step, "1")

    def load(name: str) -> str:
        loaded.append(name)
        return name

    # the steps of this pipeline are no modules, and write no metrics
    monkeypatch.setattr(flows.flow, "run_step", run_example)
    loaded: list[str] = []
    monkeypatch.setattr(flows.flow, "load_step", load)
    monkeypatch.setattr(flows.flow, "publish_results", lambda workspace: None)
    state = flows.flow.pipeline(return_state=True)
    assert state.is_completed(), state.message
    run = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))
    found = {each.name: set(each.tags) for each in tasks}
    assert found == {
        "first": {"first"},
        "second": {"second"},
        "third@autoencoder": {"third", "autoencoder"},
        "fourth": {"fourth"},
    }
    ids = {each.id: each.name for each in tasks}
    lines: set[tuple[str, str, int]] = set()
    for _ in range(60):
        with get_client(sync_client=True) as client:
            logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run])))
        lines = {(ids[each.task_run_id], each.message, each.level) for each in logs if each.task_run_id}
        if len(lines) >= len(found):
            break
        time.sleep(0.5)
    assert lines >= {(name, f"progress of {name}", logging.INFO) for name in found}


def test_the_code_of_the_steps_includes_art_which_would_deadlock_with_a_thread_that_logs() -> None:
    code = "import sys, flows.workers as w; w.load_step('attack')"
    printed = subprocess.run(
        [sys.executable, "-c", f"{code}; print('art.attacks.evasion' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert printed.stdout == "True\n"


def test_a_step_is_loaded_by_its_name() -> None:
    assert load_step("evaluate").__module__ == "tasks.evaluate"


@pytest.mark.parametrize("has_git", [False, True])
def test_a_folder_without_git_or_without_a_commit_gets_a_message(
    has_git: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_two_steps(tmp_path)
    # the configuration of a downloaded copy
    (tmp_path / ".dvc" / "config").write_text("")
    if has_git:
        subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"DVC needs a git repository with a commit, .* run: git init && git add"):
        DvcPipeline()


class TestDvcPipeline:
    @pytest.fixture
    def pipeline(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DvcPipeline:
        """Two steps in a row, then one that runs for each defence and another one."""
        make_two_steps(tmp_path, MORE_STAGES)
        # DVC works on the current folder
        monkeypatch.chdir(tmp_path)
        return DvcPipeline()

    def run_all(self, pipeline: DvcPipeline, text: str) -> None:
        for step in pipeline.steps():
            write_output(step, text)
            pipeline.record(step, load_params())

    def set_seed(self, seed: int) -> None:
        text = (ROOT / "params.yaml").read_text(encoding="utf-8")
        Path("params.yaml").write_text(text.replace("seed: 0 ", f"seed: {seed} "), encoding="utf-8")

    def test_steps_are_listed_after_the_steps_that_they_need(self, pipeline: DvcPipeline) -> None:
        expected = {"first": [], "second": ["first"], "fourth": ["second"], "third@autoencoder": ["second"]}
        assert list(pipeline.steps().items()) == list(expected.items())

    def test_inputs_of_a_step_are_listed_without_code(self, pipeline: DvcPipeline) -> None:
        assert pipeline.inputs("first") == ["params.yaml"]
        assert pipeline.inputs("second") == ["data/first"]

    def test_a_step_is_unchanged_after_it_is_recorded_until_its_output_changes(self, pipeline: DvcPipeline) -> None:
        assert pipeline.changed("first")
        write_output("first", "1")
        pipeline.record("first", load_params())
        assert not pipeline.changed("first")
        write_output("first", "2")
        assert pipeline.changed("first")

    def test_something_has_changed_until_every_step_is_recorded(self, pipeline: DvcPipeline) -> None:
        for step in pipeline.steps():
            assert pipeline.anything_changed()
            write_output(step, "1")
            pipeline.record(step, load_params())
        assert not pipeline.anything_changed()
        write_output("second", "2")
        assert pipeline.anything_changed()

    def test_a_step_that_never_ran_is_not_restored(self, pipeline: DvcPipeline) -> None:
        assert not pipeline.restore("first")

    def test_a_finished_step_is_restored_after_its_output_was_removed(self, pipeline: DvcPipeline) -> None:
        self.run_all(pipeline, "1")
        shutil.rmtree("data")
        for step in ("first", "second", "third@autoencoder"):
            assert pipeline.changed(step)
            assert pipeline.restore(step)
            assert read_output(step) == "1"
            assert not pipeline.changed(step)

    def test_a_finished_step_is_restored_after_other_parameters_were_used(self, pipeline: DvcPipeline) -> None:
        for seed in (0, 1):
            self.set_seed(seed)
            self.run_all(pipeline, f"seed {seed}")
        self.set_seed(0)
        for step in pipeline.steps():
            assert pipeline.changed(step)
            assert pipeline.restore(step)
        assert not pipeline.anything_changed()
        # DVC's own record agrees
        subprocess.run([Path(sys.executable).parent / "dvc", "checkout", "--quiet"], check=True)
        assert {read_output(step) for step in pipeline.steps()} == {"seed 0"}

    def test_a_finished_step_is_restored_over_the_output_of_a_failed_run(self, pipeline: DvcPipeline) -> None:
        write_output("first", "1")
        pipeline.record("first", load_params())
        write_output("first", "part of a failed run")
        assert pipeline.changed("first")
        assert pipeline.restore("first")
        assert read_output("first") == "1"
        assert not pipeline.changed("first")

    def test_a_step_is_not_recorded_if_params_yaml_changed_while_it_ran(self, pipeline: DvcPipeline) -> None:
        params = load_params()
        write_output("first", "1")
        self.set_seed(1)
        with pytest.raises(ValueError, match=r"params\.yaml changed while first ran: seed"):
            pipeline.record("first", params)

    def test_threads_use_dvc_one_at_a_time(self, pipeline: DvcPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        inside: list[str] = []
        at_once: list[int] = []
        status = pipeline._repo.status

        def watched(*targets: str) -> Any:
            inside.append("status")
            at_once.append(len(inside))
            # long enough for another thread to enter
            time.sleep(0.05)
            inside.pop()
            return status(*targets)

        monkeypatch.setattr(pipeline._repo, "status", watched)
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(pipeline.changed, pipeline.steps()))
        assert at_once == [1] * 4

    @pytest.mark.parametrize("held", ["DvcPipeline().claimed('first')", "DvcPipeline()._repo.lock"])
    def test_a_call_waits_for_another_process_and_logs_it_once(
        self, held: str, pipeline: DvcPipeline, caplog: pytest.LogCaptureFixture
    ) -> None:
        write_output("first", "1")
        code = (
            f"import sys; from flows.dvc_pipeline import DvcPipeline\nwith {held}: print(flush=True); sys.stdin.read()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()

        def claim_and_record() -> None:
            with pipeline.claimed("second"):
                pass
            pipeline.record("first", load_params())

        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(claim_and_record)
            time.sleep(DVC_PATIENCE_SECONDS + LOCK_POLL_SECONDS)
            assert not done.done()
            process.stdin.close()
            done.result()
        assert process.wait() == 0
        (waiting,) = [record.message for record in caplog.records if record.message.startswith("Waiting")]
        assert ("data/first" if "claimed" in held else "lock") in waiting

    def test_an_input_of_two_steps_stays_claimed_until_both_are_done(self, pipeline: DvcPipeline) -> None:
        repo = pipeline._repo
        with pipeline.claimed("third@autoencoder"):
            with pipeline.claimed("fourth"):
                pass
            written = [str(Path("data/second").resolve())]
            other = rwlock(repo.tmp_dir, repo.fs, "dvc repro second", [], written, hardlink=False)
            with pytest.raises(LockError, match="third@autoencoder"):
                other.__enter__()
