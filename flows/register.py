"""The flow ``register``: the best defended model of this workspace becomes a version in MLflow's registry.

``python -m flows.register`` chooses by the table that ``evaluate`` wrote; ``--target NAME`` takes another one.
"""

import argparse
import json
import logging
import tempfile
from pathlib import Path
from typing import Annotated

import pandas as pd
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from flows.command import run_flow
from flows.dvc_pipeline import DvcPipeline
from tasks.core.workspace import Workspace
from tasks.params import UNDEFENDED, Params, load_params
from tasks.serving import registry
from tasks.serving.bundle import write_bundle
from tasks.serving.card import card_of
from tasks.tracking import EXPERIMENT

log = logging.getLogger(__name__)


@flow(name="register")
def register(
    target: str | None = None,
    name: Annotated[str, Field(pattern=r"^[\w .-]+$")] = EXPERIMENT,
) -> str:
    """Register a target of this workspace with its card, as ``candidate``.

    Args:
        target: a defence, or ``undefended``; without it the defence that keeps most in the worst case of all adaptive
            attacks at ``analyze.eps``, of those that no check fails.
        name: of the registered model.

    Returns:
        What became of it, in a sentence.
    """
    workspace, params = Workspace(), load_params()
    refuse_stale_results()
    chosen, why = (target, "as asked") if target else best_defence(workspace, params)
    card, summary = card_of(workspace, params, chosen)
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_bundle(workspace, Path(folder) / "bundle", params, chosen, card)
        if known := registry.find_version(name, bundle.digest):
            return f"{chosen} ({why}) is registered already: {known.label} has the same weights. Nothing is changed"
        made = registry.register_bundle(Path(folder) / "bundle", name, summary)
    create_markdown_artifact(key="model-card", markdown=card, description=f"Card of {made.label}")
    return f"{chosen} ({why}) is registered as version {made.version} of {name}, alias {registry.CANDIDATE}"


def refuse_stale_results() -> None:
    """Look whether what ``evaluate`` wrote is about the networks that are there.

    Raises:
        RuntimeError: DVC says that a step before it, or itself, has changed since it ran.
    """
    pipeline = DvcPipeline()
    needed, waiting = pipeline.steps(), ["evaluate"]
    before: set[str] = set()
    while waiting:
        step = waiting.pop()
        before.add(step)
        waiting += [name for name in needed.get(step, []) if name not in before]
    if changed := [step for step in needed if step in before and pipeline.changed(step)]:
        raise RuntimeError(
            f"{', '.join(changed)} changed since {'it' if len(changed) == 1 else 'they'} ran, so the figures may be of "
            "other networks: bring them up to date first (dvc repro evaluate)"
        )


def best_defence(workspace: Workspace, params: Params) -> tuple[str, str]:
    """The defence that keeps most under all adaptive attacks at ``analyze.eps``, and in words why.

    Raises:
        FileNotFoundError: the step ``evaluate`` has not run.
        ValueError: none is there that no check fails.
    """
    if not workspace.benchmark.is_file():
        raise FileNotFoundError(f"{workspace.benchmark} not found: run the step evaluate first (dvc repro evaluate)")
    table, eps = pd.read_csv(workspace.benchmark), params.analyze.eps
    ranked = table[(table["threat_model"] == "adaptive") & (table["eps"] == eps) & (table["target"] != UNDEFENDED)]
    checks = json.loads(workspace.checks.read_text(encoding="utf-8"))
    passed_over: list[str] = []
    for row in ranked.sort_values("rank").to_dict("records"):
        failed = [check["key"] for check in checks if check["target"] == row["target"] and check["status"] == "FAIL"]
        if not failed:
            kept = f"the best defence, {100 * row['accuracy']:.1f} % right under adaptive attacks at eps {eps:g}"
            return row["target"], ", ".join([kept, *passed_over])
        passed_over.append(f"{row['target']} left out since it fails {', '.join(failed)}")
        log.warning("%s: its figures can't be believed (docs/checks.md)", passed_over[-1])
    raise ValueError(
        f"no defence under adaptive attacks at eps {eps:g} in {workspace.benchmark} passes its checks: "
        f"{'; '.join(passed_over) or 'there is none'}"
    )


def main() -> None:
    """Command line of the flow."""
    parser = argparse.ArgumentParser(prog="python -m flows.register", description="Register a defended model.")
    parser.add_argument("--target", help="a defence, or undefended (the best defence)")
    parser.add_argument("--name", default=EXPERIMENT, help="of the registered model (%(default)s)")
    print(run_flow(register, **vars(parser.parse_args())))


if __name__ == "__main__":
    main()
