"""Step ``evaluate``: accuracies, intervals, rates and checks, from what the step ``attack`` recorded alone."""

import dataclasses
import json
from typing import Any

import pandas as pd

from tasks import paths
from tasks.evaluation.benchmark import benchmark_table, withstood, worst_case
from tasks.evaluation.checks import run_checks
from tasks.evaluation.records import CLEAN, read_records, read_smallest_eps
from tasks.evaluation.robustness import (
    POINT,
    by_eps,
    clean_rows,
    confusion_table,
    curves_of,
    robustness_table,
    smallest_eps_table,
)
from tasks.evaluation.tables import write_json, write_table
from tasks.params import Params
from tasks.paths import UNDEFENDED
from tasks.tracking import Tracker

HEADLINE = ["accuracy", "accuracy_low", "accuracy_high", "precision", "recall", "f1"]


def evaluate(params: Params, tracker: Tracker) -> None:
    """Write the tables of robustness, ``metrics.json``, the plots' CSV files and the outcome of the checks."""
    records, smallest = read_records(params.benchmark), read_smallest_eps(params.benchmark)
    info = json.loads(paths.DATASET_INFO.read_text(encoding="utf-8"))
    classes = info["classes"]
    table = robustness_table(records, classes, classes.index(info["positive_class"]))
    searched = smallest_eps_table(smallest, sorted(set(records["eps"]) - {0.0}), list(table.columns))
    table = pd.concat([table, searched], ignore_index=True)

    paths.PLOTS.mkdir()
    write_table(table, paths.ROBUSTNESS)
    write_table(confusion_table(records, classes), paths.CONFUSION)
    write_table(by_eps(table, "accuracy"), paths.PLOTS / "accuracy_by_eps.csv")
    write_table(by_eps(table[table["mean_entropy"].notna()], "mean_entropy"), paths.PLOTS / "entropy_by_eps.csv")
    clean = records[(records["attack"] == CLEAN) & (records["target"] == UNDEFENDED)]
    predictions = {"actual": clean["label"], "predicted": clean["prediction"]}
    named = pd.DataFrame({name: labels.map(dict(enumerate(classes))) for name, labels in predictions.items()})
    write_table(named, paths.PLOTS / "confusion.csv")

    outcomes = withstood(records, smallest)
    write_table(benchmark_table(records, outcomes), paths.BENCHMARK)
    metrics = headline(table, worst_case(outcomes))
    write_json(metrics, paths.METRICS)
    checks = run_checks(records, smallest, table, info["leakage"])
    write_json([dataclasses.asdict(check) for check in checks], paths.CHECKS)

    for target, values in metrics["clean"].items():
        prefix = "" if target == UNDEFENDED else f"{target}_"
        tracker.metrics({f"clean/{prefix}{name}": value for name, value in values.items()})
    for (target, threat_model, attack), points in curves_of(table).items():
        tracker.curve(
            name=f"{target} {threat_model} {attack}",
            tags={"target": target, "threat_model": threat_model, "attack": attack, "norm": points["norm"].iloc[-1]},
            points=[(round(point["eps"] * 1000), _robust(point)) for _, point in points.iterrows()],
        )
    tracker.artifact(paths.EVALUATE)


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
