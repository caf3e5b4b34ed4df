"""The deployments with real server, pool, worker and runs; and the jobs of container pools."""

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pandas as pd
import psutil
import pytest

from tests.conftest import ROOT
from tests.operations.servers import free_port, prefect_client, running, wait_for
from tests.test_pipeline import STEPS, init_dvc, make_workspace, run, write_params

pytestmark = pytest.mark.operations

DEPLOYMENTS = {
    "pipeline/pipeline",
    "labelling/labelling",
    "seeds/seeds",
    "robustness_audit/robustness-audit",
    "register/register",
    "promote/promote",
    "export/export",
}
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
N_KILLS = int(os.environ.get("N_KILLS", "2"))
"""Kills of the worker; `make kills` sets it."""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy workspace in git, whose pipeline has not run."""
    folder = make_workspace(tmp_path_factory.mktemp("deployed") / "workspace")
    for name in ("prefect.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copy(ROOT / "data" / ".gitignore", folder / "data")
    shutil.rmtree(folder / ".dvc")
    run(folder, "git", "init", "--quiet", "--initial-branch", "main")
    run(folder, "git", "config", "user.email", "someone@example.org")
    run(folder, "git", "config", "user.name", "someone")
    init_dvc(folder)
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", "code")
    return folder


@pytest.fixture(scope="module")
def api(workspace: Path) -> Iterator[httpx.Client]:
    """Prefect's API after ``make serve`` in the workspace has created the deployments and started the worker."""
    port, log = free_port(), workspace.parent / "serve.log"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with running([sys.executable, "-m", "flows.serve", "--port", str(port)], log) as process:
            wait_for(lambda: "Serving:" in log.read_text(), process, log)
            credentials = Path(".prefect/credentials").read_text()
            # for Prefect's own commands
            patch.setenv("PREFECT_API_AUTH_STRING", credentials)
            with prefect_client(port, credentials) as client:
                yield client


def deployed(api: httpx.Client) -> dict[str, dict[str, Any]]:
    """Deployments by flow and name."""
    found = api.post("/deployments/filter", json={}).raise_for_status().json()
    flows = {flow["id"]: flow["name"] for flow in api.post("/flows/filter", json={}).raise_for_status().json()}
    return {f"{flows[each['flow_id']]}/{each['name']}": each for each in found}


def begin(api: httpx.Client, name: str, **parameters: Any) -> str:
    """Create a run as the form of the UI does, and return its id."""
    deployment = deployed(api)[name]["id"]
    body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
    answer = api.post(f"/deployments/{deployment}/create_flow_run", json=body)
    if answer.status_code == 503:
        # Prefect's SQLite database was busy; its clients repeat such a request
        time.sleep(2)
        return begin(api, name, **parameters)
    return str(answer.raise_for_status().json()["id"])


def ended(api: httpx.Client, flow_run: str) -> dict[str, Any]:
    """Wait until a run has ended, and return it."""
    return wait_for_state(api, flow_run, ENDED, 900)


def wait_for_state(api: httpx.Client, flow_run: str, types: set[str], seconds: float = 120) -> dict[str, Any]:
    """Wait until a run has one of some types of states, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found: dict[str, Any] = api.get(f"/flow_runs/{flow_run}").raise_for_status().json()
        if found["state"]["type"] in types:
            return found
        time.sleep(0.2)
    raise TimeoutError(f"{found['name']} is {found['state']}")


def artifacts(api: httpx.Client, flow_run: str) -> dict[str, str]:
    """Artifacts of a run and its tasks, by key."""
    body = {"flow_runs": {"id": {"any_": [flow_run]}}}
    return {each["key"]: each["data"] for each in api.post("/artifacts/filter", json=body).raise_for_status().json()}


def test_every_deployment_has_a_typed_form(api: httpx.Client) -> None:
    deployments = deployed(api)
    assert set(deployments) == DEPLOYMENTS
    assert {name for name, each in deployments.items() if each["schedules"]} == {"robustness_audit/robustness-audit"}
    assert {each["concurrency_options"]["collision_strategy"] for each in deployments.values()} == {"ENQUEUE"}
    variables = [each["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] for each in deployments.values()]
    assert set(variables) == {"30"}
    schema = deployments["pipeline/pipeline"]["parameter_openapi_schema"]
    n_workers = schema["definitions"]["Workers"]["properties"]["n_workers"]
    assert (n_workers["minimum"], n_workers["maximum"]) == (1, 256)
    response = api.post(
        f"/deployments/{deployments['pipeline/pipeline']['id']}/create_flow_run",
        json={"parameters": {"workers": {"n_workers": 0}}, "enforce_parameter_schema": True},
    )
    assert response.status_code in (409, 422)


def test_a_run_completes_with_its_artifacts_and_dvc_finds_every_step_up_to_date(
    api: httpx.Client, workspace: Path
) -> None:
    flow_run = begin(api, "pipeline/pipeline")
    found = ended(api, flow_run)
    assert found["state"]["name"] == "Completed", found["state"]
    published = artifacts(api, flow_run)
    assert set(published) == {"headline-metrics", "report"}
    metrics = {row["metric"]: row["value"] for row in json.loads(published["headline-metrics"])}
    assert "clean.undefended.accuracy" in metrics
    assert (workspace / "data" / "report" / "report.html").is_file()
    assert "up to date" in run(workspace, "dvc", "status")
    run(workspace, "git", "add", "--all")
    run(workspace, "git", "commit", "--quiet", "--message", "results")


def test_the_second_of_two_runs_waits_and_repeats_no_step(api: httpx.Client, workspace: Path) -> None:
    write_params(workspace, {"analyze.claim_bounds.separable_auroc": 0.71})
    first, second = begin(api, "pipeline/pipeline"), begin(api, "pipeline/pipeline")
    names = set()
    while not all(
        found["state"]["type"] == "COMPLETED"
        for found in (api.get(f"/flow_runs/{flow_run}").json() for flow_run in (first, second))
    ):
        states = {api.get(f"/flow_runs/{flow_run}").json()["state"]["name"] for flow_run in (first, second)}
        assert not states & {"Failed", "Crashed"}
        names.add(tuple(sorted(states)))
        time.sleep(0.2)
    assert ("AwaitingConcurrencySlot", "Running") in names
    runs = sorted((ended(api, flow_run) for flow_run in (first, second)), key=lambda found: found["start_time"])
    ran, unchanged = (tasks_of(api, found["id"]) for found in runs)
    assert runs[0]["end_time"] <= runs[1]["end_time"]
    assert set(ran) == set(unchanged) == set(STEPS)
    assert ran["analyze"] > 3 * unchanged["analyze"]
    assert "up to date" in run(workspace, "dvc", "status")


def tasks_of(api: httpx.Client, flow_run: str) -> dict[str, float]:
    """Duration of each task of a run, in seconds."""
    body = {"flow_runs": {"id": {"any_": [flow_run]}}}
    found = api.post("/task_runs/filter", json=body).raise_for_status().json()
    return {each["name"]: each["total_run_time"] for each in found}


def test_a_failed_run_publishes_the_step_the_inputs_and_the_command(api: httpx.Client, workspace: Path) -> None:
    write_params(workspace, {"validate.min_images_per_class": 1000})
    flow_run = begin(api, "pipeline/pipeline")
    found = ended(api, flow_run)
    assert found["state"]["type"] == "FAILED"
    page = artifacts(api, flow_run)["failure"]
    assert "## validate failed" in page
    assert "data/acquire" in page
    assert "python -m tasks.validate" in page
    changed = json.loads(run(workspace, "dvc", "status", "--json"))
    assert "validate" in changed

    write_params(workspace, {"analyze.claim_bounds.separable_auroc": 0.71})
    assert ended(api, begin(api, "pipeline/pipeline"))["state"]["name"] == "Completed"
    assert "up to date" in run(workspace, "dvc", "status")


def test_each_seed_is_an_experiment_and_one_table_has_mean_and_spread(api: httpx.Client, workspace: Path) -> None:
    write_params(workspace, {})
    run(workspace, "git", "checkout", "--quiet", "--force", "HEAD")
    run(workspace, "dvc", "checkout", "--quiet")
    flow_run = begin(api, "seeds/seeds", seeds=[0, 1])
    found = ended(api, flow_run)
    assert found["state"]["name"] == "Completed", found["state"]
    table = pd.read_csv(workspace / "seeds" / "seeds.csv").set_index("metric")
    of_one = table.loc["clean.undefended.accuracy"]
    assert of_one["value"] == pytest.approx((of_one["seed 0"] + of_one["seed 1"]) / 2)
    assert of_one["lowest"] <= of_one["value"] <= of_one["highest"]
    assert of_one[["low", "high"]].isna().all()
    now = json.loads((workspace / "data" / "evaluate" / "metrics.json").read_text())
    assert of_one["seed 0"] == pytest.approx(now["clean"]["undefended"]["accuracy"], rel=1e-6)
    names = run(workspace, "dvc", "exp", "list", "--name-only").split()
    assert sorted(name[:6] for name in names) == ["seed-0", "seed-1"]
    assert set(artifacts(api, flow_run)) >= {"seeds"}
    assert "up to date" in run(workspace, "dvc", "status")


def test_runs_of_a_killed_worker_are_crashed_and_the_next_run_begins_within_a_minute(
    api: httpx.Client, workspace: Path
) -> None:
    rng, seconds = random.Random(0), []
    run(workspace, "git", "checkout", "--quiet", "--force", "HEAD")
    victim = begin(api, "pipeline/pipeline")
    for number in range(N_KILLS):
        write_params(workspace, {"seed": 100 + number})
        wait_for_state(api, victim, {"PENDING", "RUNNING"})
        follower = begin(api, "pipeline/pipeline")
        time.sleep(rng.uniform(0, 10))
        if number % 2:
            # as if the machine were switched off
            os.killpg(worker().pid, signal.SIGKILL)
        else:
            worker().kill()
        killed = time.monotonic()
        assert wait_for_state(api, victim, ENDED)["state"]["type"] == "CRASHED"
        crashed = time.monotonic()
        wait_for_state(api, follower, {"PENDING", "RUNNING"})
        seconds.append((crashed - killed, time.monotonic() - killed))
        print(f"kill {number + 1}: crashed after {seconds[-1][0]:.0f} s, next run after {seconds[-1][1]:.0f} s")
        victim = follower
    assert max(max(each) for each in seconds) < 60
    assert ended(api, victim)["state"]["name"] == "Completed"
    assert "up to date" in run(workspace, "dvc", "status")


def worker() -> psutil.Process:
    """The worker that ``make serve`` has started."""
    (found,) = (
        process
        for process in psutil.Process().children(recursive=True)
        if process.cmdline()[2:4] == ["worker", "start"]
    )
    return found


class TestContainers:
    """Job templates of Docker and Kubernetes, as the workers of such pools read them, without a container engine."""

    @pytest.fixture(scope="class")
    def flow_run(self, api: httpx.Client) -> Any:
        from prefect.client.schemas.objects import FlowRun

        made = begin(api, "pipeline/pipeline")
        found = api.get(f"/flow_runs/{made}").raise_for_status().json()
        ended(api, made)
        return FlowRun.model_validate(found)

    @pytest.mark.parametrize("kind", ["docker", "kubernetes"])
    def test_a_pool_is_created_from_the_template(self, kind: str, api: httpx.Client, workspace: Path) -> None:
        template = ROOT / "containers" / f"{kind}.json"
        prefect = [Path(sys.executable).parent / "prefect", "--no-prompt"]
        command = [*prefect, "work-pool", "create", f"on-{kind}", "--type", kind, "--base-job-template", template]
        environment = os.environ | {"PREFECT_API_URL": str(api.base_url)}
        subprocess.run(command, cwd=workspace, env=environment, check=True, stdout=subprocess.DEVNULL)
        pool = api.get(f"/work_pools/on-{kind}").raise_for_status().json()
        assert pool["type"] == kind
        assert pool["base_job_template"] == json.loads(template.read_text())

    def test_docker_starts_a_container_with_the_workspace_as_volume(self, flow_run: Any) -> None:
        from prefect_docker.worker import DockerWorkerJobConfiguration

        template = json.loads((ROOT / "containers" / "docker.json").read_text())
        values = {"env": {"MLFLOW_TRACKING_URI": "http://tracking:5000"}, "user": "7:8"}
        job = asyncio.run(DockerWorkerJobConfiguration.from_template_and_values(template, values))
        job.prepare_for_flow_run(flow_run)
        assert (job.image, job.command) == ("ct-robustness:latest", "prefect flow-run execute")
        assert job.volumes == ["/srv/ct-robustness:/srv/ct-robustness"]
        assert job.env["MLFLOW_TRACKING_URI"] == "http://tracking:5000"
        assert UUID(job.env["PREFECT__FLOW_RUN_ID"]) == flow_run.id
        assert job.auto_remove
        assert job.container_create_kwargs == {
            "user": "7:8",
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "device_requests": [],
        }

    def test_kubernetes_starts_a_job_that_is_valid_in_its_schema(self, flow_run: Any) -> None:
        import kubernetes_validate
        from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

        template = json.loads((ROOT / "containers" / "kubernetes.json").read_text())
        values = {"env": {"MLFLOW_TRACKING_URI": "http://tracking:5000"}, "gpus": 1}
        job = asyncio.run(KubernetesWorkerJobConfiguration.from_template_and_values(template, values))
        job.prepare_for_flow_run(flow_run)
        manifest = job.job_manifest
        kubernetes_validate.validate(manifest, "1.33", strict=True)
        pod = manifest["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert container["args"] == ["prefect", "flow-run", "execute"]
        assert {"name": "MLFLOW_TRACKING_URI", "value": "http://tracking:5000"} in container["env"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
        (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
        assert mount == {"name": volume["name"], "mountPath": "/srv/ct-robustness"}
        assert volume["persistentVolumeClaim"] == {"claimName": "ct-robustness"}

    def test_the_image_contains_only_files_in_git(self) -> None:
        lines = (ROOT / "containers" / "Dockerfile").read_text().splitlines()
        copied = [line.split()[1] for line in lines if line.startswith("COPY")]
        tracked = run(ROOT, "git", "ls-files", *copied).split()
        assert tracked == copied == ["requirements.lock"]
        kept = (ROOT / "containers" / "Dockerfile.dockerignore").read_text().splitlines()
        assert [line for line in kept if line and not line.startswith("#")] == ["*", "!requirements.lock"]
