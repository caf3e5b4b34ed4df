"""The model card of a target, from what the pipeline found (after Mitchell et al. 2019, arXiv 1810.03993)."""

import html
import json
from typing import Any

import pandas as pd

from tasks.core.workspace import Workspace
from tasks.params import UNDEFENDED, Params
from tasks.records.vocabulary import spoken
from tasks.statistics.formatting import eps_text, percent, with_interval

INTENDED_USE = (
    "For research on the robustness of classifiers. Not for diagnosis: it was never compared with a radiologist, and "
    "says nothing of images that are unlike its training images."
)


def card_of(workspace: Workspace, params: Params, target: str) -> tuple[str, str]:
    """The card of a target in Markdown, and what it comes to, in a few sentences.

    Raises:
        FileNotFoundError: the step ``evaluate`` has not run.
        ValueError: it did not evaluate this target at ``analyze.eps``.
    """
    needed = (workspace.dataset_info, workspace.metrics, workspace.benchmark, workspace.checks)
    if missing := [path for path in needed if not path.is_file()]:
        step = workspace.step_of(missing[0])
        raise FileNotFoundError(f"{missing[0]} not found: run the step {step} first (dvc repro {step})")
    data, metrics, all_checks = (
        json.loads(path.read_text(encoding="utf-8"))
        for path in (workspace.dataset_info, workspace.metrics, workspace.checks)
    )
    benchmark = pd.read_csv(workspace.benchmark)
    rows = benchmark[benchmark["target"] == target]
    headline = rows[(rows["threat_model"] == "adaptive") & (rows["eps"] == params.analyze.eps)]
    if target not in metrics["clean"] or headline.empty:
        raise ValueError(
            f"{workspace.benchmark} has no {target!r} at eps {eps_text(params.analyze.eps)}: name it in benchmark of "
            f"{workspace.params_file}, and run the step evaluate (dvc repro evaluate)"
        )
    clean, worst = metrics["clean"][target], headline.iloc[0].to_dict()
    checks = [check for check in all_checks if check["target"] in (target, None)]
    counts = ", ".join(f"{sum(check['status'] == status for check in checks)} {status}" for status in STATUSES)
    n_test = sum(data["n_images"]["test"].values())
    summary = (
        f"{title_of(target)}, trained on {shown(data['name'])}. Right on {with_interval(clean)} of {n_test} clean test "
        f"images, and on {with_interval(worst)} of {worst['n']} under the worst of all adaptive attacks at "
        f"ε = {eps_text(params.analyze.eps)}/255 ({params.attack.norm}). Checks: {counts}. {INTENDED_USE}"
    )
    lines = [f"# {title_of(target)}", "", summary, "", "## Data", "", *data_lines(data)]
    lines += ["", "## Accuracy", "", *accuracy_lines(clean, n_test, rows, params.attack.norm)]
    lines += ["", "## Checks", "", f"{counts}. They are explained in docs/checks.md; what does not pass:", ""]
    odd = [check for check in checks if check["status"] != "PASS"]
    lines += [f"- **{check['status']}** {check['name']}: {check['explanation']}" for check in odd] or ["- nothing"]
    lines += ["", "## How it was made", "", *training_lines(params, target)]
    lines += ["", "## Intended use", "", INTENDED_USE]
    return "\n".join(lines) + "\n", summary


STATUSES = ("PASS", "WARN", "FAIL")


def title_of(target: str) -> str:
    """The target as a heading: ``Classifier with the defence "jpeg"``."""
    return "The bare classifier" if target == UNDEFENDED else f'Classifier with the defence "{spoken(target)}"'


def shown(name: str) -> str:
    """The name of a class or a data set as a page shows it: Markdown lets HTML through."""
    return html.escape(name, quote=False)


def data_lines(data: dict[str, Any]) -> list[str]:
    """What the target was trained and tested on, and what of the one is in the other."""
    counts = {split: sum(of_classes.values()) for split, of_classes in data["n_images"].items()}
    leakage = data["leakage"]
    kind, classes = "drawn phantoms, no scans" if data["is_phantom"] else "images", map(shown, data["classes"])
    return [
        f"- {shown(data['name'])}: {data['n']} {kind} of the classes {', '.join(classes)} (positive: "
        f"{shown(data['positive_class'])}), {data['image_size']} x {data['image_size']} grey pixels",
        f"- split {data['strategy']}: {', '.join(f'{n} {split}' for split, n in counts.items())}",
        f"- leakage: {percent(leakage['near_duplicate_in_train'])} of the test images have a near-duplicate in "
        f"training, {percent(leakage['group_in_train'])} an image of their group",
    ]


def accuracy_lines(clean: dict[str, float], n_test: int, rows: pd.DataFrame, norm: str) -> list[str]:
    """Clean accuracy, and that in the worst case for each image under every threat model at every eps."""
    lines = [f"| attack | ε in 1/255 ({norm}) | images | accuracy [95 %] |", "| --- | ---: | ---: | ---: |"]
    lines.append(f"| none | 0 | {n_test} | {with_interval(clean)} |")
    lines += [
        f"| worst of all, {spoken(row['threat_model'])} | {eps_text(row['eps'])} | {row['n']} | {with_interval(row)} |"
        for row in rows.sort_values(["threat_model", "eps"]).to_dict("records")
    ]
    return lines


def training_lines(params: Params, target: str) -> list[str]:
    """The parameters of its networks, as in params.yaml."""
    made: dict[str, Any] = {"train_classifier": params.train_classifier, "train_autoencoder": params.train_autoencoder}
    if target != UNDEFENDED:
        made[f"defences.{target}"] = params.defences[target]
    return [f"- `{name}`: `{json.dumps(section.model_dump(mode='json'))}`" for name, section in made.items()]
