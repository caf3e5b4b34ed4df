"""The model card of a target (after Mitchell et al. 2019, arXiv 1810.03993), from the results of the pipeline."""

import html
import json
from typing import Any

import pandas as pd

from tasks.core.workspace import Workspace
from tasks.params import UNDEFENDED, Params
from tasks.records.vocabulary import display_name
from tasks.statistics.formatting import eps_text, percent, with_interval

INTENDED_USE = (
    "For research on the robustness of classifiers. Not for diagnosis: the model was never compared with a "
    "radiologist, and it is not valid for images that differ from its training images."
)


def card_of(workspace: Workspace, params: Params, target: str) -> tuple[str, str]:
    """The model card of a target in Markdown, and its summary in a few sentences.

    Raises:
        FileNotFoundError: the step ``evaluate`` has not run.
        ValueError: the target was not evaluated at ``analyze.eps``.
    """
    needed = (workspace.dataset_info, workspace.metrics, workspace.comparison, workspace.checks)
    if missing := [path for path in needed if not path.is_file()]:
        step = workspace.step_of(missing[0])
        raise FileNotFoundError(f"{missing[0]} not found. Run the step {step} first: dvc repro {step}")
    data, metrics, all_checks = (
        json.loads(path.read_text(encoding="utf-8"))
        for path in (workspace.dataset_info, workspace.metrics, workspace.checks)
    )
    comparison = pd.read_csv(workspace.comparison)
    rows = comparison[comparison["target"] == target]
    headline = rows[(rows["threat_model"] == "adaptive") & (rows["eps"] == params.analyze.eps)]
    if target not in metrics["clean"] or headline.empty:
        raise ValueError(
            f"{workspace.comparison} has no {target!r} at eps {eps_text(params.analyze.eps)}. It must be undefended or "
            f"in selected_defences of {workspace.params_file}. Add it there, then run: dvc repro evaluate"
        )
    clean, worst = metrics["clean"][target], headline.iloc[0].to_dict()
    checks = [check for check in all_checks if check["target"] in (target, None)]
    counts = ", ".join(f"{sum(check['status'] == status for check in checks)} {status}" for status in STATUSES)
    n_test = sum(data["n_images"]["test"].values())
    summary = (
        f"{title_of(target)}, trained on {escaped(data['name'])}. Clean accuracy: {with_interval(clean)} "
        f"(n = {n_test}). Worst-case accuracy under adaptive attacks at ε = {eps_text(params.analyze.eps)}/255 "
        f"({params.attack.norm}): {with_interval(worst, 'robust_accuracy')} (n = {worst['n']}). Checks: {counts}. "
        f"{INTENDED_USE}"
    )
    lines = [f"# {title_of(target)}", "", summary, "", "## Data", "", *data_lines(data)]
    lines += ["", "## Accuracy", "", *accuracy_lines(clean, n_test, rows, params.attack.norm)]
    lines += ["", "## Checks", "", f"{counts}. docs/reference/checks.md explains the checks.", ""]
    open_checks = [check for check in checks if check["status"] != "PASS"]
    lines += [f"- **{check['status']}** {check['name']}: {check['explanation']}" for check in open_checks]
    lines += ["", "## Training parameters", "", *training_lines(params, target)]
    lines += ["", "## Intended use", "", INTENDED_USE]
    return "\n".join(lines) + "\n", summary


STATUSES = ("PASS", "WARN", "FAIL")


def title_of(target: str) -> str:
    """The target as a heading: ``Classifier with the defence "jpeg"``."""
    return "Undefended classifier" if target == UNDEFENDED else f'Classifier with the defence "{display_name(target)}"'


def escaped(name: str) -> str:
    """Escape the name of a class or a data set: Markdown passes HTML through."""
    return html.escape(name, quote=False)


def data_lines(data: dict[str, Any]) -> list[str]:
    """Training and test images of the target, and the leakage between them."""
    counts = {split: sum(of_classes.values()) for split, of_classes in data["n_images"].items()}
    leakage = data["leakage"]
    kind = "phantoms (drawn images, no scans)" if data["is_phantom"] else "images"
    classes = map(escaped, data["classes"])
    return [
        f"- {escaped(data['name'])}: {data['n']} {kind} of the classes {', '.join(classes)} (positive: "
        f"{escaped(data['positive_class'])}), {data['image_size']} x {data['image_size']} grey pixels",
        f"- split {data['strategy']}: {', '.join(f'{n} {split}' for split, n in counts.items())}",
        f"- leakage: {percent(leakage['near_duplicate_in_train'])} of the test images have a near-duplicate in "
        f"training, {percent(leakage['group_in_train'])} an image of their group",
    ]


def accuracy_lines(clean: dict[str, float], n_test: int, rows: pd.DataFrame, norm: str) -> list[str]:
    """Clean accuracy, and worst-case accuracy under every threat model at every eps."""
    lines = [f"| attack | ε in 1/255 ({norm}) | images | accuracy [95 %] |", "| --- | ---: | ---: | ---: |"]
    lines.append(f"| none | 0 | {n_test} | {with_interval(clean)} |")
    lines += [
        f"| worst case, {display_name(row['threat_model'])} | {eps_text(row['eps'])} | {row['n']} | "
        f"{with_interval(row, 'robust_accuracy')} |"
        for row in rows.sort_values(["threat_model", "eps"]).to_dict("records")
    ]
    return lines


def training_lines(params: Params, target: str) -> list[str]:
    """Parameters of the networks, as in params.yaml."""
    sections: dict[str, Any] = {
        "train_classifier": params.train_classifier,
        "train_autoencoder": params.train_autoencoder,
    }
    if target != UNDEFENDED:
        sections[f"defences.{target}"] = params.defences[target]
    return [f"- `{name}`: `{json.dumps(section.model_dump(mode='json'))}`" for name, section in sections.items()]
