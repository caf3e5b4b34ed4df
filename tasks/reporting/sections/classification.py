"""Metrics of classification: clean and attacked, with confidence held against accuracy, and doubt against error."""

import pandas as pd

from tasks.params import UNDEFENDED
from tasks.records.vocabulary import CLEAN, spoken
from tasks.reporting.findings import Headline, curve_name
from tasks.reporting.panels import ATTACKED_STYLE, CLEAN_STYLE, Line, Panel
from tasks.reporting.results import Results
from tasks.reporting.sections.section import (
    CURVE_KEYS,
    Drawing,
    Point,
    Section,
    both_tables,
    estimate,
    fixed,
    lines_drawing,
    plain,
    point_of,
    share,
)

METRICS = {
    "accuracy": ("accuracy", share),
    "top1_error": ("top-1 error", share),
    "precision": ("precision", share),
    "recall": ("recall", share),
    "f1": ("F1", share),
    "auroc": ("AUROC", fixed(3)),
    "loss": ("loss, nats", plain),
    "ece": ("ECE", share),
    "brier": ("Brier", fixed(3)),
    "mean_entropy": ("entropy, nats", fixed(3)),
}


def classification_section(results: Results, headline: Headline) -> Section:
    """Tables of metrics, reliability curves, and distributions of entropy."""
    titles = ("classification", "Metrics", "Metrics of classification, and how sure the predictions are")
    table, analysis = results.analysis.classification, results.analysis
    point = point_of(table, headline)
    if point is None:
        return Section(*titles, "Metrics beyond accuracy were not computed in this run.")
    note = (
        "ECE (expected calibration error): mean gap between the confidence of the predictions and their accuracy. "
        f"Brier: mean squared error of the probabilities, 0 is best. AUROC, precision, recall and F1 are about "
        f"{results.data.classes[results.data.positive]}. Loss: cross-entropy. Entropy: doubt of a prediction; low "
        "entropy on wrong predictions means that the classifier is sure of its errors."
    )
    drawings = [_reliability(analysis.reliability, table, point), _entropies(analysis.entropy, point)]
    tables = both_tables(point, "95 % bootstrap intervals.", table, CURVE_KEYS, METRICS)
    return Section(*titles, _answer(table, point), [note], drawings, tables)


def _answer(table: pd.DataFrame, point: Point) -> str:
    bare = table[(table["target"] == UNDEFENDED) & (table["metric"] == "ece")]
    clean, attacked = bare[bare["attack"] == CLEAN].iloc[0], point.of(bare).iloc[0]
    return (
        f"On clean images the classifier's confidence misses its accuracy by {estimate(clean, share)} on average "
        f"(ECE), under {point} by {estimate(attacked, share)}."
    )


def _pairs(table: pd.DataFrame, point: Point) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Target -> rows of its clean images, and of those that an attacker made who knows it."""
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
        clean, attacked = (share(rows["value"].iloc[0]) for rows in eces[target])
        title = f"{curve_name(target, 'adaptive')}\nECE {clean} clean, {attacked} attacked"
        panels.append(
            Panel("confidence", "accuracy", lines, title, "share", "share", y_range=(-0.02, 1.02), diagonal=True)
        )
    return lines_drawing(
        "reliability",
        panels,
        f"Reliability curves: accuracy against confidence, clean and under {point}",
        f"Reliability, {point}, the attacker knows the defence: on the grey line predictions are as often right as "
        "they are sure; below it they are too sure. A point is a bin of confidence with images in it; bands are 95 % "
        "intervals.",
    )


def _entropies(table: pd.DataFrame, point: Point) -> Drawing:
    panels = []
    for target, (clean, attacked) in _pairs(table, point).items():
        for name, unsorted in (("clean", clean), ("attacked", attacked)):
            rows = unsorted.sort_values("entropy_low")
            middles = rows[["entropy_low", "entropy_high"]].mean(axis=1).to_numpy(float)
            lines = [
                Line("right", middles, rows["n_correct"].to_numpy(float), CLEAN_STYLE),
                Line("wrong", middles, rows["n_wrong"].to_numpy(float), ATTACKED_STYLE, dash="dashed"),
            ]
            panels.append(
                Panel("entropy (nats)", "images", lines, f"{spoken(target)}, {name}", y_range=(0, None), drawn="steps")
            )
    return lines_drawing(
        "entropy-distributions",
        panels,
        f"Distributions of the predictions' entropy, right and wrong ones, clean and under {point}",
        f"Entropy of right and wrong predictions; left clean images, right {point}, the attacker knows the defence. "
        "Errors on the left of a panel are sure ones.",
        n_columns=2,
    )
