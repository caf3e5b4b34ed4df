"""The flow ``robustness_audit``: a registered model under today's attacks, on today's data.

``python -m flows.audit ct-robustness@champion`` makes a workspace of its own below ``audits/``, in which the networks
are those of the model, data and parameters those of the current workspace, and runs the existing steps there.
"""

import argparse
import json
import logging
import os
import shutil
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import Field
from ruamel.yaml import YAML

from flows.command import run_flow
from flows.flow import load_step
from tasks.core.files import write_json
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import Prepared, load_prepared
from tasks.dataset.split import leakage
from tasks.params import UNDEFENDED, Autoencoder, Params, load_params, parse_params
from tasks.records.vocabulary import spoken
from tasks.runner import run_step
from tasks.serving import registry
from tasks.serving.bundle import Bundle, digests_of_images, read_bundle, read_seen
from tasks.serving.registry import Registered
from tasks.statistics.formatting import eps_text, with_interval
from tasks.tracking import EXPERIMENT

AUDITS = Path("audits")
SEEN = "seen"
"""Split of the images that an audit leaves out."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Audit:
    """A workspace in which a model is audited."""

    model: Registered
    workspace: Workspace
    params: Params
    """What the steps in there run with."""
    n_test: int
    """Test images, all of them unseen."""
    n_left_out: int
    """Of today's test images, those that a model was trained or validated on."""


@flow(name="robustness_audit")
def robustness_audit(
    model: Annotated[str, Field(min_length=3)] = f"{EXPERIMENT}@{registry.CHAMPION}",
) -> str:
    """Attack a registered model with today's attacks on today's data, evaluate and analyse it, and write a report.

    Args:
        model: ``name@alias`` or ``name/version``.

    Returns:
        What came of it, in a few sentences.
    """
    workspace, params = Workspace(), load_params()
    found = registry.find(model)
    folder = AUDITS / found.label
    bundle = registry.download(found, renewed(folder / "model"))
    audit = set_up_audit(workspace, found, bundle, Workspace(folder), params, with_report=True)
    run_audit(audit, with_report=True)
    outcome = outcome_of(audit)
    there = audit.workspace
    registry.note_audit(found, outcome, [there.report_html, there.metrics, there.checks, there.benchmark])
    create_markdown_artifact(key="audit", markdown=outcome, description=f"Audit of {found.label}")
    return outcome


def set_up_audit(
    workspace: Workspace,
    model: Registered,
    bundle: Path,
    there: Workspace,
    today: Params,
    also_seen: Set[str] = frozenset(),
    with_report: bool = False,
) -> Audit:
    """Make the workspace of an audit; what an earlier one left there goes, but for its checkpoints.

    Test images that the model was trained or validated on are turned out of the test split, and validation images that
    it was trained on out of the validation split, which tells detectors' thresholds.

    Args:
        workspace: the current workspace.
        model: the version that is audited.
        bundle: its files.
        there: the audit's workspace.
        today: parameters of the current workspace; how the networks are made is taken from the bundle.
        also_seen: digests of test images to be left out, too.
        with_report: whether the analyses and the page are wanted, which need more of the current workspace.

    Raises:
        FileNotFoundError: a step has not run in the current workspace.
        ValueError: the model is for other images, or saw all of today's.
    """
    about, seen, data = read_bundle(bundle), read_seen(bundle), load_prepared(workspace)
    linked = (workspace.validate, workspace.active_learning) if with_report else ()
    if missing := [path for path in linked if not path.is_dir()]:
        step = workspace.step_of(missing[0])
        raise FileNotFoundError(f"{missing[0]} not found: run the step {step} first (dvc repro {step})")
    refuse_other_images(workspace, model, about, data)
    digests = pd.Series(digests_of_images(data.pixels), index=data.table.index)
    table, n_left_out = without_seen(data.table, digests, seen, also_seen)
    n_test = int((table["split"] == "test").sum())
    if not n_test:
        raise ValueError(f"{model.label} was trained or validated on all {n_left_out} test images: none is left")
    if not (table["split"] == "validation").any():
        raise ValueError(f"{model.label} was trained on all validation images: none is left for detectors' thresholds")

    renewed(there.data)
    for path in linked:
        shutil.copytree(path, there.root / path.relative_to(workspace.root), copy_function=link_or_copy)
    if with_report:
        shutil.copyfile(workspace.reference, there.reference)
    shutil.copytree(Workspace(bundle).data, there.data, dirs_exist_ok=True)
    there.prepare.mkdir()
    link_or_copy(str(workspace.pixels), str(there.pixels))
    table.to_parquet(there.split, index=False)
    info = json.loads(workspace.dataset_info.read_text(encoding="utf-8"))
    counts = pd.crosstab(table["split"], table["class"]).reindex(columns=list(data.classes), fill_value=0)
    info["n_images"] = {split: counts.loc[split].to_dict() for split in info["n_images"] if split in counts.index}
    info["leakage"] = leakage(table.assign(split=as_the_model_knows(table["split"], digests, seen["train"])))
    write_json(info, there.dataset_info)
    params = params_of(about, today)
    with there.params_file.open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(params.model_dump(mode="json", by_alias=True), file)
    log.info("%s: %d test images, %d left out that a model has seen", there.root, n_test, n_left_out)
    return Audit(model, there, params, n_test, n_left_out)


def run_audit(audit: Audit, with_report: bool) -> None:
    """Run the steps from the attack on, one after the other, each as a Prefect task.

    Args:
        audit: where.
        with_report: also the analyses and the page.
    """
    benchmark, target = audit.params.benchmark, audit.model.target
    steps = [("train_defence", name) for name in benchmark if name != target]
    steps += [("attack", ""), *(("attack_defence", name) for name in benchmark), ("evaluate", "")]
    steps += [("analyze", ""), ("report", "")] if with_report else []
    for step, defence in steps:
        name = f"{step}@{defence}" if defence else step
        as_task: Any = task(name=f"{name} of {audit.workspace.root.name}", cache_policy=NO_CACHE)
        tags = {"audit": audit.model.label}
        as_task(run_step)(load_step(step), audit.workspace, audit.params, "prefect", defence or None, tags)


def outcome_of(audit: Audit) -> str:
    """What an audit found, in a few sentences."""
    clean, worst = clean_and_worst(audit)
    checks = checks_of(audit)
    failed = [check["key"] for check in checks if check["status"] == "FAIL"]
    left_out = f"{audit.n_left_out} test images left out that it was trained or validated on; " * (audit.n_left_out > 0)
    report = audit.workspace.report_html
    return (
        f"{audit.model.label} ({spoken(audit.model.target)}): {left_out}right on {with_interval(clean)} of "
        f"{audit.n_test} clean test images, on {with_interval(worst)} of {worst['n']} under the worst of all adaptive "
        f"attacks at eps {eps_text(audit.params.analyze.eps)}/255. Of {len(checks)} checks "
        f"{'none fails' if not failed else 'these fail: ' + ', '.join(failed)}. Report: {report}"
    )


def clean_and_worst(audit: Audit) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rates of the audited target with their intervals: clean, and in the worst case at ``analyze.eps``."""
    metrics = json.loads(audit.workspace.metrics.read_text(encoding="utf-8"))
    table = pd.read_csv(audit.workspace.benchmark)
    of_target = (table["target"] == audit.model.target) & (table["threat_model"] == "adaptive")
    row = table[of_target & (table["eps"] == audit.params.analyze.eps)].iloc[0]
    return metrics["clean"][audit.model.target], {str(name): value for name, value in row.items()}


def checks_of(audit: Audit) -> list[dict[str, Any]]:
    """Checks of the audited target, and those of the data."""
    checks = json.loads(audit.workspace.checks.read_text(encoding="utf-8"))
    return [check for check in checks if check["target"] in (audit.model.target, None)]


def refuse_other_images(workspace: Workspace, model: Registered, about: Bundle, data: Prepared) -> None:
    """Look whether today's images are such as the model takes.

    Raises:
        ValueError: they are not.
    """
    wants = {"classes": about.classes, "image size": about.image_size, "value range": about.value_range}
    there = {"classes": data.classes, "image size": data.pixels.shape[-1], "value range": data.value_range}
    if differing := [name for name in wants if wants[name] != there[name]]:
        told = "; ".join(f"{name} {wants[name]}, and {workspace.prepare} holds {there[name]}" for name in differing)
        raise ValueError(f"{model.label} takes {told}: prepare the data as it was trained (acquire.classes, prepare)")


def without_seen(
    table: pd.DataFrame, digests: "pd.Series[str]", seen: dict[str, set[str]], also_seen: Set[str]
) -> tuple[pd.DataFrame, int]:
    """The prepared table with what may not count turned out of its split, and how many test images that are.

    Args:
        table: of the prepared data set.
        digests: of its images.
        seen: digests of what the model was trained and validated on.
        also_seen: of test images to be left out, too.
    """
    is_test, is_validation = (table["split"] == split for split in ("test", "validation"))
    out = is_test & digests.isin(seen["train"] | seen["validation"] | set(also_seen))
    split = table["split"].mask(out | (is_validation & digests.isin(seen["train"])), SEEN)
    return table.assign(split=split), int(out.sum())


def as_the_model_knows(split: "pd.Series[str]", digests: "pd.Series[str]", trained_on: Set[str]) -> "pd.Series[str]":
    """The split with those as ``train`` that the model itself was trained on, whatever they are today."""
    return split.where(split == "test", digests.isin(trained_on).map({True: "train", False: SEEN}))


def params_of(about: Bundle, today: Params) -> Params:
    """Today's parameters, but for how the model's networks were made."""
    values = today.model_dump(mode="json", by_alias=True)
    values |= {name: about.params[name] for name in ("train_classifier", "train_autoencoder")}
    study = [name for name in today.benchmark if isinstance(today.defences[name], Autoencoder)][:1]
    if about.target == UNDEFENDED:
        values["benchmark"] = study
    else:
        values["defences"][about.target] = about.params["defence"]
        # analyses compare with the study's defence, and look through it
        values["benchmark"] = list(dict.fromkeys([*study, about.target]))
    return parse_params(values, "today's params.yaml with the networks of the model")


def link_or_copy(source: str, destination: str) -> None:
    """A hard link where the file system has them: images are many and never changed."""
    try:
        os.link(Path(source).resolve(), destination)
    except OSError:
        shutil.copyfile(source, destination)


def renewed(folder: Path) -> Path:
    """The folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def main() -> None:
    """Command line of the flow."""
    parser = argparse.ArgumentParser(prog="python -m flows.audit", description="Audit a registered model.")
    parser.add_argument("model", help="name@alias or name/version, such as ct-robustness@champion")
    print(run_flow(robustness_audit, **vars(parser.parse_args())))


if __name__ == "__main__":
    main()
