"""Tables for ``dvc plots`` with the template ``curves``: one row for each point, and a column that names the curve."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from tasks.outcomes.names import DETECTOR_ATTACKS


def dvc_plot_tables(tables: Mapping[str, pd.DataFrame], attack: str, eps: float) -> dict[str, pd.DataFrame]:
    """Curves of the analyses by the name of their plot.

    Args:
        tables: tables of the step ``analyze`` by name.
        attack: attack of the curves.
        eps: eps of the curves that do not have eps on the x axis.
    """
    curve = ["target", "threat_model"]
    images = ["surrogate", "image_kind", "purifier"]
    plots = {}
    for name, metric, columns in (
        ("heatmaps", "iou", curve),
        ("features", "linear_probe_auroc", ["feature_space", *curve]),
        ("features", "knn_auroc", ["feature_space", *curve]),
        ("resilience", "mse", images),
        ("resilience", "ssim", images),
        ("resilience", "removed_energy_fraction", images),
    ):
        table = tables[name]
        rows = table[(table["attack"] == attack) & (table["metric"] == metric)]
        plots[f"{name}_{metric}"] = curve_rows(rows, "eps", columns, "value")

    def at_eps(name: str) -> pd.DataFrame:
        table = tables[name]
        return table[table["attack"].isin([attack, *DETECTOR_ATTACKS]) & (table["eps"] == eps)]

    detection = tables["detection"]
    of_attack = detection[detection["attack"] == attack]
    plots["detection_auroc"] = curve_rows(of_attack, "eps", ["detector", "surrogate"], "auroc")
    plots["roc"] = curve_rows(
        resample_roc(at_eps("roc")), "false_positive_rate", ["detector", "surrogate", "attack"], "true_positive_rate"
    )
    plots["spectrum"] = curve_rows(at_eps("spectrum"), "frequency", ["surrogate", "signal", "purifier"], "power")
    plots["reliability"] = curve_rows(at_eps("reliability"), "confidence", curve, "accuracy")
    return plots


def curve_rows(table: pd.DataFrame, x: str, names: list[str], value: str) -> pd.DataFrame:
    """Points of all curves: ``curve``, the x value under its own name, and ``value``, in the order of the table.

    Rows without an x value or a value are dropped. The name of a curve joins the non-empty values of the columns
    ``names`` with a slash.
    """
    rows = table.dropna(subset=[x, value])
    curve = ["/".join(filter(None, map(str, parts))) for parts in rows[names].itertuples(index=False)]
    return pd.DataFrame({"curve": curve, x: rows[x].to_numpy(), "value": rows[value].to_numpy()})


def resample_roc(roc: pd.DataFrame) -> pd.DataFrame:
    """ROC curves at 101 equally spaced false-positive rates, so that two versions have the same x values."""
    rates = np.linspace(0, 1, 101)
    parts = [
        pd.DataFrame(
            {
                "false_positive_rate": rates,
                "true_positive_rate": np.interp(rates, points["false_positive_rate"], points["true_positive_rate"]),
                "detector": detector,
                "surrogate": surrogate,
                "attack": attack,
            }
        )
        for (detector, surrogate, attack), points in roc.groupby(["detector", "surrogate", "attack"], sort=False)
    ]
    return pd.concat(parts, ignore_index=True) if parts else roc
