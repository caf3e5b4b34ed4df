"""Step ``evaluate``: accuracies, intervals, rates, checks and the ranking, from what attacks recorded alone."""

import dataclasses
import json
from typing import Any

import pandas as pd

from tasks.core.files import write_json, write_table
from tasks.core.workspace import Workspace
from tasks.evaluation.checks import Check, Evidence, run_checks
from tasks.evaluation.comparison import benchmark_table, certified_table, minimal_eps_table, withstood, worst_case
from tasks.evaluation.robustness import (
    by_eps,
    clean_rows,
    confusion_table,
    curves_of,
    robustness_table,
    smallest_eps_table,
)
from tasks.params import UNDEFENDED, Params, Preprocessing
from tasks.records.tables import read_certified, read_probes, read_records, read_smallest_eps
from tasks.records.vocabulary import CLEAN, POINT
from tasks.tracking import Tracker

HEADLINE = ["accuracy", "accuracy_low", "accuracy_high", "precision", "recall", "f1"]


def evaluate(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    """Write the tables of robustness, the ranking, ``metrics.json``, plots' CSV files and the outcome of the checks."""
    records, smallest = read_records(workspace, params.benchmark), read_smallest_eps(workspace, params.benchmark)
    info = json.loads(workspace.dataset_info.read_text(encoding="utf-8"))
    classes, grid = info["classes"], sorted(set(records["eps"]))
    table = robustness_table(records, classes, classes.index(info["positive_class"]))
    searched = smallest_eps_table(smallest, grid[1:], list(table.columns))
    table = pd.concat([table, searched], ignore_index=True)

    workspace.plots.mkdir()
    write_table(table, workspace.robustness)
    write_table(confusion_table(records, classes), workspace.confusion)
    write_table(by_eps(table, "accuracy"), workspace.plots / "accuracy_by_eps.csv")
    write_table(by_eps(table[table["mean_entropy"].notna()], "mean_entropy"), workspace.plots / "entropy_by_eps.csv")
    clean = records[(records["attack"] == CLEAN) & (records["target"] == UNDEFENDED)]
    predictions = {"actual": clean["label"], "predicted": clean["prediction"]}
    named = pd.DataFrame({name: labels.map(dict(enumerate(classes))) for name, labels in predictions.items()})
    write_table(named, workspace.plots / "confusion.csv")

    outcomes = withstood(records, smallest)
    tables = {
        "records": records,
        "smallest": smallest,
        "probes": read_probes(workspace, params.benchmark),
        "table": table,
    }
    costs = read_costs(workspace, params)
    checks = run_checks(evidence_of(params, tables | {"withstood": outcomes}, costs), info["leakage"])
    write_json([dataclasses.asdict(check) for check in checks], workspace.checks)
    benchmark = benchmark_table(records, outcomes, costs.join(counts_of(checks)))
    write_table(benchmark, workspace.benchmark)
    write_table(minimal_eps_table(smallest), workspace.minimal_eps)
    write_table(certified_table(read_certified(workspace, params.benchmark), grid), workspace.certified_accuracy)
    metrics = headline(table, worst_case(outcomes))
    write_json(metrics, workspace.metrics)

    for target, values in metrics["clean"].items():
        prefix = "" if target == UNDEFENDED else f"{target}_"
        tracker.metrics({f"clean/{prefix}{name}": value for name, value in values.items()})
    tracker.tags({f"check.{check.key}{f'.{check.target}' if check.target else ''}": check.status for check in checks})
    for (target, threat_model, attack), points in curves_of(table).items():
        tracker.curve(
            name=f"{target} {threat_model} {attack}",
            tags={"target": target, "threat_model": threat_model, "attack": attack, "norm": points["norm"].iloc[-1]},
            points=[(round(point["eps"] * 1000), _robust(point)) for _, point in points.iterrows()],
        )
    for of_points, points in benchmark.groupby(["target", "threat_model"], sort=False):
        names = dict(zip(["target", "threat_model", "attack"], [*map(str, of_points), "worst"], strict=True))
        found = {f"check.{check.key}": check.status for check in checks if check.target == names["target"]}
        tags = {**names, "norm": str(table["norm"].iloc[0]), **found}
        tracker.curve(" ".join(names.values()), tags, worst_points(points))
    tracker.artifact(workspace.evaluate)


def read_costs(workspace: Workspace, params: Params) -> pd.DataFrame:
    """What a prediction of each target takes, by target."""
    targets = [UNDEFENDED, *params.benchmark]
    costs = {name: json.loads(workspace.cost(name).read_text(encoding="utf-8")) for name in targets}
    return pd.DataFrame.from_dict(costs, orient="index")


def evidence_of(params: Params, tables: dict[str, pd.DataFrame], costs: pd.DataFrame) -> list[Evidence]:
    """What the checks look at, of each target; image processing is known to be no defence."""
    controls = {UNDEFENDED} | {name for name, row in params.defences.items() if isinstance(row, Preprocessing)}
    outcomes = tables["withstood"]
    return [
        Evidence(
            name=name,
            is_control=name in controls,
            n_looks=int(costs["looks"][name]),
            bare_withstood=outcomes[outcomes["target"] == UNDEFENDED],
            **{key: of_all[of_all["target"] == name] for key, of_all in tables.items()},
        )
        for name in (UNDEFENDED, *params.benchmark)
    ]


def counts_of(checks: list[Check]) -> pd.DataFrame:
    """How many checks of each target warn and fail: ``n_warn`` and ``n_fail``, by target."""
    statuses = pd.DataFrame([{"target": check.target, "status": check.status} for check in checks])
    counts = pd.crosstab(statuses["target"], statuses["status"]).reindex(columns=["WARN", "FAIL"], fill_value=0)
    return counts.rename(columns={"WARN": "n_warn", "FAIL": "n_fail"})


def headline(table: pd.DataFrame, worst: pd.DataFrame) -> dict[str, Any]:
    """What ``dvc metrics`` compares.

    ``clean.<target>.<metric>``, and the accuracy as ``robust.<target>.<threat model>.<attack>.eps_<eps>``, where the
    attack ``worst`` is for each image the one that breaks it.
    """
    clean = clean_rows(table)[HEADLINE]
    robust: dict[str, Any] = {}
    for row in pd.concat([table[table["attack"] != CLEAN], worst.assign(attack="worst")]).to_dict("records"):
        attacks = robust.setdefault(row["target"], {}).setdefault(row["threat_model"], {})
        attacks.setdefault(row["attack"], {})[f"eps_{row['eps']:g}"] = round(row["accuracy"], 6)
    return {
        "clean": {str(target): row.round(6).to_dict() for target, row in clean.iterrows()},
        "robust": robust,
    }


def worst_points(points: pd.DataFrame) -> list[tuple[int, dict[str, float]]]:
    """A target's accuracy in the worst case at every eps for the tracker, clean images and what it costs first."""
    first = points.iloc[0]
    clean = {f"robust/accuracy{bound}": float(first[f"clean_accuracy{bound}"]) for bound in ("", "_low", "_high")}
    clean |= {f"cost/{name}": float(first[name]) for name in ("parameters", "multiply_adds")}
    return [(0, clean)] + [
        (
            round(point["eps"] * 1000),
            {f"robust/accuracy{bound}": float(point[f"accuracy{bound}"]) for bound in ("", "_low", "_high")},
        )
        for _, point in points.sort_values("eps").iterrows()
    ]


def _robust(point: Any) -> dict[str, float]:
    """Metrics of one point of a curve, under the keys that all curves share; what is not defined there is left out."""
    return {
        f"robust/{name}": float(value)
        for name, value in point.items()
        if name not in {*POINT, "n", "n_clean_correct"} and not pd.isna(value)
    }


if __name__ == "__main__":
    from tasks.runner import main

    main(evaluate)
