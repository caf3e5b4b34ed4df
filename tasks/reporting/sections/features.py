"""Whether the features of clean and adversarial images overlap."""

import pandas as pd

from tasks.analysis.claims import TELLING_AUROC
from tasks.reporting import pictures
from tasks.reporting.findings import Headline, attack_name, curve_name
from tasks.reporting.panels import Panel, lines_by_curve, over_eps
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
    point_of,
)

SPACES = {"classifier": "classifier's last layer but one", "bottleneck": "purifier's bottleneck"}
AUROCS = {"probe_auroc": "linear probe", "knn_auroc": "vote of the nearest neighbours"}
KEYS = {"space": "features"} | CURVE_KEYS
TOLD_APART = {"probe_auroc": ("linear probe", fixed(2)), "knn_auroc": ("nearest neighbours", fixed(2))}
TOLD_APART |= {"silhouette": ("silhouette", fixed(2)), "mmd": ("MMD", fixed(3)), "mmd_p_value": ("MMD, p", fixed(3))}
METRICS = TOLD_APART | {
    "class_auroc_clean": ("class, clean: probe", fixed(2)),
    "class_auroc_adversarial": ("class, adversarial: probe", fixed(2)),
    "class_silhouette_clean": ("class, clean: silhouette", fixed(2)),
    "class_silhouette_adversarial": ("class, adversarial: silhouette", fixed(2)),
}
ONE, AUROC = (-0.02, 1.02), (None, 1.02)
PANELS: dict[str, tuple[str, float, tuple[float | None, float | None]]] = {
    "probe_auroc": ("AUROC of a linear probe", 0.5, AUROC),
    "knn_auroc": ("AUROC of nearest neighbours", 0.5, AUROC),
    "class_auroc_clean": ("class AUROC, clean images", 0.5, AUROC),
    "silhouette": ("silhouette", 0.0, (None, None)),
    "mmd_p_value": ("p-value of the MMD", 0.05, ONE),
    "class_auroc_adversarial": ("class AUROC, adversarial", 0.5, AUROC),
}
"""Metric -> label, level of chance, and range of the axis."""
NOTE = (
    "AUROC of a linear probe and of nearest neighbours, cross-validated in all dimensions: 0.5 means that nothing "
    f"tells adversarial features from clean ones, 1 that everything does; below {TELLING_AUROC} they are said to "
    "overlap. Silhouette: from -1 to 1, near 0 when the "
    "two lie within each other. MMD (maximum mean discrepancy): distance of two distributions; a small p says that "
    "chance alone hardly gives it. Pictures of two dimensions (PCA, t-SNE) illustrate; they decide nothing."
)


def features_section(results: Results, headline: Headline) -> Section:
    """Embeddings by ε, what tells clean from adversarial features, and whether the classes stay apart."""
    titles = ("features", "Features", "Do clean and adversarial features overlap?")
    table, embeddings = results.analysis.features, results.analysis.embeddings
    point = point_of(table, headline)
    if point is None:
        return Section(*titles, "Features were not compared in this run.")
    drawings = [
        *_embeddings(embeddings[embeddings["attack"] == point.attack], results.data.classes, point),
        *_by_eps(table, point, headline.styles),
    ]
    caption = "Clean against adversarial features, and the classes within each, with 95 % intervals."
    tables = both_tables(point, caption, table, KEYS, METRICS)
    return Section(*titles, _answer(table, point), [NOTE], drawings, tables)


def _answer(table: pd.DataFrame, point: Point) -> str:
    aurocs = point.of(table[table["metric"].isin(AUROCS)]).dropna(subset=["value"])
    told = []
    for space, rows in aurocs.groupby("space", sort=False):
        best = rows.sort_values("value", kind="stable").iloc[-1]
        where = curve_name(best["target"], best["threat_model"])
        told.append(
            f"{_judged(best)} in the {SPACES[str(space)]}, where the {AUROCS[best['metric']]} tells them apart with an "
            f"AUROC of up to {estimate(best, fixed(2))} ({where})"
        )
    return f"Under {point} clean and adversarial features {'; they '.join(told)}."


def _judged(row: "pd.Series[float]") -> str:
    """Whether an interval lies below or above the AUROC from which two kinds count as told apart."""
    if row["high"] < TELLING_AUROC:
        return "overlap"
    return "do not overlap" if row["low"] >= TELLING_AUROC else "may or may not overlap"


def _embeddings(table: pd.DataFrame, classes: tuple[str, ...], point: Point) -> list[Drawing]:
    drawings = []
    for (space, target, threat_model), rows in table.groupby(["space", "target", "threat_model"], sort=False):
        name = curve_name(str(target), str(threat_model))
        drawings.append(
            Drawing(
                f"embeddings-{space}-{target}-{threat_model}",
                pictures.embeddings(rows, classes),
                f"PCA and t-SNE of the features of the {SPACES[str(space)]}, {name}, by ε",
                f"Features of the {SPACES[str(space)]}; {name}, {attack_name(point.attack)}. Hollow: clean; filled: "
                "adversarial; colour and shape are the class. Axes have no unit.",
                group="All embeddings, by ε",
            )
        )
    return drawings


def _by_eps(table: pd.DataFrame, point: Point, styles: dict[str, int]) -> list[Drawing]:
    drawings = []
    for space, rows in table[table["attack"] == point.attack].groupby("space", sort=False):
        panels: list[Panel] = [
            over_eps(label, lines_by_curve(rows[rows["metric"] == metric], styles), level=level, y_range=y_range)
            for metric, (label, level, y_range) in PANELS.items()
        ]
        where = SPACES[str(space)]
        drawings.append(
            lines_drawing(
                f"features-{space}",
                panels,
                f"How well clean and adversarial features of the {where} are told apart, and the classes in them, "
                f"against ε under {point.attack}",
                f"Features of the {where}, clean against adversarial; right: AUROC of a probe for the class, in clean "
                "and in adversarial features. Bands are 95 % intervals; grey lines: chance (0.5, 0) and p = 0.05.",
            )
        )
    return drawings
