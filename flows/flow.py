"""The flow ``pipeline``: the steps that ``dvc repro`` would run, with Prefect's concurrency, retries and artifacts."""

import json
import os
from dataclasses import dataclass
from threading import Semaphore
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.command import log_progress
from flows.dvc_pipeline import DvcPipeline
from flows.server import NOTIFY
from flows.workers import WORKER_STEPS, WorkerPool, Workers, load_step, worker_pool
from tasks.core.workspace import Workspace
from tasks.params import Params, flatten, load_params
from tasks.runner import run_step
from tasks.tracking import masked

N_RETRIES = {"acquire": 2}
"""Retries of a step after an error of the network or the file system."""


@flow(name="pipeline", **NOTIFY)
def pipeline(
    force: bool = False,
    workers: Workers = Workers(),  # noqa: B008  frozen
) -> dict[str, str]:
    """Bring every result up to date. Independent steps run side by side.

    The task of a step has the name of its stage. Its run is called ``step`` or ``step@defence`` and has these names as
    tags.

    Two runs in one workspace take turns at every step, and so do a run and ``dvc repro``. If a step fails, the artifact
    ``failure`` names the step, its inputs and the next action.

    Args:
        force: run every step, also unchanged ones.
        workers: workers that share the steps that train, attack and analyse.

    Returns:
        The outcome of each step: ``unchanged``, ``restored`` or ``ran``.

    Raises:
        RuntimeError: a step failed. Steps that do not need it have run.
    """
    params, workspace, stages = load_params(), Workspace(), DvcPipeline()
    steps, running = stages.steps(), dict[str, Any]()
    # steps run in threads. Threads that import the same packages at once can wait for each other forever, and so can a
    # thread that logs and one that imports ART
    for step in steps:
        load_step(step.partition("@")[0])
    # after the import of ART, which configures logging
    log_progress()
    with worker_pool(workers) as pool:
        # steps that wait for workers of a pool need no core here
        slots = Semaphore(len(steps) if pool else concurrent_steps(params))
        job = Job(workspace, stages, params, slots, force, pool)
        for step, needed in steps.items():
            name, _, defence = step.partition("@")
            as_task: Any = task(
                name=name,
                task_run_name=step,
                tags=[name, *filter(None, [defence])],
                cache_policy=NO_CACHE,
                retries=N_RETRIES.get(name, 0),
                retry_delay_seconds=5,
                retry_condition_fn=is_worth_retrying,
            )
            before = [running[name] for name in needed]
            running[step] = as_task(bring_up_to_date).submit(step, job, wait_for=before)
        for future in running.values():
            future.wait()
    failures: dict[str, str] = {}
    for step, future in running.items():
        if future.state.is_failed() or future.state.is_crashed():
            error = future.state.result(raise_on_failure=False)
            failures[step] = masked(str(error) or type(error).__name__)
            publish_failure(workspace, step, stages.inputs(step), failures[step])
    if failures:
        raise RuntimeError("\n".join(f"{step} failed: {message}" for step, message in failures.items()))
    outcome = {step: future.result() for step, future in running.items()}
    publish_results(workspace)
    return outcome


@dataclass(frozen=True)
class Job:
    """One run of the pipeline."""

    workspace: Workspace
    stages: DvcPipeline
    params: Params
    slots: Semaphore
    """One for each step that may run at the same time."""
    force: bool
    pool: WorkerPool | None
    """Workers for the steps that train, attack and analyse; without them, this process runs all steps."""


def bring_up_to_date(step: str, job: Job) -> str:
    """Run a step if DVC finds a change, and record its outputs with DVC.

    Args:
        step: ``step`` or ``step@defence``.
        job: the run of the pipeline.

    Returns:
        ``unchanged``, ``restored`` (outputs of an earlier run, from DVC's cache) or ``ran``.
    """
    stages = job.stages
    with job.slots, stages.claimed(step):
        if not job.force:
            if not stages.changed(step):
                return "unchanged"
            if stages.restore(step):
                return "restored"
        stages.check_inputs(step)
        name, _, defence = step.partition("@")
        if job.pool and name in WORKER_STEPS:
            job.pool.run(step, job.workspace, job.params)
        else:
            run_step(load_step(name), job.workspace, job.params, "prefect", defence or None)
        stages.record(step, job.params)
        return "ran"


def concurrent_steps(params: Params) -> int:
    """Number of steps that run at the same time: together they have at most one thread for each core."""
    return max(1, (os.cpu_count() or 1) // params.compute.threads)


def is_worth_retrying(_task: Any, _run: Any, state: Any) -> bool:
    """Return whether a step failed by an error of the network or the file system, which may not occur again."""
    return isinstance(state.result(raise_on_failure=False), OSError)


def publish_failure(workspace: Workspace, step: str, inputs: list[str], message: str) -> None:
    """Publish the artifact ``failure`` of a failed step."""
    page = failure_page(workspace, step, inputs, message)
    create_markdown_artifact(key="failure", markdown=page, description=f"{step} failed")


def failure_page(workspace: Workspace, step: str, inputs: list[str], message: str) -> str:
    """The message of a failed step, its inputs and the next action, in Markdown."""
    name, _, defence = step.partition("@")
    command = f"CT_ROBUSTNESS_TRACEBACK=1 python -m tasks.{name}" + f" --defence {defence}" * bool(defence)
    # the message can contain a file name that would close the block
    escaped = masked(message).replace("```", "'''")
    lines = [
        f"## {step} failed",
        f"```\n{escaped}\n```",
        f"Inputs: {', '.join(f'`{path}`' for path in inputs)}.",
        f"DVC has no record of the files in `{workspace.step_folder(name, defence)}`, so no later step uses them. "
        "Steps that do not need this step continued.",
        f"Next action: correct the cause. `{command}` prints the traceback. Then run the flow or `dvc repro` again. "
        "Finished steps are not repeated. Training and attacks resume from their checkpoints.",
    ]
    return "\n\n".join(lines)


def publish_results(workspace: Workspace) -> None:
    """Publish the headline metrics as a table artifact, and a link to the report."""
    metrics = json.loads(workspace.metrics.read_text(encoding="utf-8"))
    rows = [{"metric": name, "value": value} for name, value in flatten(metrics).items()]
    create_table_artifact(key="headline-metrics", table=rows, description="Headline metrics of the pipeline")
    create_link_artifact(key="report", link=workspace.report_html.resolve().as_uri(), link_text="Report")
