"""The services of a team in ``containers/compose.yaml``, without a container engine, and the workflow of GitHub."""

import re
from pathlib import Path
from typing import Any

import pytest
from mlflow.cli import server
from ruamel.yaml import YAML

from tests.conftest import ROOT

COMPOSE = ROOT / "containers" / "compose.yaml"
SERVICES: dict[str, dict[str, Any]] = YAML(typ="safe").load(COMPOSE)["services"]
JOBS: dict[str, dict[str, Any]] = YAML(typ="safe").load(ROOT / ".github" / "workflows" / "test.yml")["jobs"]


def test_every_image_is_that_of_the_project_or_has_a_digest() -> None:
    images = {service["image"] for service in SERVICES.values()} - {"ct-robustness:latest"}
    assert len(images) == 2
    assert [image for image in images if not re.search("@sha256:[0-9a-f]{64}$", image)] == []


def test_ports_are_published_on_loopback_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 2
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_a_service_waits_for_services_that_can_report_that_they_are_ready() -> None:
    for service in SERVICES.values():
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[needed]
            if how["condition"] == "service_completed_successfully":
                assert SERVICES[needed]["restart"] == "on-failure"


def test_secrets_are_variables_without_a_default_and_the_first_comment_lists_them() -> None:
    text = COMPOSE.read_text(encoding="utf-8")
    head = text.partition("\nname:")[0]
    for variable in set(re.findall(r"\$\{(\w+):\?\}", text)):
        assert variable in head
    assert re.findall(r"\$\{\w*(?:PASSWORD|KEY|LOGIN)\w*:-", text) == []


def test_the_options_of_the_mlflow_server_exist() -> None:
    known = {name for option in server.params for name in option.opts}
    assert set(re.findall(r"--[\w-]+", SERVICES["mlflow"]["command"])) <= known


@pytest.mark.parametrize("job", JOBS)
def test_a_job_of_the_workflow_has_a_time_limit_and_writes_only_what_it_names(job: str) -> None:
    assert JOBS[job]["timeout-minutes"] <= 90
    writes = {name for name, access in JOBS[job].get("permissions", {}).items() if access == "write"}
    assert writes == {"report": {"pull-requests"}, "pages": {"pages", "id-token"}}.get(job, set())


def test_make_targets_of_the_workflow_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [
        word
        for job in JOBS.values()
        for step in job["steps"]
        for word in re.findall(r"(?m)^make (\w+)$", step.get("run", ""))
    ]
    assert set(targets) == {"test", "repro", "site"}
    assert all(re.search(rf"(?m)^{target}:", makefile) for target in targets)


def test_the_workflow_runs_every_supported_version_of_python_and_macos() -> None:
    matrix = JOBS["test"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13"]
    assert [each["os"] for each in matrix["include"]] == ["macos-latest"]


def test_the_image_has_the_packages_of_the_servers() -> None:
    assert "requirements.lock" in Path(ROOT / "containers" / "Dockerfile").read_text(encoding="utf-8")
    locked = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    for package in ("boto3", "psycopg2-binary", "asyncpg", "prefect", "mlflow"):
        assert f"\n{package}==" in locked
