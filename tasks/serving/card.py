"""The model card of a target (after Mitchell et al. 2019, arXiv 1810.03993), from the results of the pipeline."""

import html
import json
from typing import Any, get_args

import pandas as pd

from tasks.core.workspace import Workspace
from tasks.evaluation.check_inputs import Status
from tasks.evaluation.worst_case_table import value_at
from tasks.outcomes.names import display_name, unit_of
from tasks.params import UNDEFENDED, Params, height_and_width
from tasks.records.vocabulary import AS_TRAINED
from tasks.statistics.formatting import TOO_FEW_GROUPS, Row, eps_text, percent, rate_text, sample_text
from tasks.tracking import plain_markdown

INTENDED_USE = (
    "For research on the robustness of classifiers. Not for diagnosis: the model was never compared with a "
    "radiologist, and its predictions are not valid for images that differ from its training images."
)


def card_of(workspace: Workspace, params: Params, target: str) -> tuple[str, str]:
    """The model card of a target in Markdown, and its summary in a few sentences.

    The summary is about the target as trained, since this is how it is served.

    Raises:
        FileNotFoundError: the step ``evaluate`` has not run.
        ValueError: the target was not evaluated at ``analyze.eps``.
    """
    needed = (workspace.dataset_info, workspace.worst_case, workspace.comparison, workspace.checks)
    if missing := [path for path in needed if not path.is_file()]:
        step = workspace.step_of(missing[0])
        raise FileNotFoundError(f"{missing[0]} not found. Run the step {step} first: dvc repro {step}")
    data, all_checks = (
        json.loads(path.read_text(encoding="utf-8")) for path in (workspace.dataset_info, workspace.checks)
    )
    table, comparison = pd.read_csv(workspace.worst_case), pd.read_csv(workspace.comparison)
    table = table[table["target"] == target]
    eps, unit = params.analyze.eps, unit_of(data)
    if not ((table["threat_model"] == "adaptive") & (table["eps"] == eps)).any():
        raise ValueError(
            f"{workspace.worst_case} has no {target!r} at eps {eps_text(eps)}. It must be undefended or "
            f"in selected_defences of {workspace.params_file}. Add it there, then run: dvc repro evaluate"
        )
    point = {"operating_point": AS_TRAINED, "threat_model": "adaptive"}
    clean, worst = (value_at(table, "balanced_accuracy", **point, eps=value) for value in (0.0, eps))
    checks = [check for check in all_checks if check["target"] in (target, None)]
    statuses = [check["status"] for check in checks]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in STATUSES if status in statuses)
    summary = (
        f"{title_of(target)}, trained on {escaped(data['name'])}. As trained, balanced accuracy is {rate_of(clean)} "
        f"on clean images and {rate_of(worst)} in the worst case of all attacks at ε = {eps_text(eps)}/255 "
        f"({params.attack.norm}), {sample_text(int(worst['n']), int(worst['n_groups']), unit)}, 95 % intervals by "
        f"{unit}. {UPPER_BOUND} Checks: {counts}. {INTENDED_USE}"
    )
    lines = [f"# {title_of(target)}", "", summary, "", "## Data", "", *data_lines(data)]
    lines += ["", "## Accuracy", "", *accuracy_lines(table, eps, params.attack.norm, unit)]
    lines += ["", "## Comparison", "", *comparison_lines(comparison[comparison["eps"] == eps], target, eps)]
    lines += ["", "## Checks", "", f"{counts}. docs/reference/checks.md explains the checks.", ""]
    open_checks = [check for check in checks if check["status"] != "PASS"]
    lines += [f"- **{check['status']}** {check['name']}: {check['explanation']}" for check in open_checks]
    lines += ["", "## Training parameters", "", *training_lines(params, target)]
    lines += ["", "## Intended use", "", INTENDED_USE]
    return plain_markdown("\n".join(lines) + "\n"), plain_markdown(summary)


STATUSES: tuple[str, ...] = get_args(Status)
UPPER_BOUND = "The worst case is an upper bound on robustness, since a stronger attack can lower it."


def title_of(target: str) -> str:
    """The target as a heading: ``Classifier with the defence "jpeg"``."""
    return "Undefended classifier" if target == UNDEFENDED else f'Classifier with the defence "{display_name(target)}"'


def escaped(name: str) -> str:
    """Escape the name of a class or a data set: Markdown passes HTML through."""
    return html.escape(name, quote=False)


def size_text(data: dict[str, Any]) -> str:
    """Height, width and channels of the prepared images."""
    height, width = height_and_width(data["image_size"])
    return f"{height} x {width} {'colour' if data.get('channels') == 3 else 'grey'} pixels"


def data_lines(data: dict[str, Any]) -> list[str]:
    """Training and test images of the target, and the leakage between them."""
    counts = {split: sum(of_classes.values()) for split, of_classes in data["n_images"].items()}
    leakage, unit = data["leakage"], unit_of(data)
    kind = "phantoms (drawn images, no scans)" if data["is_phantom"] else "images"
    classes = map(escaped, data["classes"])
    by_patient = "; without patient ids, the leakage by patient is unverified"
    if unit == "patient":
        by_patient = f", {percent(leakage['patient_in_train'])} an image of their patient"
    return [
        f"- {escaped(data['name'])}: {data['n']} {kind} of the classes {', '.join(classes)} (positive: "
        f"{escaped(data['positive_class'])}), {size_text(data)}",
        f"- split {data['strategy']}: {', '.join(f'{n} {split}' for split, n in counts.items())}",
        f"- leakage: {percent(leakage['near_duplicate_in_train'])} of the test images have a near-duplicate in "
        f"training, {percent(leakage['group_in_train'])} an image of their group{by_patient}",
    ]


def accuracy_lines(table: pd.DataFrame, eps: float, norm: str, unit: str) -> list[str]:
    """Balanced accuracy, accuracy and recalls in the worst case: a table of Markdown.

    As trained: every threat model and eps. At the other operating points: adaptive attacks at the reported eps.

    Args:
        table: rows of ``worst_case.csv`` of the target.
        eps: ``analyze.eps``.
        norm: of the attacks.
        unit: of the intervals.
    """
    metrics = list(dict.fromkeys(["balanced_accuracy", "accuracy", *table["metric"]]))
    is_shown = (table["operating_point"] == AS_TRAINED) | (
        (table["threat_model"] == "adaptive") & table["eps"].isin([0.0, eps])
    )
    lines = [
        f"Worst case of all attacks of a threat model, with 95 % intervals by {unit}. ε = 0: unchanged images. "
        "Operating points other than as trained are biases on the logits, chosen on validation images.",
        "",
        f"| operating point | threat model | ε in 1/255 ({norm}) | images | {unit}s | "
        f"{' | '.join(escaped(display_name(metric)) for metric in metrics)} |",
        f"| --- | --- | ---: | ---: | ---: |{' ---: |' * len(metrics)}",
    ]
    keys = ["operating_point", "threat_model", "eps"]
    for names, of_point in table[is_shown].groupby(keys, sort=False):
        operating_point, threat_model, value = str(names[0]), str(names[1]), float(str(names[2]))
        by_metric = of_point.set_index("metric")
        counts = by_metric.loc["accuracy"]
        rates = " | ".join(rate_of(by_metric.loc[metric]) for metric in metrics)
        lines.append(
            f"| {display_name(operating_point)} | {display_name(threat_model)} | {eps_text(value)} | {counts['n']:.0f} "
            f"| {counts['n_groups']:.0f} | {rates} |"
        )
    return lines


def comparison_lines(at_eps: pd.DataFrame, target: str, eps: float) -> list[str]:
    """Rank of a target at each operating point, and its comparison with the next target.

    Args:
        at_eps: rows of ``comparison.csv`` at the reported eps.
        target: its name.
        eps: ``analyze.eps``.
    """
    lines = []
    for operating_point, rows in at_eps[at_eps["threat_model"] == "adaptive"].groupby("operating_point", sort=False):
        row = rows[rows["target"] == target].iloc[0]
        line = (
            f"- {display_name(str(operating_point))}: rank {row['rank']} of {len(rows)} targets by balanced accuracy "
            f"on attacked validation images at ε = {eps_text(eps)}/255"
        )
        if pd.notna(row["next_target"]):
            difference = [100 * row[f"difference{end}"] for end in ("", "_low", "_high")]
            n_comparisons = int(rows["p_value"].notna().sum())
            line += f"; in the worst case on test images, {difference[0]:+.1f} points compared with the next target, "
            line += f"{display_name(row['next_target'])}, "
            line += (
                TOO_FEW_GROUPS
                if pd.isna(row["difference_low"])
                else f"[{difference[1]:+.1f}, {difference[2]:+.1f}], p = {row['p_value_holm']:.3g} after Holm's "
                f"correction for {n_comparisons} comparison{'s' * (n_comparisons != 1)} of neighbours"
            )
        lines.append(line)
    return lines


def rate_of(row: Row) -> str:
    """The rate of a row of ``worst_case.csv`` with its interval."""
    return rate_text(row["value"], row["low"], row["high"])


def training_lines(params: Params, target: str) -> list[str]:
    """Parameters of the networks, as in params.yaml."""
    sections: dict[str, Any] = {
        "train_classifier": params.train_classifier,
        "train_autoencoder": params.train_autoencoder,
    }
    if target != UNDEFENDED:
        sections[f"defences.{target}"] = params.defences[target]
    return [f"- `{name}`: `{json.dumps(section.model_dump(mode='json'))}`" for name, section in sections.items()]
