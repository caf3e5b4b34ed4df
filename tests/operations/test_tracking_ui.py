"""Comparison of runs in the MLflow UI, in a real browser; ``SCREENSHOTS=docs/images/tracking`` saves screenshots."""

import io
import json
import os
import shutil
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pandas as pd
import pytest
from mlflow import MlflowClient
from PIL import Image
from ruamel.yaml import YAML

from docs import RESULTS
from tasks.core.workspace import Workspace
from tasks.params import Params, parse_params
from tasks.report import report
from tasks.reporting.headline import headline_metrics
from tasks.runner import run_step
from tasks.tracking import EXPERIMENT, Tracker
from tests.conftest import ROOT, with_overrides
from tests.operations.servers import mlflow_server
from tests.report_workspace import DEFENCES, EPS, SIDE, write_workspace

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.operations,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]

PIPELINES = ("study-80-20-published", "active-learning")
COMPARISON = "study-50-50"


def archived_evaluate(run: str) -> Any:
    """A step ``evaluate`` that logs the curves of archived results."""

    def evaluate(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        table = pd.read_csv(ROOT / RESULTS / run / "robustness.csv")
        attacked = table[table["attack"] != "clean"]
        (workspace.evaluate / "run.txt").write_text(run, encoding="utf-8")
        for (target, threat_model, attack), points in attacked.groupby(["target", "threat_model", "attack"]):
            tracker.curve(
                f"{target} {threat_model} {attack}",
                {"target": target, "threat_model": threat_model, "attack": attack},
                [
                    (round(eps * 1000), {"robust/accuracy": accuracy})
                    for eps, accuracy in zip(points["eps"], points["accuracy"], strict=True)
                ],
            )

    return evaluate


def archived_report(run: str) -> Any:
    """A step ``report`` that logs the headline metrics of archived results."""

    def report(workspace: Workspace, params: Params, tracker: Tracker) -> None:
        metrics = json.loads((ROOT / RESULTS / run / "metrics.json").read_text(encoding="utf-8"))
        tracker.metrics(headline_metrics(metrics, 1))
        tracker.tags({"archived": run})
        tracker.link_steps()

    return report


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, MlflowClient]]:
    """A tracking server with the archived runs and one report of phantoms."""
    folder = tmp_path_factory.mktemp("ui")
    with (
        pytest.MonkeyPatch.context() as patch,
        mlflow_server(folder, f"sqlite:///{folder / 'mlflow.db'}", str(folder / "artifacts")) as server,
    ):
        patch.setenv("MLFLOW_TRACKING_URI", server.address)
        patch.chdir(folder)
        workspace = Workspace()
        for run in (*PIPELINES, COMPARISON):
            archived = YAML(typ="safe").load((ROOT / RESULTS / run / "params.yaml").read_text(encoding="utf-8"))
            params = parse_params(with_overrides({"prepare": archived["prepare"], "seed": archived["seed"]}))
            run_step(archived_evaluate(run), workspace, params, "dvc")
            run_step(archived_report(run), workspace, params, "dvc")
        params = parse_params(
            with_overrides({"attack.eps": list(EPS), "prepare.image_size": SIDE, "selected_defences": DEFENCES})
        )
        shutil.rmtree(workspace.data)
        write_workspace(params, is_phantom=True)
        run_step(report, workspace, params, "dvc")
        yield server.address, MlflowClient(tracking_uri=server.address)


@pytest.fixture(scope="module")
def page() -> Iterator["playwright.Page"]:
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1240, "height": 800})
        page.set_default_timeout(120_000)
        yield page
        browser.close()


def save_screenshot(page: "playwright.Page", name: str) -> None:
    """Close the chat pane; save a screenshot if the variable SCREENSHOTS is set."""
    close = page.get_by_role("button", name="Close", exact=True)
    if close.count():
        close.click()
    if folder := os.environ.get("SCREENSHOTS"):
        # some parts are drawn late
        page.wait_for_timeout(4000)
        picture = Image.open(io.BytesIO(page.screenshot()))
        picture.quantize(256, Image.Quantize.MAXCOVERAGE).save(ROOT / folder / f"{name}.png", optimize=True)


def runs_of(client: MlflowClient, filter_string: str) -> list[Any]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], filter_string))


def test_two_runs_are_compared_by_their_different_parameters_and_metrics(
    store: tuple[str, MlflowClient], page: "playwright.Page"
) -> None:
    address, client = store
    (stratified,), (grouped,) = (runs_of(client, f"tags.archived = '{name}'") for name in PIPELINES)
    runs = json.dumps([stratified.info.run_id, grouped.info.run_id])
    page.goto(f"{address}/#/compare-runs?runs={quote(runs)}&experiments=[%22{grouped.info.experiment_id}%22]")
    page.get_by_text("Show diff only").first.wait_for()
    parameters = page.locator("table").filter(has_text="prepare.split.strategy")
    assert "prepare.image_size" in parameters.inner_text()
    # one switch each for parameters, metrics and tags
    for switch in page.get_by_role("switch").all():
        switch.click()
    assert parameters.inner_text().split() == ["prepare.split.strategy", "stratified", "grouped"]
    page.get_by_text("Duration:").scroll_into_view_if_needed()
    page.mouse.move(500, 500)
    page.mouse.wheel(0, 500)
    save_screenshot(page, "compare")
    assert page.get_by_text(f"{stratified.data.metrics['clean/accuracy']:.3f}", exact=True).count()
    assert page.get_by_text(f"{grouped.data.metrics['clean/accuracy']:.3f}", exact=True).count()


def test_curves_of_four_targets_are_in_one_chart(store: tuple[str, MlflowClient], page: "playwright.Page") -> None:
    address, client = store
    (comparison,) = runs_of(client, f"tags.archived = '{COMPARISON}'")
    curves = runs_of(client, "tags.kind = 'curve' and tags.threat_model = 'adaptive' and tags.attack = 'pgd'")
    of_defences = [run for run in curves if run.data.tags["mlflow.parentRunId"] == comparison.data.tags["run.evaluate"]]
    assert len(of_defences) == 4
    runs, keys = json.dumps([run.info.run_id for run in of_defences]), json.dumps(["robust/accuracy"])
    page.goto(
        f"{address}/#/metric?runs={quote(runs)}&metric=%22robust%2Faccuracy%22"
        f"&experiments=[%22{comparison.info.experiment_id}%22]&plot_metric_keys={quote(keys)}&x_axis=step&show_point=true"
    )
    page.locator(".scatterlayer .trace").nth(3).wait_for()
    # the chart is drawn twice: on the page and for the full screen
    drawn = page.locator(".scatterlayer .js-line").evaluate_all("lines => lines.map(line => line.getAttribute('d'))")
    assert len(set(drawn)) >= 4
    for run in of_defences:
        assert page.get_by_role("link", name=run.info.run_name).count()
    save_screenshot(page, "curves")


def test_the_report_opens_in_the_artifact_view(store: tuple[str, MlflowClient], page: "playwright.Page") -> None:
    address, client = store
    newest = runs_of(client, "tags.step = 'report'")[0]
    page.goto(f"{address}/#/experiments/{newest.info.experiment_id}/runs/{newest.info.run_id}/artifacts/report.html")
    page.frame_locator("iframe").get_by_text("Robustness report: phantoms").wait_for()
    save_screenshot(page, "report")
