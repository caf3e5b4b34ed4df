"""Step ``analyze``: tables of all analyses with 95 % intervals, example images, and the outcome of each claim."""

from dataclasses import asdict
from functools import partial

import numpy as np
import pandas as pd

from tasks.analysis.best_detector import best_detector_table
from tasks.analysis.claims import judge_claims
from tasks.analysis.classification import classification_table, entropy_table, reliability_table, robustness_area
from tasks.analysis.context import AnalysisContext, build_context
from tasks.analysis.detector_evasion import evasion_tables
from tasks.analysis.dvc_plots import dvc_plot_tables
from tasks.analysis.examples import example_arrays
from tasks.analysis.parallel import collect_in_threads
from tasks.analysis.perturbed import clean_tables, perturbed_tables
from tasks.analysis.tables import join_parts
from tasks.core.files import write_json, write_table
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import load_prepared
from tasks.outcomes.attack_outputs import (
    read_minimum_eps,
    read_operating_points,
    read_records,
    without_independent_surrogates,
    without_reference,
)
from tasks.outcomes.convergence import convergence_table, unconverged_eps
from tasks.outcomes.worst_case import worst_case_outcomes
from tasks.params import UNDEFENDED, Params, read_defence
from tasks.tracking import Tracker


def analyze(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    """Analyse the records and the saved adversarial images of the attack steps.

    Writes one tidy table for each analysis, example images and the outcome of each claim of the study. Estimates have
    95 % intervals. Values that are not defined are NaN.
    """
    defences, data = params.selected_defences, load_prepared(workspace)
    all_records = read_records(workspace, defences)
    points = read_operating_points(workspace, defences)
    minimum_eps = read_minimum_eps(workspace, defences)
    # the study's claims about transfer are about the undefended classifier as surrogate
    worst = worst_case_outcomes(all_records, minimum_eps, points, transfer_from_independent=False)
    records = without_independent_surrogates(without_reference(all_records))
    tracker.dataset(workspace.prepare, "prepared", "analysis")
    context = build_context(workspace, params, data, records)
    tables = {
        "robustness_area": robustness_area(records, context.jackknife),
        "classification": classification_table(records, data.positive, context.jackknife),
        "reliability": reliability_table(records, context.jackknife),
        "entropy": entropy_table(records),
        **image_tables(context, params),
    }
    embeddings, detector_scores = (tables.pop(name) for name in ("embeddings", "detector_scores"))
    best = best_detector_table(detector_scores, context.analysed_attack, context.seed)
    tables["detection"] = pd.concat([tables["detection"], best], ignore_index=True)
    plots = dvc_plot_tables(tables, context.analysed_attack, params.analyze.eps)
    settings = {name: read_defence(workspace.defence_settings(name)) for name in defences}
    unconverged = unconverged_eps(convergence_table(all_records, minimum_eps, points, worst))
    measured = records, worst, tables["features"], tables["detection"]
    claims = judge_claims(*measured, settings, params.analyze.eps, params.analyze.claim_bounds, unconverged)

    workspace.analyze_plots.mkdir()
    for name, table in tables.items():
        write_table(table, workspace.analyze / f"{name}.csv")
    for name, table in plots.items():
        write_table(table, workspace.analyze_plots / f"{name}.csv")
    embeddings.to_parquet(workspace.embeddings, index=False)
    detector_scores.to_parquet(workspace.detector_scores, index=False)
    if params.report.include_images:
        workspace.examples.parent.mkdir()
        np.savez_compressed(workspace.examples, allow_pickle=False, **example_arrays(context))
    write_json([asdict(claim) for claim in claims], workspace.claims)

    area = tables["robustness_area"]
    curves = zip(area["target"], area["threat_model"], area["attack"], area["value"], strict=True)
    tracker.metrics(
        {f"robustness_area/{target}_{threat_model}_{attack}": value for target, threat_model, attack, value in curves}
    )
    tracker.tags({f"claim.{claim.key}": claim.result for claim in claims})
    tracker.artifact(workspace.analyze)


def image_tables(context: AnalysisContext, params: Params) -> dict[str, pd.DataFrame]:
    """Tables about the clean images, every set of adversarial images, and every evaded detector, by name."""
    work = {
        f"{attack} on {surrogate} at eps {eps:g}": partial(perturbed_tables, context, surrogate, attack, eps)
        for surrogate in [UNDEFENDED, *context.extractor.purifiers]
        for attack in params.attack.saved_attacks
        for eps in params.attack.analysed_eps
    } | {
        f"evasion of {detector} at eps {eps:g}": partial(evasion_tables, context, detector, eps)
        for eps in params.analyze.detector_evasion.eps
        for detector in context.detectors
    }
    return join_parts([*clean_tables(context), *collect_in_threads(work, params.compute.threads)])


if __name__ == "__main__":
    from tasks.runner import main

    main(analyze)
