"""Use of a Prefect server beside the runs: notification of failures, and the schedule of the audit."""

from typing import Any

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound

from tasks.tracking import masked

WEBHOOK = "ct-robustness"
"""Name of the webhook block that receives the notifications."""
AUDIT = "robustness_audit/robustness-audit"
"""Deployment of the scheduled audit."""


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
