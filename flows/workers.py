"""Workers that share the steps that train, attack and analyse: threads of this process, or processes of a cluster."""

import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from multiprocessing import current_process
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import BaseModel, Field

from flows.command import log_progress
from tasks.core.workspace import Workspace
from tasks.params import UNDEFENDED, Params
from tasks.runner import Step, run_step
from tasks.step_inputs import step_lock

if TYPE_CHECKING:
    from tasks.attacks.attack_run import AttackRun

WORKER_STEPS = (
    *("train_classifier", "train_surrogates", "train_autoencoder", "train_defence"),
    *("attack", "attack_defence", "analyze", "simulate_labelling"),
)
"""Steps that run on workers: those that use a GPU. The others need seconds, or the network."""


class Workers(BaseModel, frozen=True):
    """Workers that share the steps that train, attack and analyse. The outputs are the same bytes with every runner."""

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


@contextmanager
def worker_pool(workers: Workers) -> Iterator["WorkerPool | None"]:
    """The workers of one flow run, which end with the block; none for the runner ``in_process``.

    A cluster of Dask starts with the first step that needs it, one of Ray at once.

    Raises:
        ValueError: the runner is not installed.
    """
    if workers.runner == "in_process":
        yield None
        return
    with runner_of(workers) as runner:
        yield WorkerPool(runner)


class WorkerPool:
    """Workers that share the steps of a flow run; several threads may call them."""

    def __init__(self, runner: TaskRunner[Any]) -> None:
        self._runner = runner
        # Prefect sends the context of a task to the worker, with the parameters of the task that submits it. Those of
        # the step's task cannot be pickled, so all tasks are submitted in the context of the flow.
        self._context, self._lock = copy_context(), Lock()

    def run(self, step: str, workspace: Workspace, params: Params) -> None:
        """Run a step on the workers: an attack in parts, whose checkpoints the step then finds.

        If a worker is killed, another one repeats its part. Finished parts are kept.

        Args:
            step: ``step`` or ``step@defence``.
            workspace: where inputs are read, and outputs and checkpoints written. Its folder is also that of the
                workers.
            params: all parameters.
        """
        name, _, defence = step.partition("@")
        common = {"workspace": Workspace(workspace.root.resolve()), "params": params}
        if name in ("attack", "attack_defence"):
            target = {"target": defence or UNDEFENDED}
            with step_lock(workspace, step, params):
                (n_parts,) = self._compute(count_parts, [common | target])
                self._compute(compute_part, [common | target | {"number": number} for number in range(n_parts)])
        self._compute(compute_step, [common | {"step": step}])

    def _compute(self, function: Task[..., Any], calls: list[dict[str, Any]]) -> list[Any]:
        # the first call starts a cluster of Dask, which Prefect does not expect from several threads
        with self._lock:
            running = [self._context.run(self._runner.submit, function, call) for call in calls]
        return [future.result() for future in running]


@task(name="count_parts", task_run_name="{target}, number of parts", cache_policy=NO_CACHE)
def count_parts(workspace: Workspace, target: str, params: Params) -> int:
    """The number of parts of the attack on a target, counted in any process: the flow may have no GPU."""
    return len(_load_attack(workspace, target, params).parts())


@task(name="part", task_run_name="{target}, part {number}", tags=["part"], cache_policy=NO_CACHE)
def compute_part(workspace: Workspace, target: str, params: Params, number: int) -> None:
    """Compute one part of the attack on a target, in any process."""
    _load_attack(workspace, target, params).parts()[number]()


@task(name="step", task_run_name="{step} on a worker", cache_policy=NO_CACHE)
def compute_step(workspace: Workspace, step: str, params: Params) -> None:
    """Run a step, in any process."""
    _prepare_worker(workspace)
    name, _, defence = step.partition("@")
    run_step(load_step(name), workspace, params, "prefect", defence or None)


def load_step(name: str) -> Step:
    """The function of a step. It has the name of its module."""
    function: Step = getattr(importlib.import_module(f"tasks.{name}"), name)
    return function


def _load_attack(workspace: Workspace, target: str, params: Params) -> "AttackRun":
    from tasks.attacks.attack_run import AttackRun

    _prepare_worker(workspace)
    return AttackRun.load(workspace, params, target)


def _prepare_worker(workspace: Workspace) -> None:
    """Log progress, and check the worker: in the folder of the flow it finds the tracking store as the flow does."""
    log_progress()
    if current_process().daemon:
        raise ValueError(
            "workers.scheduler: a worker is a daemon, which cannot start processes. Set the variable "
            "DASK_DISTRIBUTED__WORKER__DAEMON=false for the workers, and start them again."
        )
    if Path.cwd().resolve() != workspace.root:
        raise ValueError(
            f"workers.scheduler: a worker runs in {Path.cwd()}. It must run in the folder of the flow, under the same "
            f"path. Start the workers in {workspace.root}."
        )


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
    import dask
    from prefect_dask.task_runners import DaskTaskRunner

    # of the processes of a new cluster: steps that log a model start a process, which daemons must not
    dask.config.set({"distributed.worker.daemon": False})
    # lines about connections
    logging.getLogger("distributed").setLevel(logging.WARNING)
    if workers.scheduler:
        return DaskTaskRunner(address=workers.scheduler)
    # one task at a time in a process: torch has its own threads, and one global random generator. By default Dask kills
    # a worker that needs more than its cores' share of the memory
    cluster = {"n_workers": workers.n_workers, "threads_per_worker": 1, "memory_limit": None, "dashboard_address": None}
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
