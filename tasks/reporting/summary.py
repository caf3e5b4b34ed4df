"""The small files of the report that are kept in git: headline metrics and the tables of ``dvc plots``."""

import shutil

import pandas as pd

from tasks.core.files import write_json, write_table
from tasks.core.workspace import Workspace
from tasks.reporting.headline import Headline
from tasks.reporting.results import Results


def write_summary(workspace: Workspace, results: Results, headline: Headline) -> None:
    """Replace the folder ``data/summary``."""
    shutil.rmtree(workspace.summary, ignore_errors=True)
    workspace.summary_plots.mkdir(parents=True)
    metrics = {
        "balanced_accuracy": balanced_accuracies(results, headline),
        "eps": headline.eps,
        "operating_point": headline.operating_point,
    }
    write_json(metrics, workspace.summary_metrics)
    for folder in (workspace.plots, workspace.analyze_plots, workspace.active_learning_plots):
        for path in sorted(folder.glob("*.csv")):
            shutil.copyfile(path, workspace.summary_plots / path.name)
    histories = {"classifier": results.classifier_history, "autoencoder": results.autoencoder_history}
    for metric in ("loss", "accuracy"):
        table = training_curves(histories | results.defence_histories, metric)
        write_table(table, workspace.summary_plots / f"training_{metric}.csv")


def balanced_accuracies(results: Results, headline: Headline) -> dict[str, dict[str, float]]:
    """Balanced accuracies of each target at the eps of the headline.

    ``clean``, and the worst cases ``transfer`` and ``adaptive``: attacked test images, at the operating point of the
    headline. ``validation_as_trained``: validation images under the sweep, as trained. Undefined values are left out.
    """
    rows = results.worst_case
    rows = rows[(rows["metric"] == "balanced_accuracy") & (rows["operating_point"] == headline.operating_point)]
    clean = rows[(rows["eps"] == 0) & (rows["threat_model"] == "adaptive")].assign(threat_model="clean")
    attacked = rows[(rows["eps"] == headline.eps) & rows["threat_model"].isin(["transfer", "adaptive"])]
    found: dict[str, dict[str, float]] = {target: {} for target in headline.targets}
    for row in pd.concat([clean, attacked]).dropna(subset=["value"]).to_dict("records"):
        found[row["target"]][row["threat_model"]] = round(row["value"], 6)
    for target, by_eps in results.metrics["validation"].items():
        found[target]["validation_as_trained"] = by_eps[f"eps_{headline.eps:g}"]
    return found


def training_curves(histories: dict[str, pd.DataFrame], metric: str) -> pd.DataFrame:
    """Points of all trainings: ``curve`` (``<network>/train`` or ``<network>/validation``), ``epoch`` and ``value``.

    Args:
        histories: training histories by network; those without the metric have no curve.
        metric: ``loss`` or ``accuracy``.
    """
    parts = [
        history[["epoch", column]].set_axis(["epoch", "value"], axis="columns").assign(curve=f"{network}/{images}")
        for network, history in histories.items()
        for images in ("train", "validation")
        if (column := f"{images}_{metric}") in history
    ]
    return pd.concat(parts)[["curve", "epoch", "value"]]
