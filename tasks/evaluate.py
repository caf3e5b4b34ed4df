"""Step ``evaluate``: accuracies with intervals, checks, and the comparison of targets, from the records alone."""

import dataclasses
import json

import pandas as pd

from tasks.core.files import write_json, write_table
from tasks.core.workspace import Workspace
from tasks.evaluation.attack_checks import independent_surrogates
from tasks.evaluation.check_inputs import as_trained, check_inputs
from tasks.evaluation.checks import count_checks, run_checks
from tasks.evaluation.comparison import certified_accuracy_table, comparison_table, minimum_perturbation_table
from tasks.evaluation.import_checks import import_checks
from tasks.evaluation.metrics import evaluation_metrics
from tasks.evaluation.robustness import clean_predictions, confusion_table, curve_table, robustness_table, search_table
from tasks.evaluation.selection import add_configurations, configuration_rows, validation_table
from tasks.evaluation.subgroups import subgroup_checks, subgroup_table
from tasks.evaluation.tracked import track_evaluation
from tasks.evaluation.worst_case_table import worst_case_table
from tasks.outcomes.attack_outputs import (
    read_certified_radii,
    read_diagnostics,
    read_minimum_eps,
    read_operating_points,
    read_records,
    read_validation_minimum_eps,
)
from tasks.outcomes.convergence import convergence_table
from tasks.outcomes.worst_case import worst_case_outcomes
from tasks.params import SUBGROUP, UNDEFENDED, Params
from tasks.tracking import Tracker


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
    # only imported classifiers have this file
    parity = json.loads(workspace.parity.read_text(encoding="utf-8")) if workspace.parity.is_file() else None
    checks = run_checks(inputs, leakage, has_gradients=parity is None or parity["has_gradients"])
    checks += import_checks(parity) if parity else []
    split = pd.read_parquet(workspace.split)
    if any(str(column).startswith(SUBGROUP) for column in split):
        subgroups = subgroup_table(outcomes, split, params.analyze.eps, classes, positive)
        write_table(subgroups, workspace.subgroups)
        checks += subgroup_checks(subgroups)
    costs = costs.join(count_checks(checks))
    comparison = comparison_table(worst_cases, outcomes, validation, costs, params.analyze.eps)
    configurations = configuration_rows(workspace, params, split, validation)
    metrics = evaluation_metrics(table, worst_cases, validation)
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
    track_evaluation(tracker, table, comparison, checks, metrics)
    tracker.artifact(workspace.evaluate)
    add_configurations(workspace.configurations, configurations)


def read_costs(workspace: Workspace, params: Params) -> pd.DataFrame:
    """Cost of one prediction of each target, by target."""
    targets = [UNDEFENDED, *params.selected_defences]
    costs = {name: json.loads(workspace.cost(name).read_text(encoding="utf-8")) for name in targets}
    return pd.DataFrame.from_dict(costs, orient="index")


if __name__ == "__main__":
    from tasks.runner import main

    main(evaluate)
