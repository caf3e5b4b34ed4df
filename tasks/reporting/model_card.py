"""The model card of a target (after Mitchell et al. 2019, arXiv 1810.03993), from the results of the pipeline."""

import json
from typing import Any, get_args

import pandas as pd

from tasks.core.workspace import Workspace
from tasks.evaluation.check_inputs import Status
from tasks.evaluation.worst_case_table import value_at
from tasks.outcomes.names import unit_of
from tasks.params import UNDEFENDED, Params, height_and_width
from tasks.records.vocabulary import AS_TRAINED
from tasks.reporting.formats import estimate, signed_points
from tasks.reporting.templating import environment
from tasks.statistics.formatting import eps_text, sample_text
from tasks.tracking import plain_markdown


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
    card: Any = (
        environment(is_markdown=True)
        .get_template("model_card.md.j2")
        .make_module(
            {
                "target": target,
                "data": data,
                "counts": {split: sum(of_classes.values()) for split, of_classes in data["n_images"].items()},
                "size": height_and_width(data["image_size"]),
                "clean": clean,
                "worst": worst,
                "eps": eps,
                "norm": params.attack.norm,
                "unit": unit,
                "sample": sample_text(int(worst["n"]), int(worst["n_groups"]), unit),
                "status_counts": {status: statuses.count(status) for status in get_args(Status) if status in statuses},
                "open_checks": [check for check in checks if check["status"] != "PASS"],
                "points": shown_points(table, eps),
                "comparisons": comparisons_of(comparison[comparison["eps"] == eps], target),
                "training": training_parameters(params, target),
            }
        )
    )
    return plain_markdown(str(card)), plain_markdown(" ".join(card.summary().split()))


def shown_points(table: pd.DataFrame, eps: float) -> list[dict[str, pd.Series]]:
    """Rows of ``worst_case.csv`` by metric, for each shown operating point, threat model and eps.

    As trained: every threat model and eps. At the other operating points: adaptive attacks at the reported eps.

    Args:
        table: rows of the target.
        eps: ``analyze.eps``.
    """
    metrics = list(dict.fromkeys(["balanced_accuracy", "accuracy", *table["metric"]]))
    is_shown = (table["operating_point"] == AS_TRAINED) | (
        (table["threat_model"] == "adaptive") & table["eps"].isin([0.0, eps])
    )
    keys = ["operating_point", "threat_model", "eps"]
    points = []
    for _, of_point in table[is_shown].groupby(keys, sort=False):
        by_metric = {row["metric"]: row for _, row in of_point.iterrows()}
        points.append({metric: by_metric[metric] for metric in metrics})
    return points


def comparisons_of(at_eps: pd.DataFrame, target: str) -> list[dict[str, Any]]:
    """Rank of a target at each operating point, and its difference to the next target.

    Args:
        at_eps: rows of ``comparison.csv`` at the reported eps.
        target: its name.
    """
    found = []
    for _, rows in at_eps[at_eps["threat_model"] == "adaptive"].groupby("operating_point", sort=False):
        row = rows[rows["target"] == target].iloc[0]
        found.append(
            {
                **row[["operating_point", "rank", "p_value_holm"]],
                "n_targets": len(rows),
                "next_target": row["next_target"] if pd.notna(row["next_target"]) else None,
                "difference": estimate(row, signed_points, "difference"),
                "n_comparisons": int(rows["p_value"].notna().sum()),
            }
        )
    return found


def training_parameters(params: Params, target: str) -> dict[str, str]:
    """Sections of ``params.yaml`` with the parameters of the networks, as JSON."""
    sections: dict[str, Any] = {
        "train_classifier": params.train_classifier,
        "train_autoencoder": params.train_autoencoder,
    }
    if target != UNDEFENDED:
        sections[f"defences.{target}"] = params.defences[target]
    return {name: json.dumps(section.model_dump(mode="json")) for name, section in sections.items()}
