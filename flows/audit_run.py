"""The parts that all audits share: their steps, their result in a few sentences, and thresholds of accuracy."""

import json
import math
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.workers import load_step
from tasks.core.workspace import Workspace
from tasks.outcomes.names import display_name
from tasks.params import Params
from tasks.records.vocabulary import AS_TRAINED
from tasks.runner import run_step
from tasks.statistics.formatting import eps_text, percent, with_interval

AUDITS = Path("audits")
"""Folder with a workspace for each audit."""
MISSED = 3
"""Exit code if an audit misses a threshold."""


@dataclass(frozen=True)
class Thresholds:
    """Smallest accuracies, also balanced, with which an audit passes; None: any accuracy."""

    clean_accuracy: float | None = None
    robust_accuracy: float | None = None
    no_failed_checks: bool = False
    """True if a failed check of the target or of the data fails the audit, too."""


def attack_steps(defences: Iterable[str], with_report: bool) -> list[tuple[str, str]]:
    """Steps from the attack on, and the defence of each; an empty name for a step without defence."""
    steps = [("attack", ""), *(("attack_defence", name) for name in defences), ("evaluate", "")]
    return steps + [("analyze", ""), ("report", "")] * with_report


def run_steps(steps: Iterable[tuple[str, str]], workspace: Workspace, params: Params, label: str) -> None:
    """Run steps in order, each as a Prefect task.

    Args:
        steps: step and defence.
        workspace: of the audit.
        params: of the audit.
        label: the tag ``audit`` of the tracking runs.
    """
    for step, defence in steps:
        name = f"{step}@{defence}" if defence else step
        as_task: Any = task(name=f"{name} of {workspace.root.name}", cache_policy=NO_CACHE)
        as_task(run_step)(load_step(step), workspace, params, "prefect", defence or None, {"audit": label})


def describe_result(workspace: Workspace, params: Params, target: str, label: str, n_test: int, note: str = "") -> str:
    """The result of an audit in a few sentences.

    Args:
        workspace: of the audit.
        params: of the audit.
        target: the audited target.
        label: name of the audited model.
        n_test: number of test images.
        note: a further sentence, with a space in front.
    """
    clean, worst = clean_and_worst(workspace, params, target)
    failed, n_checks = failed_checks(workspace, target), len(checks_of(workspace, target))
    return (
        f"{label} ({display_name(target)}): clean accuracy {with_interval(clean)} "
        f"(n = {n_test}), worst-case accuracy under adaptive attacks "
        f"{with_interval(worst, 'robust_accuracy')} (n = {worst['n']}), "
        f"balanced {with_interval(worst, 'robust_balanced_accuracy')}, "
        f"at eps {eps_text(params.analyze.eps)}/255.{note} "
        f"Failed checks: {', '.join(failed) or 'none'} (of {n_checks}). Report: {workspace.report_html}"
    )


def clean_and_worst(workspace: Workspace, params: Params, target: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Clean accuracy of a target, and its worst-case accuracy at ``analyze.eps``, with intervals."""
    metrics = json.loads(workspace.metrics.read_text(encoding="utf-8"))
    table = pd.read_csv(workspace.comparison)
    of_target = (table["target"] == target) & (table["threat_model"] == "adaptive")
    of_target &= table["operating_point"] == AS_TRAINED
    row = table[of_target & (table["eps"] == params.analyze.eps)].iloc[0]
    # with too few groups, the file has no bounds
    clean = {"accuracy_low": math.nan, "accuracy_high": math.nan} | metrics["clean"][target]
    return clean, {str(name): value for name, value in row.items()}


def checks_of(workspace: Workspace, target: str) -> list[dict[str, Any]]:
    """Checks of a target and of the data."""
    checks = json.loads(workspace.checks.read_text(encoding="utf-8"))
    return [check for check in checks if check["target"] in (target, None)]


def failed_checks(workspace: Workspace, target: str) -> dict[str, str]:
    """Explanation of each failed check of a target and of the data, by key."""
    failed = [check for check in checks_of(workspace, target) if check["status"] == "FAIL"]
    return {check["key"]: check["explanation"] for check in failed}


def missed_thresholds(workspace: Workspace, params: Params, target: str, thresholds: Thresholds) -> list[str]:
    """A sentence for each threshold that an audit misses. The estimates are compared, not their intervals.

    The balanced accuracy must reach the threshold, too: if most images are of one class, a constant prediction has a
    high accuracy. Balanced accuracies are those of the attacked images.
    """
    clean, worst = clean_and_worst(workspace, params, target)
    missed = [
        f"{name} accuracy {_share(value, smallest)} is below {percent(smallest)}."
        for name, value, smallest in (
            ("clean", clean["accuracy"], thresholds.clean_accuracy),
            ("clean balanced", worst["clean_balanced_accuracy"], thresholds.clean_accuracy),
            ("robust", worst["robust_accuracy"], thresholds.robust_accuracy),
            ("robust balanced", worst["robust_balanced_accuracy"], thresholds.robust_accuracy),
        )
        if smallest is not None and value < smallest
    ]
    if thresholds.no_failed_checks:
        failed = failed_checks(workspace, target)
        missed += [f"check {key} failed: {explanation}" for key, explanation in failed.items()]
    return missed


def _share(value: float, threshold: float) -> str:
    """An accuracy in per cent, with so many digits that it differs from the threshold."""
    return percent(value) if percent(value) != percent(threshold) else f"{100 * value:.6g} %"


def link_or_copy(source: str, destination: str) -> None:
    """Make a hard link if the file system supports it, else a copy: images are many and never changed."""
    try:
        os.link(Path(source).resolve(), destination)
    except OSError:
        shutil.copyfile(source, destination)


def renewed(folder: Path) -> Path:
    """Create a folder, or empty it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
