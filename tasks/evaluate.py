"""Step ``evaluate``: accuracies with intervals, checks, and the comparison of targets, from the records alone."""

import dataclasses
import json
import math
from typing import Any

import pandas as pd

from tasks.core.files import write_json, write_table
from tasks.core.workspace import Workspace
from tasks.evaluation.attack_checks import independent_surrogates
from tasks.evaluation.check_inputs import CheckInputs, as_trained
from tasks.evaluation.checks import CheckResult, run_checks
from tasks.evaluation.comparison import certified_accuracy_table, comparison_table, minimum_perturbation_table
from tasks.evaluation.import_checks import import_checks
from tasks.evaluation.robustness import (
    clean_rows,
    confusion_table,
    curve_table,
    curves_of,
    robustness_table,
    search_table,
)
from tasks.evaluation.selection import add_configurations, configuration_rows, validation_table
from tasks.evaluation.subgroups import subgroup_checks, subgroup_table
from tasks.evaluation.worst_case_table import worst_case_table
from tasks.params import SUBGROUP, UNDEFENDED, Params, Preprocessing, read_defence
from tasks.records.convergence import convergence_table
from tasks.records.operating_points import read_operating_points
from tasks.records.tables import (
    read_certified_radii,
    read_diagnostics,
    read_minimum_eps,
    read_records,
    read_validation_minimum_eps,
)
from tasks.records.vocabulary import AS_TRAINED, CLEAN, POINT, WORST_CASE, attack_label
from tasks.records.worst_case import worst_case_outcomes
from tasks.tracking import Tracker

CLEAN_METRICS = ["accuracy", "accuracy_low", "accuracy_high", "precision", "recall", "f1"]


def evaluate(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    """Write the robustness tables, the checks, the comparison, ``metrics.json`` and the CSV files of the plots."""
    defences = params.selected_defences
    records, minimum_eps = read_records(workspace, defences), read_minimum_eps(workspace, defences)
    info = json.loads(workspace.dataset_info.read_text(encoding="utf-8"))
    classes, grid = info["classes"], sorted(set(records["eps"]))
    positive = classes.index(info["positive_class"])
    table = robustness_table(records, classes, positive)
    searches = search_table(minimum_eps, grid[1:], list(table.columns), classes, positive)
    table = pd.concat([table, searches], ignore_index=True)
    points = read_operating_points(workspace, defences)
    outcomes = worst_case_outcomes(records, minimum_eps, points)
    worst_cases = worst_case_table(outcomes, classes, positive)
    swept = read_validation_minimum_eps(workspace, defences)
    validation = validation_table(swept, grid[1:], classes, positive)
    costs = read_costs(workspace, params)
    tables = {
        "records": records,
        "minimum_eps": as_trained(minimum_eps),
        "diagnostics": read_diagnostics(workspace, defences),
        "convergence": convergence_table(records, minimum_eps, points, outcomes),
        "worst_case": as_trained(outcomes),
    }
    leakage = json.loads(workspace.leakage.read_text(encoding="utf-8"))
    inputs = check_inputs(workspace, params, tables)
    checks = run_checks(inputs, leakage) + import_checks(workspace.parity)
    split = pd.read_parquet(workspace.split)
    if any(str(column).startswith(SUBGROUP) for column in split):
        subgroups = subgroup_table(outcomes, split, params.analyze.eps, classes, positive)
        write_table(subgroups, workspace.subgroups)
        checks += subgroup_checks(subgroups)
    costs = costs.join(count_checks(checks))
    comparison = comparison_table(worst_cases, outcomes, validation, costs, params.analyze.eps)
    configurations = configuration_rows(workspace, params, split, validation)
    metrics = headline_metrics(table, worst_cases, validation)
    # a number, so that flows.seeds has its mean
    metrics["surrogate_has_power"] = {name: int(power) for name, power in independent_surrogates(inputs[0]).items()}

    write_table(table, workspace.robustness)
    write_table(confusion_table(records, classes), workspace.confusion)
    write_table(worst_cases, workspace.worst_case)
    write_table(validation, workspace.validation_robustness)
    write_table(configurations, workspace.evaluated_configurations)
    write_table(comparison, workspace.comparison)
    write_table(minimum_perturbation_table(minimum_eps), workspace.minimum_perturbation)
    certified = read_certified_radii(workspace, defences)
    write_table(certified_accuracy_table(certified, grid), workspace.certified_accuracy)
    write_json([dataclasses.asdict(check) for check in checks], workspace.checks)
    write_json(metrics, workspace.metrics)
    workspace.plots.mkdir()
    for metric in ("accuracy", "mean_entropy"):
        write_table(curve_table(table[table[metric].notna()], metric), workspace.plots / f"{metric}_by_eps.csv")
    write_table(clean_predictions(records, classes), workspace.plots / "confusion.csv")
    track(tracker, table, comparison, checks, metrics)
    tracker.artifact(workspace.evaluate)
    add_configurations(workspace.configurations, configurations)


def read_costs(workspace: Workspace, params: Params) -> pd.DataFrame:
    """Cost of one prediction of each target, by target."""
    targets = [UNDEFENDED, *params.selected_defences]
    costs = {name: json.loads(workspace.cost(name).read_text(encoding="utf-8")) for name in targets}
    return pd.DataFrame.from_dict(costs, orient="index")


def check_inputs(workspace: Workspace, params: Params, tables: dict[str, pd.DataFrame]) -> list[CheckInputs]:
    """The inputs of the checks, one for each target; the undefended classifier is the first."""
    shortcut = pd.read_csv(workspace.shortcut_predictions).set_index("image")["correct"].astype(bool)
    inputs: list[CheckInputs] = []
    for name in (UNDEFENDED, *params.selected_defences):
        inputs.append(
            CheckInputs(
                name=name,
                is_positive_control=name == UNDEFENDED or is_broken_defence(workspace, name),
                eps=params.analyze.eps,
                shortcut_correct=shortcut,
                undefended=inputs[0] if inputs else None,
                **{key: of_all[of_all["target"] == name] for key, of_all in tables.items()},
            )
        )
    return inputs


def is_broken_defence(workspace: Workspace, defence: str) -> bool:
    """Return whether a defence is known to be broken: image processing directly before the undefended classifier."""
    settings = read_defence(workspace.defence_settings(defence))
    return isinstance(settings, Preprocessing) and settings.applied_before == "classifier"


def count_checks(checks: list[CheckResult]) -> pd.DataFrame:
    """Numbers of warnings and failures of each target: ``n_warn`` and ``n_fail``, by target."""
    statuses = pd.DataFrame([{"target": check.target, "status": check.status} for check in checks])
    counts = pd.crosstab(statuses["target"], statuses["status"]).reindex(columns=["WARN", "FAIL"], fill_value=0)
    return counts.rename(columns={"WARN": "n_warn", "FAIL": "n_fail"})


def clean_predictions(records: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """Actual and predicted class of each test image by the undefended classifier, for the confusion matrix of DVC."""
    clean = records[(records["attack"] == CLEAN) & (records["target"] == UNDEFENDED)]
    labels = {"actual": clean["label"], "prediction": clean["prediction"]}
    return pd.DataFrame({name: numbers.map(dict(enumerate(classes))) for name, numbers in labels.items()})


def headline_metrics(table: pd.DataFrame, worst_cases: pd.DataFrame, validation: pd.DataFrame) -> dict[str, Any]:
    """Metrics for every attack and eps.

    - ``clean.<target>.<metric>``, as trained
    - ``robust.<target>.<threat model>.<attack>.eps_<eps>``: accuracy, as trained. The attack ``worst_case`` is the
      strongest attack on each image. For transfer from an independent surrogate, the attack ends in the name of the
      surrogate: ``pgd_from_cnn-1``.
    - ``worst_case.<target>.<operating point>.<threat model>.eps_<eps>.<metric>``; eps 0: unchanged images
    - ``validation.<target>.eps_<eps>``: balanced accuracy on validation images under the sweep, as trained. Use it to
      choose among experiments.
    """
    clean = clean_rows(table)[CLEAN_METRICS]
    robust: dict[str, Any] = {}
    is_shown = (worst_cases["metric"] == "accuracy") & (worst_cases["operating_point"] == AS_TRAINED)
    shown = worst_cases[is_shown & (worst_cases["eps"] > 0)]
    shown = shown.rename(columns={"value": "accuracy"}).assign(attack=WORST_CASE, surrogate="")
    attacked = pd.concat([table[table["attack"] != CLEAN], shown])
    for row in attacked.to_dict("records"):
        attacks = robust.setdefault(row["target"], {}).setdefault(row["threat_model"], {})
        attacks.setdefault(attack_label(row["attack"], row["surrogate"]), {})[f"eps_{row['eps']:g}"] = round(
            row["accuracy"], 6
        )
    worst_case: dict[str, Any] = {}
    for row in worst_cases.to_dict("records"):
        of_target = worst_case.setdefault(row["target"], {}).setdefault(row["operating_point"], {})
        of_eps = of_target.setdefault(row["threat_model"], {}).setdefault(f"eps_{row['eps']:g}", {})
        of_eps[row["metric"]] = None if math.isnan(row["value"]) else round(row["value"], 6)
    validated: dict[str, Any] = {}
    for row in validation[validation["metric"] == "balanced_accuracy"].to_dict("records"):
        validated.setdefault(row["target"], {})[f"eps_{row['eps']:g}"] = round(row["value"], 6)
    return {
        "validation": validated,
        "clean": {str(target): row.dropna().round(6).to_dict() for target, row in clean.iterrows()},
        "robust": robust,
        "worst_case": worst_case,
    }


def track(
    tracker: Tracker, table: pd.DataFrame, comparison: pd.DataFrame, checks: list[CheckResult], metrics: dict[str, Any]
) -> None:
    """Log metrics, the status of the checks, and one child run for each curve, all with the same metric keys."""
    for target, values in metrics["clean"].items():
        prefix = "" if target == UNDEFENDED else f"{target}_"
        tracker.metrics({f"clean/{prefix}{name}": value for name, value in values.items()})
    tracker.tags({f"check.{check.key}{f'.{check.target}' if check.target else ''}": check.status for check in checks})
    for (target, threat_model, attack, surrogate), points in curves_of(table).items():
        tags = {"target": target, "threat_model": threat_model, "attack": attack, "norm": points["norm"].iloc[-1]}
        tags["operating_point"] = AS_TRAINED
        tracker.curve(
            name=f"{target} {threat_model} {attack_label(attack, surrogate)}",
            tags=tags | ({"surrogate": surrogate} if surrogate else {}),
            points=[(round(point["eps"] * 1000), _curve_metrics(point)) for _, point in points.iterrows()],
        )
    for names, points in comparison.groupby(["target", "operating_point", "threat_model"], sort=False):
        target, operating_point, threat_model = map(str, names)
        curve = {"target": target, "threat_model": threat_model, "attack": WORST_CASE}
        name = " ".join([*curve.values(), *([] if operating_point == AS_TRAINED else [operating_point])])
        found = {f"check.{check.key}": check.status for check in checks if check.target == curve["target"]}
        tags = {**curve, "operating_point": operating_point, "norm": str(table["norm"].iloc[0]), **found}
        tracker.curve(name, tags, _worst_case_points(points))


def _curve_metrics(point: Any) -> dict[str, float]:
    """Metrics of one point of a curve, under the keys that all curves share; NaN is left out."""
    return {
        f"robust/{name}": float(value)
        for name, value in point.items()
        if name not in {*POINT, "n", "n_clean_correct"} and not pd.isna(value)
    }


def _worst_case_points(points: pd.DataFrame) -> list[tuple[int, dict[str, float]]]:
    """Worst-case accuracy of a target at every eps; first (step 0) clean accuracy and cost."""
    bounds = [f"{metric}{bound}" for metric in ("accuracy", "balanced_accuracy") for bound in ("", "_low", "_high")]
    first = points.iloc[0]
    clean = {f"robust/{name}": float(first[f"clean_{name}"]) for name in bounds if pd.notna(first[f"clean_{name}"])}
    clean |= {f"cost/{name}": float(first[name]) for name in ("n_parameters", "multiply_adds")}
    robust = [
        (
            round(point["eps"] * 1000),
            {f"robust/{name}": float(point[f"robust_{name}"]) for name in bounds if pd.notna(point[f"robust_{name}"])},
        )
        for _, point in points.sort_values("eps").iterrows()
    ]
    return [(0, clean), *robust]


if __name__ == "__main__":
    from tasks.runner import main

    main(evaluate)
