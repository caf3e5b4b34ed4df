"""Notification of failures by a webhook, and the schedule of the audit, with a real Prefect server."""

import asyncio
import errno
import os
import re
import subprocess
import tomllib
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from prefect import flow
from prefect.blocks.webhook import Webhook
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.steps.core import run_steps
from ruamel.yaml import YAML

from flows.audit import robustness_audit
from flows.serve import CREDENTIALS, credentials
from flows.server import (
    AUDIT,
    NOTIFY,
    SILENT_SECONDS,
    WEBHOOK,
    audit_is_scheduled,
    mark_runs_of_killed_worker,
    notify,
    set_audit_schedule,
)
from tests.all_flows import all_flows
from tests.conftest import ROOT
from tests.receiver import receiver
from tests.test_experiment_table import commit
from tests.test_pipeline import run


@flow(name="example", flow_run_name="nightly", **NOTIFY)
def failing() -> None:
    raise ValueError("prepare failed: http://user:secret@example.org is no folder")


def test_a_failed_run_is_posted_to_the_webhook_without_passwords(server: str) -> None:
    with receiver() as (address, received):
        failing(return_state=True)
        assert received == []

        Webhook(url=address).save(WEBHOOK)
        failing(return_state=True)
        Webhook.delete(WEBHOOK)
    (payload,) = received
    assert payload["text"].startswith("example: run nightly Failed.")
    assert "prepare failed" in payload["text"]
    assert "secret" not in payload["text"]


def test_every_flow_that_a_person_starts_sends_the_notification() -> None:
    hooks = {name: each.on_failure_hooks == each.on_crashed_hooks == [notify] for name, each in all_flows().items()}
    assert set(hooks.values()) == {True}


def test_the_schedule_of_the_audit_is_switched_on_and_a_server_without_it_is_left_alone(server: str) -> None:
    set_audit_schedule(True)
    assert not audit_is_scheduled()
    schedule = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 3 * * 1"), active=False)
    robustness_audit.to_deployment(name=AUDIT.partition("/")[2], schedules=[schedule]).apply()
    assert not audit_is_scheduled()
    set_audit_schedule(True)
    assert audit_is_scheduled()


def test_every_run_sends_heartbeats_more_often_than_the_limit_of_the_automation() -> None:
    # a run by hand reads prefect.toml, and a deployment sets the variable of its runs on every machine
    by_hand = tomllib.loads((ROOT / "prefect.toml").read_text(encoding="utf-8"))["flows"]["heartbeat_frequency"]
    deployments = YAML(typ="safe").load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    variables = [each["work_pool"]["job_variables"]["env"] for each in deployments]
    deployed = [int(each["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]) for each in variables]
    assert {by_hand, *deployed} == {30}
    assert by_hand < SILENT_SECONDS


def test_runs_without_a_living_process_are_marked_as_crashed_with_their_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    # as Prefect's worker records a process, and of a run that has none yet
    pids = [str(ended.pid), str(os.getpid()), None]
    client = MagicMock()
    connected = client.__enter__.return_value
    connected.read_flow_runs.return_value = [MagicMock(id=pid, infrastructure_pid=pid) for pid in pids]
    monkeypatch.setattr("flows.server.get_client", lambda **_: client)
    mark_runs_of_killed_worker("pool")
    assert [call.args[0] for call in connected.set_flow_run_state.call_args_list] == [str(ended.pid), None]


def test_the_documented_pull_steps_clone_the_repository_and_enter_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(tmp_path, "git", "init", "--quiet", "--initial-branch", "main", "origin")
    (tmp_path / "origin" / "params.yaml").touch()
    commit(tmp_path / "origin", "code")
    page = (ROOT / "docs" / "how-to" / "several-machines.md").read_text(encoding="utf-8")
    (documented,) = re.findall(r"```yaml\n(pull:.*?)```", page, flags=re.DOTALL)
    documented = documented.replace("https://git.example.org/ct-robustness.git", (tmp_path / "origin").as_uri())
    steps = YAML(typ="safe").load(documented.replace("dvc pull", "touch pulled"))["pull"]
    asyncio.run(run_steps(steps, {}))
    assert Path.cwd().parent == tmp_path
    assert Path("params.yaml").exists()
    assert Path("pulled").exists()


def test_credentials_are_generated_again_after_a_full_disk_or_an_empty_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_SERVER_API_AUTH_STRING", raising=False)
    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, "disk is full")))
        with pytest.raises(OSError, match="disk is full"):
            credentials()
    assert not CREDENTIALS.exists()
    CREDENTIALS.touch()
    generated = credentials()
    assert re.fullmatch(r"admin:[\w-]{32}", generated)
    assert credentials() == generated
    assert CREDENTIALS.stat().st_mode & 0o077 == 0
    assert list(CREDENTIALS.parent.iterdir()) == [CREDENTIALS]
