"""Metrics of classification: clean and attacked, with confidence held against accuracy, and doubt against error."""

import pandas as pd

from tasks.evaluation.records import CLEAN
from tasks.paths import UNDEFENDED
from tasks.reporting.findings import Headline
from tasks.reporting.panels import Line, Panel
from tasks.reporting.results import Results
from tasks.reporting.sections.section import (
    Drawing,
    Point,
    Section,
    curve_name,
    estimate,
    fixed,
    lines_drawing,
    metrics_table,
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
KEYS = {"target": "target", "threat_model": "threat model", "attack": "attack", "eps": "ε in 1/255"}
MAX_TARGETS = 4
"""Targets and threat models that are drawn, at most."""


def classification_section(results: Results, headline: Headline) -> Section:
    """Tables of metrics, reliability curves, and distributions of entropy."""
    table, analysis = results.analysis.classification, results.analysis
    point = point_of(table, headline)
    section = Section(
        "classification",
        "Metrics",
        "Metrics of classification, and how sure the predictions are",
        _answer(table, point),
    )
    section.notes.append(
        "ECE (expected calibration error): mean gap between the confidence of the predictions and their accuracy. "
        f"Brier: mean squared error of the probabilities, 0 is best. AUROC, precision, recall and F1 are about "
        f"{results.data.classes[results.data.positive]}. Loss: cross-entropy. Entropy: doubt of a prediction; low "
        "entropy on wrong predictions means that the classifier is sure of its errors."
    )
    if at := point_of(analysis.reliability, headline):
        section.drawings.append(_reliability(analysis.reliability, table, at))
    if at := point_of(analysis.entropy, headline):
        section.drawings.append(_entropies(analysis.entropy, at))
    if point:
        caption = "95 % bootstrap intervals."
        section.tables.extend(
            [
                metrics_table(f"Clean images, and under {point}; {caption}", _clean_and(table, point), KEYS, METRICS),
                metrics_table(f"Every attack and ε; {caption}", table, KEYS, METRICS, is_folded=True),
            ]
        )
    return section


def _clean_and(table: pd.DataFrame, point: Point) -> pd.DataFrame:
    return pd.concat([table[table["attack"] == CLEAN], point.of(table)])


def _answer(table: pd.DataFrame, point: Point | None) -> str:
    bare = table[(table["target"] == UNDEFENDED) & (table["metric"] == "ece")]
    if point is None or bare.empty:
        return "Metrics beyond accuracy were not computed in this run."
    attacked = estimate(point.of(bare).iloc[0], share)
    clean = bare[bare["attack"] == CLEAN]
    if clean.empty:
        return f"Under {point} the classifier's confidence misses its accuracy by {attacked} on average (ECE)."
    return (
        f"On clean images the classifier's confidence misses its accuracy by {estimate(clean.iloc[0], share)} on "
        f"average (ECE), under {point} by {attacked}."
    )


def _pairs(table: pd.DataFrame, point: Point) -> list[tuple[str, str, pd.DataFrame, pd.DataFrame]]:
    """Target, threat model, rows under attack and rows of the same target's clean images."""
    clean = table[table["attack"] == CLEAN]
    groups = point.of(table).groupby(["target", "threat_model"], sort=False)
    pairs = [(str(target), str(threat), rows, clean[clean["target"] == target]) for (target, threat), rows in groups]
    return pairs[:MAX_TARGETS]


def _reliability(table: pd.DataFrame, metrics: pd.DataFrame, point: Point) -> Drawing:
    panels = []
    for target, threat_model, attacked, clean in _pairs(table, point):
        lines = []
        for name, rows, style in (("clean", clean, 0), ("attacked", attacked, 4)):
            rows = rows[rows["n"] > 0]
            x, y, low, high = (rows[column].to_numpy(float) for column in ("confidence", "accuracy", "low", "high"))
            lines.append(Line(name, x, y, style, low=low, high=high))
        at = {"target": target, "metric": "ece"}
        of_target = metrics[(metrics[list(at)] == pd.Series(at)).all(axis=1)]
        of_threat = point.of(of_target[of_target["threat_model"] == threat_model])
        eces = [
            share(rows["value"].iloc[0]) for rows in (of_target[of_target["attack"] == CLEAN], of_threat) if len(rows)
        ]
        title = f"{curve_name(target, threat_model)}\nECE {' clean, '.join(eces)} attacked"
        panels.append(
            Panel("confidence", "accuracy", lines, title, "share", "share", y_range=(-0.02, 1.02), diagonal=True)
        )
    return lines_drawing(
        "reliability",
        panels,
        f"Reliability curves: accuracy against confidence, clean and under {point}",
        f"Reliability, {point}: on the grey line predictions are as often right as they are sure; below it they are "
        "too sure. A point is a bin of confidence with images in it; bands are 95 % intervals.",
    )


def _entropies(table: pd.DataFrame, point: Point) -> Drawing:
    panels = []
    for row, label in enumerate(("clean", "attacked")):
        for target, threat_model, attacked, clean in _pairs(table, point):
            rows = (attacked if row else clean).sort_values("entropy_low")
            middles = rows[["entropy_low", "entropy_high"]].mean(axis=1).to_numpy(float)
            lines = [
                Line("right", middles, rows["n_correct"].to_numpy(float), style=2),
                Line("wrong", middles, rows["n_wrong"].to_numpy(float), style=4, dash="dashed"),
            ]
            name = target if label == "clean" else curve_name(target, threat_model)
            panels.append(
                Panel("entropy (nats)", "images", lines, f"{name}, {label}", y_range=(0, None), drawn="steps")
            )
    return lines_drawing(
        "entropy-distributions",
        panels,
        f"Distributions of the predictions' entropy, right and wrong ones, clean and under {point}",
        f"Entropy of right and wrong predictions; above clean images, below {point}. Errors on the left are sure ones.",
        n_columns=len(panels) // 2,
    )
