"""Use of a Prefect server beside the runs: notification of failures, killed runs, and the schedule of the audit."""

from datetime import timedelta
from typing import Any

import psutil
from prefect.automations import Automation, ChangeFlowRunState, EventTrigger, Posture
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from tasks.tracking import masked

WEBHOOK = "ct-robustness"
"""Name of the webhook block that receives the notifications."""
AUDIT = "robustness_audit/robustness-audit"
"""Deployment of the scheduled audit."""
KILLED_RUNS = "ct-robustness: killed runs"
"""Name of the automation for runs without heartbeats."""
SILENT_SECONDS = 45
"""Time without a heartbeat after which a run counts as killed: one heartbeat, and 15 s of delay."""


async def notify(flow: Any, run: Any, state: Any) -> None:
    """Post the message of a failed run to the webhook block, if the server has one.

    The payload is ``{"text": ...}``, which Slack, Mattermost and others accept.
    """
    try:
        webhook: Any = await Webhook.aload(WEBHOOK)
    except ValueError:
        return
    response = await webhook.call({"text": masked(f"{flow.name}: run {run.name} {state.name}. {state.message}")})
    response.raise_for_status()


NOTIFY: dict[str, Any] = {"on_failure": [notify], "on_crashed": [notify]}
"""Hooks of every flow."""


def create_automation_for_killed_runs() -> None:
    """Let the server mark a run as crashed if it sends no heartbeat, so that the next run of its deployment begins.

    The runs send one every 30 seconds, Prefect's minimum (``prefect.toml``, ``prefect.yaml``). A limit that allows two
    missing heartbeats would be 90 seconds. A live run that is marked continues, and its end replaces the mark.
    """
    heartbeat = "prefect.flow-run.heartbeat"
    ends = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", "Suspended")}
    automation = Automation(
        name=KILLED_RUNS,
        description="A run that sends no heartbeat has been killed, or its machine is not reachable.",
        trigger=EventTrigger(
            after={heartbeat},
            expect={heartbeat, *ends},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=SILENT_SECONDS),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=f"no heartbeat for {SILENT_SECONDS} s")],
    )
    with get_client(sync_client=True) as client:
        for former in client.read_automations_by_name(KILLED_RUNS):
            client.delete_automation(former.id)
    automation.create()


def mark_runs_of_killed_worker(pool: str) -> None:
    """Mark the runs of a worker on this machine that has been killed as crashed: those without a living process.

    Args:
        pool: name of the work pool.
    """
    active = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": active}}}),
            work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [pool]}}),
        )
        for run in runs:
            if not _is_alive(run.infrastructure_pid):
                client.set_flow_run_state(run.id, Crashed(message="the worker was killed"), force=True)


def _is_alive(pid: str | None) -> bool:
    """Return whether the process of a run exists on this machine; Prefect records its number without the host."""
    try:
        return pid is not None and pid.isdecimal() and psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def audit_is_scheduled() -> bool:
    """Return whether a schedule of the audit is on."""
    with get_client(sync_client=True) as client:
        deployment = _audit(client)
        return deployment is not None and any(schedule.active for schedule in deployment.schedules)


def set_audit_schedule(active: bool) -> None:
    """Switch the schedules of the audit on or off, if the server has its deployment."""
    with get_client(sync_client=True) as client:
        if deployment := _audit(client):
            for schedule in deployment.schedules:
                client.update_deployment_schedule(deployment.id, schedule.id, active=active)


def _audit(client: SyncPrefectClient) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(AUDIT)
    except ObjectNotFound:
        return None
