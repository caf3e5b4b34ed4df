"""Tables of the analyses as ``dvc plots`` wants them."""

from pathlib import Path

import numpy as np
import pandas as pd

from tasks.core.workspace import Workspace


def plot_tables(
    workspace: Workspace, tables: dict[Path, pd.DataFrame], attack: str, eps: float
) -> dict[Path, pd.DataFrame]:
    """The curves as ``dvc plots`` wants them: a column for what is on the x axis, and one for each curve.

    Args:
        workspace: where inputs are read and outputs written.
        tables: of this step.
        attack: that the curves are about.
        eps: of the curves that are not against eps.
    """
    curve = ["target", "threat_model"]
    plots = {}
    for path, metric, names in (
        (workspace.heatmaps, "iou", curve),
        (workspace.features, "probe_auroc", ["space", *curve]),
        (workspace.features, "knn_auroc", ["space", *curve]),
        (workspace.resilience, "mse", ["surrogate", "images", "purifier"]),
        (workspace.resilience, "ssim", ["surrogate", "images", "purifier"]),
        (workspace.resilience, "removed", ["surrogate", "images", "purifier"]),
    ):
        table = tables[path]
        rows = table[(table["attack"] == attack) & (table["metric"] == metric)]
        plots[workspace.analyze_plots / f"{path.stem}_{metric}.csv"] = wide(rows, "eps", names, "value")

    def at(path: Path) -> pd.DataFrame:
        table = tables[path]
        return table[table["attack"].isin([attack, f"{attack} and detector"]) & (table["eps"] == eps)]

    detection = tables[workspace.detection]
    of_attack = detection[detection["attack"] == attack]
    plots[workspace.analyze_plots / "detection_auroc.csv"] = wide(of_attack, "eps", ["detector", "surrogate"], "auroc")
    curves = ["detector", "surrogate", "attack"]
    rates = np.linspace(0, 1, 101)
    roc = {
        "/".join(map(str, names)): np.interp(rates, points["false_positive_rate"], points["true_positive_rate"])
        for names, points in at(workspace.roc).groupby(curves, sort=False)
    }
    plots[workspace.analyze_plots / "roc.csv"] = pd.DataFrame({"false_positive_rate": rates, **roc})
    spectrum = at(workspace.spectrum)
    plots[workspace.analyze_plots / "spectrum.csv"] = wide(
        spectrum, "frequency", ["surrogate", "of", "purifier"], "power"
    )
    reliability = at(workspace.reliability)
    plots[workspace.analyze_plots / "reliability.csv"] = wide(reliability, "confidence", curve, "accuracy")
    return plots


def wide(table: pd.DataFrame, x: str, names: list[str], value: str) -> pd.DataFrame:
    """A row for each value of ``x``, a column for each curve, called ``a/b/c`` by what ``names`` hold, if anything."""
    # two values at one place are an error here, not a mean; an empty bin has no place
    pivoted = table.dropna(subset=[x]).pivot(index=x, columns=names, values=value).sort_index()
    pivoted.columns = pd.Index(["/".join(filter(None, map(str, column))) for column in pivoted.columns])
    return pivoted.reset_index()
