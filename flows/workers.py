"""Workers that share the attack on a target: threads of this process, or processes of a cluster."""

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
    """Workers that share the steps attack and attack_defence. The records are the same bytes with every runner."""

    runner: Literal["in_process", "threads", "dask", "ray"] = Field(
        default="in_process",
        description="in_process: the run itself, one part after the other; threads: threads of this process; dask, "
        "ray: processes of such a cluster, also on other machines",
    )
    n_workers: int = Field(
        default=2,
        ge=1,
        le=256,
        description="threads, or processes of a new cluster on this machine; each uses compute.threads CPU threads",
    )
    scheduler: str | None = Field(
        default=None,
        description="address of an existing cluster, such as tcp://10.0.0.1:8786 (dask) or ray://10.0.0.1:10001; its "
        "workers must find this folder under the same path",
    )


def compute_parts(workspace: Workspace, target: str, params: Params, workers: Workers) -> None:
    """Compute all parts of the attack on a target by several workers. The step then finds their checkpoints.

    If a worker is killed, another one repeats its part. Finished parts are kept.

    Args:
        workspace: where inputs are read and checkpoints written.
        target: ``undefended``, or the name of a defence.
        params: all parameters.
        workers: of any kind but ``in_process``.

    Raises:
        ValueError: the runner is not installed.
    """
    from tasks.attacks.attack_run import AttackRun

    n_parts = len(AttackRun.load(workspace, params, target).parts())
    compute = attack_in_parts.with_options(task_runner=runner_of(workers), flow_run_name=f"attack on {target}")
    # workers can have another current folder
    compute(Workspace(workspace.root.resolve()), target, params, n_parts)


@flow(name="attack_in_parts", validate_parameters=False)
def attack_in_parts(workspace: Workspace, target: str, params: Params, n_parts: int) -> None:
    """Run one task for each part of the attack on a target."""
    running = [compute_part.submit(workspace, target, params, number) for number in range(n_parts)]
    for future in running:
        future.result()


@task(name="part", task_run_name="{target}, part {number}", tags=["part"], cache_policy=NO_CACHE)
def compute_part(workspace: Workspace, target: str, params: Params, number: int) -> None:
    """Compute one part of the attack on a target, in any process."""
    from tasks.attacks.attack_run import AttackRun

    AttackRun.load(workspace, params, target).parts()[number]()


def runner_of(workers: Workers) -> TaskRunner[Any]:
    """Prefect's task runner of these workers.

    Raises:
        ValueError: its package is not installed.
    """
    if workers.runner == "threads":
        return ThreadPoolTaskRunner(max_workers=workers.n_workers)
    try:
        return _dask(workers) if workers.runner == "dask" else _ray(workers)
    except ModuleNotFoundError:
        name = workers.runner
        raise ValueError(
            f"workers.runner: {name} needs the package prefect-{name}. Install the packages of all extras: make dev"
        ) from None


def _dask(workers: Workers) -> TaskRunner[Any]:
    from prefect_dask.task_runners import DaskTaskRunner

    if workers.scheduler:
        return DaskTaskRunner(address=workers.scheduler)
    # one task at a time in a process: torch has its own threads, and one global random generator
    cluster = {"n_workers": workers.n_workers, "threads_per_worker": 1, "dashboard_address": None}
    return DaskTaskRunner(cluster_kwargs=cluster)


def _ray(workers: Workers) -> TaskRunner[Any]:
    if not workers.scheduler:
        # Ray's processes listen on the whole network on Linux; with this variable they use loopback, as elsewhere
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray  # noqa: F401  prefect-ray imports it too late for a message
    from prefect_ray.task_runners import RayTaskRunner

    # the processes of Ray import this code from where this process imported it
    environment = {"env_vars": {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}}
    own = {} if workers.scheduler else {"num_cpus": workers.n_workers, "include_dashboard": False}
    runner: TaskRunner[Any] = RayTaskRunner(workers.scheduler, {"runtime_env": environment, **own})
    return runner
