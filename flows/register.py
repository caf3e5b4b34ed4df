"""The flow ``register``: register the best defended model of this workspace in MLflow's model registry.

``python -m flows.register`` selects the defence that is best on validation images; ``--target NAME`` registers another
target.
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

from flows.command import log_progress, run_flow
from flows.dvc_pipeline import DvcPipeline
from flows.server import NOTIFY
from tasks.core.locks import locked
from tasks.core.workspace import Workspace
from tasks.params import UNDEFENDED, Params, load_params
from tasks.records.vocabulary import AS_TRAINED
from tasks.reporting.model_card import card_of
from tasks.serving import registry
from tasks.serving.bundle import write_bundle
from tasks.statistics.formatting import eps_text, percent
from tasks.tracking import EXPERIMENT

log = logging.getLogger(__name__)


@flow(name="register", **NOTIFY)
def register(target: str | None = None, name: Annotated[str, Field(pattern=r"^[\w .-]+$")] = EXPERIMENT) -> str:
    """Register a target of this workspace with its model card, under the alias ``candidate``.

    Args:
        target: a defence, or ``undefended``. By default the defence with the highest balanced accuracy on attacked
            validation images at ``analyze.eps``, among those without a failed check.
        name: name of the registered model.

    Returns:
        The outcome in one sentence.
    """
    log_progress()
    workspace, params = Workspace(), load_params()
    refuse_stale_results()
    chosen, reason = (target, "as requested") if target else best_defence(workspace, params)
    card, summary = card_of(workspace, params, chosen)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "bundle"
        with locked(workspace.locks, reads=map(workspace.step_of, workspace.outputs())):
            write_bundle(workspace, folder, params, chosen, card)
        existing = registry.find_version(name, folder)
        version = existing or registry.register_bundle(folder, name, summary)
    # also of an existing version: another may be the candidate, or an earlier registration was killed before this call
    registry.make_candidate(version)
    if existing:
        return (
            f"{chosen} ({reason}) is not registered again: {existing.label} has the same networks, parameters "
            f"and model card. It has the alias {registry.CANDIDATE}."
        )
    create_markdown_artifact(key="model-card", markdown=card, description=f"Model card of {version.label}")
    return f"{chosen} ({reason}) is registered as version {version.version} of {name}, alias {registry.CANDIDATE}."


def refuse_stale_results() -> None:
    """Check that the results of ``evaluate`` belong to the present models.

    Raises:
        RuntimeError: DVC reports a change of ``evaluate`` or of a step before it.
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
            f"the results may belong to other models: DVC reports changes of {', '.join(changed)}. "
            "Bring the results up to date first: dvc repro evaluate"
        )


def best_defence(workspace: Workspace, params: Params) -> tuple[str, str]:
    """The defence with the highest balanced accuracy on attacked validation images at ``analyze.eps``, and the reason.

    Defences with a failed check are left out.

    Raises:
        FileNotFoundError: the step ``evaluate`` has not run.
        ValueError: every defence has a failed check.
    """
    if not workspace.comparison.is_file():
        raise FileNotFoundError(f"{workspace.comparison} not found. Run the step evaluate first: dvc repro evaluate")
    table, eps = pd.read_csv(workspace.comparison), params.analyze.eps
    # a target is served as trained
    is_wanted = (table["operating_point"] == AS_TRAINED) & (table["threat_model"] == "adaptive") & (table["eps"] == eps)
    ranked = table[is_wanted & (table["target"] != UNDEFENDED)]
    checks = json.loads(workspace.checks.read_text(encoding="utf-8"))
    left_out: list[str] = []
    for row in ranked.sort_values("rank").to_dict("records"):
        failed = [check["key"] for check in checks if check["target"] == row["target"] and check["status"] == "FAIL"]
        if not failed:
            chosen, stated = (percent(row[f"{of}_balanced_accuracy"]) for of in ("validation", "robust"))
            reason = (
                f"chosen by balanced accuracy on attacked validation images, {chosen} at eps {eps_text(eps)}; on test "
                f"images {stated} in the worst case"
            )
            return row["target"], "; ".join([reason, *left_out])
        left_out.append(f"{row['target']} left out, failed checks: {', '.join(failed)}")
        log.warning("%s (docs/reference/checks.md)", left_out[-1])
    raise ValueError(
        f"{workspace.comparison} has no defence without a failed check at eps {eps_text(eps)}: "
        f"{'; '.join(left_out) or 'no defence was evaluated'}. See docs/reference/checks.md, or register a target "
        "explicitly (--target)."
    )


def main() -> None:
    """Register a target of this workspace."""
    parser = argparse.ArgumentParser(prog="python -m flows.register", description=main.__doc__)
    parser.add_argument("--target", help="a defence, or undefended (default: the best defence on validation images)")
    parser.add_argument("--name", default=EXPERIMENT, help="name of the registered model (default: %(default)s)")
    print(run_flow(register, **vars(parser.parse_args())))


if __name__ == "__main__":
    main()
