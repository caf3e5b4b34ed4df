"""The flow ``pipeline``: what ``dvc repro`` runs, with Prefect's concurrency, retries and artifacts."""

import importlib
import json
import os
from threading import Semaphore
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from flows.dvc_pipeline import DvcPipeline, flat
from flows.spread import Workers, finish_elsewhere
from tasks.core.workspace import Workspace
from tasks.params import UNDEFENDED, Params, load_params
from tasks.runner import Step, run_step
from tasks.tracking import masked


@flow(name="pipeline")
def pipeline(
    force: bool = False,
    workers: Workers = Workers(),  # noqa: B008  frozen
) -> dict[str, str]:
    """Bring every step up to date, independent steps side by side.

    Two runs in one workspace take turns at every step, and so do a run and ``dvc repro``. If a step fails, an artifact
    says which, what it read, and what to do.

    Args:
        force: run every step, also those that DVC finds unchanged.
        workers: who does the work of the steps that attack.

    Returns:
        What became of each step: ``unchanged``, ``restored`` or ``ran``.
    """
    params, workspace, stages = load_params(), Workspace(), DvcPipeline()
    slots = Semaphore(concurrent_steps(params))
    running: dict[str, Any] = {}
    for step, needed in stages.steps().items():
        as_task: Any = task(
            name=step,
            cache_policy=NO_CACHE,
            retries=2 if step == "acquire" else 0,
            retry_delay_seconds=5,
            retry_condition_fn=is_worth_retrying,
        )
        before = [running[name] for name in needed]
        submit = as_task(bring_up_to_date).submit
        running[step] = submit(step, workspace, stages, params, slots, force, workers, wait_for=before)
    for step, future in running.items():
        future.wait()
        if future.state.is_failed() or future.state.is_crashed():
            publish_failure(workspace, step, stages.inputs(step), future.state)
    outcome = {step: future.result() for step, future in running.items()}
    publish_artifacts(workspace)
    return outcome


def bring_up_to_date(
    step: str,
    workspace: Workspace,
    stages: DvcPipeline,
    params: Params,
    slots: Semaphore,
    force: bool,
    workers: Workers,
) -> str:
    """Run a step if DVC says that it has changed, and record the outcome with DVC.

    Args:
        step: its name; ``step@defence`` for one that runs for each defence.
        workspace: its paths.
        stages: DVC's record of the steps.
        params: all parameters.
        slots: as many steps run at once.
        force: run it in any case.
        workers: who does its work, if it attacks.

    Returns:
        ``unchanged``, ``restored`` (outputs of an earlier run, from DVC's cache) or ``ran``.
    """
    with slots, stages.claimed(step):
        if not force:
            if not stages.changed(step):
                return "unchanged"
            if stages.restore(step):
                return "restored"
        stages.check_inputs(step)
        name, _, defence = step.partition("@")
        if name in ("attack", "attack_defence") and workers.runner != "in_process":
            finish_elsewhere(workspace, defence or UNDEFENDED, params, workers)
        run_step(load_step(name), workspace, params, "prefect", defence or None)
        stages.record(step, params)
        return "ran"


def load_step(name: str) -> Step:
    """The step's function, named like its module."""
    function: Step = getattr(importlib.import_module(f"tasks.{name}"), name)
    return function


def concurrent_steps(params: Params) -> int:
    """Steps at once, so that their threads together are no more than the cores."""
    return max(1, (os.cpu_count() or 1) // params.compute.threads)


def is_worth_retrying(_task: Any, _run: Any, state: Any) -> bool:
    """Network and file-system trouble may pass; a wrong parameter or a broken image does not."""
    return isinstance(state.result(raise_on_failure=False), OSError)


def publish_failure(workspace: Workspace, step: str, inputs: list[str], state: State[Any]) -> None:
    """Prefect artifact: what failed, what it read, what to do."""
    page = failure_page(workspace, step, inputs, str(state.message))
    create_markdown_artifact(key="failure", markdown=page, description=f"{step} failed")


def failure_page(workspace: Workspace, step: str, inputs: list[str], message: str) -> str:
    """What failed and why, what it read, and what to do, in Markdown."""
    name, _, defence = step.partition("@")
    command = f"CT_ROBUSTNESS_TRACEBACK=1 python -m tasks.{name} {defence}".rstrip()
    # a name of a file in the message may hold what would end the block
    told = masked(message).replace("```", "'''")
    lines = [
        f"## {step} failed",
        f"```\n{told}\n```",
        f"It read: {', '.join(f'`{path}`' for path in inputs)}.",
        f"What it left in `{workspace.step_folder(name, defence)}` is not recorded with DVC: nothing takes it for "
        "whole. Steps that do not need it went on.",
        f"To do: mend what the message names; `{command}` shows where it came from. Then run the flow again, or "
        "`dvc repro`: finished steps are not repeated, and training and attacks go on where they were.",
    ]
    return "\n\n".join(lines)


def publish_artifacts(workspace: Workspace) -> None:
    """Prefect artifacts: the headline metrics as a table, and a link to the report."""
    metrics = json.loads(workspace.metrics.read_text(encoding="utf-8"))
    rows = [{"metric": name, "value": value} for name, value in flat(metrics).items()]
    create_table_artifact(key="headline-metrics", table=rows, description="Headline metrics of the pipeline")
    create_link_artifact(key="report", link=workspace.report_html.resolve().as_uri(), link_text="Report")
