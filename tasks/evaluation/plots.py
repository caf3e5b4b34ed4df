"""Tables of the analyses as ``dvc plots`` wants them."""

from pathlib import Path

import numpy as np
import pandas as pd

from tasks import paths


def plot_tables(tables: dict[Path, pd.DataFrame], attack: str, eps: float) -> dict[Path, pd.DataFrame]:
    """The curves as ``dvc plots`` wants them: a column for what is on the x axis, and one for each curve.

    Args:
        tables: of this step.
        attack: that the curves are about.
        eps: of the curves that are not against eps.
    """
    curve = ["target", "threat_model"]
    plots = {}
    for path, metric, names in (
        (paths.HEATMAPS, "iou", curve),
        (paths.FEATURES, "probe_auroc", ["space", *curve]),
        (paths.FEATURES, "knn_auroc", ["space", *curve]),
        (paths.RESILIENCE, "mse", ["surrogate", "images", "purifier"]),
        (paths.RESILIENCE, "ssim", ["surrogate", "images", "purifier"]),
        (paths.RESILIENCE, "removed", ["surrogate", "images", "purifier"]),
    ):
        table = tables[path]
        rows = table[(table["attack"] == attack) & (table["metric"] == metric)]
        plots[paths.ANALYZE_PLOTS / f"{path.stem}_{metric}.csv"] = wide(rows, "eps", names, "value")

    def at(path: Path) -> pd.DataFrame:
        table = tables[path]
        return table[table["attack"].isin([attack, f"{attack} and detector"]) & (table["eps"] == eps)]

    detection = tables[paths.DETECTION]
    of_attack = detection[detection["attack"] == attack]
    plots[paths.ANALYZE_PLOTS / "detection_auroc.csv"] = wide(of_attack, "eps", ["detector", "surrogate"], "auroc")
    curves = ["detector", "surrogate", "attack"]
    rates = np.linspace(0, 1, 101)
    roc = {
        "/".join(map(str, names)): np.interp(rates, points["false_positive_rate"], points["true_positive_rate"])
        for names, points in at(paths.ROC).groupby(curves, sort=False)
    }
    plots[paths.ANALYZE_PLOTS / "roc.csv"] = pd.DataFrame({"false_positive_rate": rates, **roc})
    spectrum = at(paths.SPECTRUM)
    plots[paths.ANALYZE_PLOTS / "spectrum.csv"] = wide(spectrum, "frequency", ["surrogate", "of", "purifier"], "power")
    reliability = at(paths.RELIABILITY)
    plots[paths.ANALYZE_PLOTS / "reliability.csv"] = wide(reliability, "confidence", curve, "accuracy")
    return plots


def wide(table: pd.DataFrame, x: str, names: list[str], value: str) -> pd.DataFrame:
    """A row for each value of ``x``, a column for each curve, called ``a/b/c`` by what ``names`` hold, if anything."""
    # two values at one place are an error here, not a mean; an empty bin has no place
    pivoted = table.dropna(subset=[x]).pivot(index=x, columns=names, values=value).sort_index()
    pivoted.columns = pd.Index(["/".join(filter(None, map(str, column))) for column in pivoted.columns])
    return pivoted.reset_index()
