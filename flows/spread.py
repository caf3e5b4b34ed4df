"""The work of attack steps, done by several workers: threads of this process, or processes of a cluster."""

import os
from pathlib import Path
from typing import Any, Literal

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import BaseModel, Field

from tasks.core.workspace import Workspace
from tasks.params import Params


class Workers(BaseModel, frozen=True):
    """Who does the work of attack steps; whoever it is, the same bytes come out."""

    runner: Literal["in_process", "threads", "dask", "ray"] = Field(
        default="in_process",
        description="in_process: the run itself, one part after the other; threads: of this process; dask, ray: "
        "processes of such a cluster, also on other machines",
    )
    n_workers: int = Field(
        default=2,
        ge=1,
        le=256,
        description="threads, or processes of a cluster on this machine; each computes with compute.threads threads",
    )
    scheduler: str | None = Field(
        default=None,
        description="address of a cluster that is there already, such as tcp://10.0.0.1:8786 (dask) or "
        "ray://10.0.0.1:10001, in place of one on this machine; its workers must see this folder under the same path",
    )


def finish_elsewhere(workspace: Workspace, target: str, params: Params, workers: Workers) -> None:
    """Let workers finish all parts of the attack on a target; the step then finds them done.

    What a worker that dies was at is begun again by another; what it had finished stays.

    Args:
        workspace: where inputs are read and outputs written.
        target: ``undefended``, or the name of a defence.
        params: all parameters.
        workers: not those of the kind ``in_process``, which need no help.

    Raises:
        ValueError: the runner is not installed.
    """
    # torch is imported by who attacks
    from tasks.attacks.lanes import count_lanes

    n_lanes = count_lanes(workspace, params, target)
    finish = finish_lanes.with_options(task_runner=runner_of(workers), flow_run_name=f"attack on {target}")
    # workers may have another current folder
    finish(Workspace(workspace.root.resolve()), target, params, n_lanes)


@flow(name="attack_in_parts", validate_parameters=False)
def finish_lanes(workspace: Workspace, target: str, params: Params, n_lanes: int) -> None:
    """All parts of the attack on one target, each a task."""
    running = [finish_one.submit(workspace, target, params, number) for number in range(n_lanes)]
    for future in running:
        future.result()


@task(name="part", cache_policy=NO_CACHE)
def finish_one(workspace: Workspace, target: str, params: Params, number: int) -> None:
    """One part, in a process that may have been started elsewhere."""
    from tasks.attacks.lanes import finish_lane

    finish_lane(workspace, params, target, number)


def runner_of(workers: Workers) -> TaskRunner[Any]:
    """Prefect's runner of this kind.

    Raises:
        ValueError: it is not installed.
    """
    if workers.runner == "threads":
        return ThreadPoolTaskRunner(max_workers=workers.n_workers)
    try:
        return _dask(workers) if workers.runner == "dask" else _ray(workers)
    except ModuleNotFoundError:
        name = workers.runner
        raise ValueError(f"workers.runner {name} needs prefect-{name}: pip install 'ct-robustness[{name}]'") from None


def _dask(workers: Workers) -> TaskRunner[Any]:
    from prefect_dask.task_runners import DaskTaskRunner

    if workers.scheduler:
        return DaskTaskRunner(address=workers.scheduler)
    # a thread each: torch has its own, and a step's random numbers must not meet another's
    cluster = {"n_workers": workers.n_workers, "threads_per_worker": 1, "dashboard_address": None}
    return DaskTaskRunner(cluster_kwargs=cluster)


def _ray(workers: Workers) -> TaskRunner[Any]:
    if not workers.scheduler:
        # on Linux, Ray's own processes would listen to the whole network; this keeps them on loopback, as elsewhere
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray  # noqa: F401  prefect-ray imports it when it is too late for a message
    from prefect_ray.task_runners import RayTaskRunner

    # its processes look for this code where this process found it
    environment = {"env_vars": {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}}
    own = {} if workers.scheduler else {"num_cpus": workers.n_workers, "include_dashboard": False}
    runner: TaskRunner[Any] = RayTaskRunner(workers.scheduler, {"runtime_env": environment, **own})
    return runner
