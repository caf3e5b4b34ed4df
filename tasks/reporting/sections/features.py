"""Whether the features of clean and adversarial images overlap."""

import pandas as pd

from tasks.evaluation.verdict import TELLING_AUROC
from tasks.reporting import pictures
from tasks.reporting.findings import Headline
from tasks.reporting.panels import Line, Panel, dash_of, line_over_eps, over_eps
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
    point_of,
)

SPACES = {"classifier": "classifier's last layer but one", "bottleneck": "autoencoder's bottleneck"}
AUROCS = {"probe_auroc": "linear probe", "knn_auroc": "vote of the nearest neighbours"}
KEYS = {"space": "features", "target": "target", "threat_model": "threat model", "attack": "attack"}
KEYS |= {"eps": "ε in 1/255"}
TOLD_APART = {"probe_auroc": ("linear probe", fixed(2)), "knn_auroc": ("nearest neighbours", fixed(2))}
TOLD_APART |= {"silhouette": ("silhouette", fixed(2)), "mmd": ("MMD", fixed(3)), "mmd_p_value": ("MMD, p", fixed(3))}
CLASSES = {
    "class_auroc_clean": ("class, clean: probe", fixed(2)),
    "class_auroc_adversarial": ("class, adversarial: probe", fixed(2)),
    "class_silhouette_clean": ("class, clean: silhouette", fixed(2)),
    "class_silhouette_adversarial": ("class, adversarial: silhouette", fixed(2)),
}


def features_section(results: Results, headline: Headline) -> Section:
    """Embeddings by ε, what tells clean from adversarial features, and whether the classes stay apart."""
    table, embeddings = results.analysis.features, results.analysis.embeddings
    point = point_of(table, headline)
    section = Section("features", "Features", "Do clean and adversarial features overlap?", _answer(table, point))
    section.notes.append(
        "AUROC of a linear probe and of nearest neighbours, cross-validated in all dimensions: 0.5 means that nothing "
        f"tells adversarial features from clean ones, 1 that everything does; below {TELLING_AUROC} they are said to "
        "overlap. Silhouette: from -1 to 1, near 0 when the "
        "two lie within each other. MMD (maximum mean discrepancy): distance of two distributions; a small p says that "
        "chance alone hardly gives it. Pictures of two dimensions (PCA, t-SNE) illustrate; they decide nothing."
    )
    if at := point_of(embeddings, headline):
        section.drawings.extend(_embeddings(embeddings[embeddings["attack"] == at.attack], results.data.classes, at))
    if point:
        section.drawings.extend(_by_eps(table, point))
        caption = "Clean against adversarial features, and the classes within each, with 95 % intervals."
        metrics = TOLD_APART | CLASSES
        section.tables.extend(
            [
                metrics_table(f"Under {point}. {caption}", point.of(table), KEYS, metrics),
                metrics_table(f"Every ε. {caption}", table, KEYS, metrics, is_folded=True),
            ]
        )
    return section


def _answer(table: pd.DataFrame, point: Point | None) -> str:
    if point is None:
        return "Features were not compared in this run."
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
                f"Features of the {SPACES[str(space)]}; {name}, {point.attack.upper()}. Hollow: clean; filled: "
                "adversarial; colour and shape are the class. Axes have no unit.",
                group="All embeddings, by ε",
            )
        )
    return drawings


def _by_eps(table: pd.DataFrame, point: Point) -> list[Drawing]:
    rows = table[table["attack"] == point.attack]

    def lines(metric: str) -> list[Line]:
        groups = rows[rows["metric"] == metric].groupby(["space", "target", "threat_model"], sort=False)
        return [
            line_over_eps(
                f"{space}: {curve_name(str(target), str(threat_model))}",
                of_line,
                style=style,
                dash=dash_of(str(threat_model)),
            )
            for style, ((space, target, threat_model), of_line) in enumerate(groups)
        ]

    def panel(metric: str, label: str, level: float, y_range: tuple[float | None, float | None]) -> Panel:
        return over_eps(label, lines(metric), level=level, y_range=y_range)

    aurocs = (None, 1.02)
    apart = [
        panel("probe_auroc", "AUROC of a linear probe", 0.5, aurocs),
        panel("knn_auroc", "AUROC of nearest neighbours", 0.5, aurocs),
        panel("silhouette", "silhouette", 0.0, (None, None)),
        panel("mmd_p_value", "p-value of the MMD", 0.05, (-0.02, 1.02)),
    ]
    classes = [
        panel("class_auroc_clean", "class AUROC, clean images", 0.5, aurocs),
        panel("class_auroc_adversarial", "class AUROC, adversarial", 0.5, aurocs),
    ]
    return [
        lines_drawing(
            "features-by-eps",
            apart,
            f"How well clean and adversarial features are told apart, against ε under {point.attack}",
            "Clean against adversarial features. Bands are 95 % intervals; grey lines: chance (0.5, 0) and p = 0.05.",
            n_columns=2,
        ),
        lines_drawing(
            "features-classes",
            classes,
            f"How well the classes are told apart in clean and in adversarial features, against ε under {point.attack}",
            "Do the classes stay apart? AUROC of a probe for the class, in clean and in adversarial features.",
        ),
    ]
