"""Step ``active_learning``: compare acquisition functions by the classifiers that are trained on their queries."""

import numpy as np
import pandas as pd

from tasks.core.files import write_table
from tasks.core.made_with import check_made_with, digest_of_file
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import as_pictures, load_prepared
from tasks.evaluation.label_efficiency import efficiency_tables
from tasks.evaluation.learning_curves import curve_table, cycle_table, plot_tables
from tasks.labelling.downsampling import downsample
from tasks.params import Params
from tasks.reporting.contact_sheet import write_contact_sheet
from tasks.tracking import Tracker

N_SHEET_IMAGES = 12
"""Maximum number of images of each query on the contact sheet."""


def active_learning(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    """Write queries and predictions with the groups of their images, learning curves and label efficiency.

    Raises:
        ValueError: the simulation was made with another split.
    """
    data = load_prepared(workspace)
    paths, groups = (data.table[name].to_numpy() for name in ("path", "group"))
    queries = pd.read_parquet(workspace.simulated_queries)
    made_with = {"split": queries.attrs.get("split")}
    present = {"split": digest_of_file(workspace.split)}
    check_made_with(workspace.simulated_queries, "simulate_labelling", made_with, workspace.split, present)
    queries.insert(4, "group", groups[queries["image"]])
    queries.insert(4, "path", paths[queries["image"]])
    predictions = pd.read_parquet(workspace.simulated_predictions)
    predictions.insert(4, "group", groups[predictions["image"]])
    cycles = cycle_table(predictions, queries, pd.read_parquet(workspace.simulated_pools), data.positive)
    curves, (efficiency, by_seed) = curve_table(cycles, predictions), efficiency_tables(cycles, predictions)

    queries.to_parquet(workspace.queries, index=False)
    predictions.to_parquet(workspace.test_predictions, index=False)
    tables = {workspace.cycles: cycles, workspace.learning_curves: curves, workspace.label_efficiency: efficiency}
    tables |= {workspace.label_efficiency_by_seed: by_seed}
    workspace.active_learning_plots.mkdir()
    for path, table in (tables | plot_tables(curves, workspace.active_learning_plots)).items():
        write_table(table, path)
    for path in tables:
        tracker.artifact(path)
    workspace.queried_images.mkdir()
    for name in params.active_learning.compared_functions:
        contact_sheet = workspace.queried_images / f"{name}.png"
        own_queries = queries[queries["acquisition"] == name]
        if is_shown := len(own_queries) > 0 and params.report.include_images:
            first_seed = own_queries[own_queries["seed"] == own_queries["seed"].min()]
            shown = [query["image"].to_numpy()[:N_SHEET_IMAGES] for _, query in first_seed.groupby("cycle")]
            factor = params.active_learning.downsampling_factor
            pictures = [as_pictures(downsample(data.pixels[rows], factor)) for rows in shown]
            write_contact_sheet(pictures, contact_sheet)
        points = curve_points(curves[curves["acquisition"] == name], efficiency[efficiency["acquisition"] == name])
        artifacts = [contact_sheet] if is_shown else []
        tracker.curve(f"active learning/{name}", {"acquisition": name}, points, artifacts)


def curve_points(curve: pd.DataFrame, efficiency: pd.DataFrame) -> list[tuple[int, dict[str, float]]]:
    """Return the metrics of each cycle for a tracking run; the label efficiency is part of the first cycle."""
    points = {
        int(str(cycle)): {
            f"learning/{metric}": value for metric, value in zip(rows["metric"], rows["value"], strict=True)
        }
        | {"learning/n_labelled": rows["n_labelled"].iloc[0]}
        for cycle, rows in curve.dropna(subset=["value"]).groupby("cycle")
    }
    known = efficiency.dropna(subset=["value"])
    points[0] |= {
        f"label_efficiency/{name}{suffix}": value
        for suffix, column in {"": "value", "_low": "low", "_high": "high"}.items()
        for name, value in zip(known["metric"], known[column], strict=True)
        if not np.isnan(value)
    }
    return sorted(points.items())


if __name__ == "__main__":
    from tasks.runner import main

    main(active_learning)
