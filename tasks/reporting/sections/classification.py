"""Classification metrics, calibration, and entropy of correct and incorrect predictions."""

import pandas as pd

from tasks.outcomes.names import display_name
from tasks.params import UNDEFENDED
from tasks.records.vocabulary import CLEAN
from tasks.reporting.drawings import Drawing, lines_drawing
from tasks.reporting.formats import estimate, fixed, number, plain
from tasks.reporting.headline import Headline
from tasks.reporting.panels import ATTACKED_STYLE, CLEAN_STYLE, Line, Panel
from tasks.reporting.results import Results
from tasks.reporting.section import Point, Section, point_of
from tasks.reporting.tables import CURVE_KEYS, at_point, metrics_table
from tasks.statistics.formatting import percent

METRICS = {
    "accuracy": ("accuracy", percent),
    "balanced_accuracy": ("balanced accuracy", percent),
    "top1_error": ("top-1 error", percent),
    "precision": ("precision", percent),
    "recall": ("recall", percent),
    "f1": ("F1", percent),
    "auroc": ("AUROC", fixed(3)),
    "loss": ("loss (nats)", plain),
    "ece": ("ECE", percent),
    "brier": ("Brier score", fixed(3)),
    "mean_entropy": ("entropy (nats)", fixed(3)),
}


def classification_section(results: Results, headline: Headline) -> Section:
    """Return tables of metrics, reliability curves, and histograms of the entropy."""
    key, title = "classification", "Classification metrics and calibration"
    table = results.classification
    point = point_of(table, headline)
    if point is None:
        return Section(key, title, {"point": None})
    ece = table[(table["target"] == UNDEFENDED) & (table["metric"] == "ece")]
    values = {
        "point": point,
        "positive_class": results.data.classes[results.data.positive],
        "n_classes": len(results.data.classes),
        "clean_ece": estimate(ece[ece["attack"] == CLEAN].iloc[0], percent),
        "attacked_ece": estimate(point.of(ece).iloc[0], percent),
        "table": metrics_table(at_point(table, point), CURVE_KEYS, METRICS),
        "all_rows": metrics_table(table, CURVE_KEYS, METRICS),
    }
    drawings = [_reliability(results.reliability, table, point), _entropies(results.entropy, point)]
    return Section(key, title, values, drawings)


def _pairs(table: pd.DataFrame, point: Point) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Return the rows of clean images and of the adaptive attack, by target."""
    clean, attacked = table[table["attack"] == CLEAN], point.of(table[table["threat_model"] == "adaptive"])
    return {
        str(target): (clean[clean["target"] == target], rows) for target, rows in attacked.groupby("target", sort=False)
    }


def _reliability(table: pd.DataFrame, metrics: pd.DataFrame, point: Point) -> Drawing:
    eces = _pairs(metrics[metrics["metric"] == "ece"], point)
    panels = []
    for target, pair in _pairs(table, point).items():
        lines = []
        for name, rows, style in zip(("clean", "attacked"), pair, (CLEAN_STYLE, ATTACKED_STYLE), strict=True):
            rows = rows[rows["n"] > 0]
            x, y, low, high = (rows[column].to_numpy(float) for column in ("confidence", "accuracy", "low", "high"))
            lines.append(Line(name, x, y, style, low=low, high=high))
        clean, attacked = (number(rows["value"].iloc[0], percent) for rows in eces[target])
        title = f"{display_name(target)}\nECE {clean} clean, {attacked} attacked"
        panels.append(
            Panel("confidence", "accuracy", lines, title, "share", "share", y_range=(-0.02, 1.02), diagonal=True)
        )
    return lines_drawing("reliability", panels)


def _entropies(table: pd.DataFrame, point: Point) -> Drawing:
    panels = []
    for target, (clean, attacked) in _pairs(table, point).items():
        for name, unsorted in (("clean", clean), ("attacked", attacked)):
            rows = unsorted.sort_values("lower_edge")
            centres = rows[["lower_edge", "upper_edge"]].mean(axis=1).to_numpy(float)
            lines = [
                Line("correct", centres, rows["n_correct"].to_numpy(float), CLEAN_STYLE),
                Line("incorrect", centres, rows["n_misclassified"].to_numpy(float), ATTACKED_STYLE, dash="dashed"),
            ]
            title = f"{display_name(target)}, {name}"
            panels.append(Panel("entropy (nats)", "images", lines, title, y_range=(0, None), drawn="steps"))
    return lines_drawing("entropy-distributions", panels, n_columns=2)
