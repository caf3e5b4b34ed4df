"""Overlap of clean and adversarial features: embeddings, and metrics of separation."""

import math

import pandas as pd

from tasks.analysis.claim_measures import reasons_without_power
from tasks.reporting import image_figures
from tasks.reporting.drawings import Drawing, lines_drawing
from tasks.reporting.formats import estimate, fixed
from tasks.reporting.headline import Headline
from tasks.reporting.names import attack_name, curve_name
from tasks.reporting.panels import Panel, lines_by_curve, over_eps
from tasks.reporting.results import Results
from tasks.reporting.section import Point, Section, point_of
from tasks.reporting.tables import CURVE_KEYS, at_point, metrics_table
from tasks.statistics.intervals import Estimate, best_of

SPACES = {"classifier": "penultimate layer of the classifier", "bottleneck": "bottleneck of the purifier"}
"""Feature space -> its display name."""
AUROCS = {"linear_probe_auroc": "linear probe", "knn_auroc": "k nearest neighbours"}
KEYS = {"feature_space": "features"} | CURVE_KEYS
METRICS = {
    "linear_probe_auroc": ("AUROC, linear probe", fixed(2)),
    "knn_auroc": ("AUROC, k-NN", fixed(2)),
    "silhouette": ("silhouette", fixed(2)),
    "mmd": ("MMD", fixed(3)),
    "mmd_p_value": ("p-value of MMD", fixed(3)),
    "class_auroc_clean": ("class AUROC, clean", fixed(2)),
    "class_auroc_adversarial": ("class AUROC, adversarial", fixed(2)),
    "class_silhouette_clean": ("class silhouette, clean", fixed(2)),
    "class_silhouette_adversarial": ("class silhouette, adversarial", fixed(2)),
}
WITHOUT_INTERVAL = ("mmd", "mmd_p_value")
Range = tuple[float | None, float | None]
PANELS: dict[str, tuple[str, float, Range]] = {
    "linear_probe_auroc": ("AUROC, linear probe", 0.5, (None, 1.02)),
    "knn_auroc": ("AUROC, k-NN", 0.5, (None, 1.02)),
    "class_auroc_clean": ("class AUROC, clean", 0.5, (None, 1.02)),
    "silhouette": ("silhouette", 0.0, (None, None)),
    "mmd_p_value": ("p-value of MMD", 0.05, (-0.02, 1.02)),
    "class_auroc_adversarial": ("class AUROC, adversarial", 0.5, (None, 1.02)),
}
"""Metric -> label, reference level, and range of the axis."""


def features_section(results: Results, headline: Headline) -> Section:
    """Return embeddings by eps, and metrics of the separation of clean and adversarial features and of the classes."""
    key, title = "features", "Overlap of clean and adversarial features"
    table, embeddings = results.features, results.embeddings
    point = point_of(table, headline)
    if point is None:
        return Section(key, title, {"point": None})
    shown = embeddings[embeddings["attack"] == point.attack]
    curves = list(dict.fromkeys(shown[["feature_space", "target", "threat_model"]].itertuples(index=False, name=None)))
    spaces = list(dict.fromkeys(table.loc[table["attack"] == point.attack, "feature_space"]))
    bound = results.params.analyze.claim_bounds.separable_auroc
    values = {
        "point": point,
        "attack": attack_name(point.attack),
        "bound": bound,
        "separation": _separation(table, point, bound),
        "has_thumbnails": results.params.report.include_images,
        "embeddings": [
            {"name": "-".join(["embeddings", *curve]), "space": SPACES[curve[0]], "curve": curve_name(*curve[1:])}
            for curve in curves
        ],
        "by_eps": [{"name": f"features-{space}", "space": SPACES[space]} for space in spaces],
        "table": metrics_table(at_point(table, point), KEYS, METRICS, without_interval=WITHOUT_INTERVAL),
        "all_rows": metrics_table(table, KEYS, METRICS, without_interval=WITHOUT_INTERVAL),
    }
    drawings = [
        *(_embedding(shown, curve, results.data.classes) for curve in curves),
        *(_by_eps(table[table["attack"] == point.attack], space, headline.styles) for space in spaces),
    ]
    return Section(key, title, values, drawings)


def _separation(table: pd.DataFrame, point: Point, bound: float) -> list[dict[str, str]]:
    """Return the highest AUROC in each feature space, and whether it is below the bound of the claims."""
    at = point.of(table)
    found = []
    for space, of_space in at.groupby("feature_space", sort=False):
        rows = of_space[of_space["metric"].isin(AUROCS)].dropna(subset=["value"])
        if rows.empty:
            continue
        best = rows.sort_values("value", kind="stable").iloc[-1]
        # the result allows for the choice among all curves; the interval is that of the claim about this curve
        same_curve = (rows[["target", "threat_model"]] == best[["target", "threat_model"]]).all(axis=1)
        estimates, n_groups = rows[["value", "low", "high"]], int(rows["n_groups"].min())
        of_curve = best_of([Estimate(*row) for row in estimates[same_curve].to_numpy()], n_groups)
        highest = best_of([Estimate(*row) for row in estimates.to_numpy()], n_groups)
        is_best = (of_space[["target", "threat_model"]] == best[["target", "threat_model"]]).all(axis=1)
        reasons = reasons_without_power(of_space[is_best].set_index("metric"))
        found.append(
            {
                "space": SPACES[str(space)],
                "result": _result(highest, bound, has_power=not reasons),
                "reasons": " and ".join(reasons),
                "auroc": estimate(of_curve._asdict(), fixed(2)),
                "method": AUROCS[best["metric"]],
                "curve": curve_name(best["target"], best["threat_model"]),
            }
        )
    return found


def _result(highest: Estimate, bound: float, *, has_power: bool) -> str:
    if math.isnan(highest.low) or math.isnan(highest.high):
        return "too few groups"
    if bound <= highest.low < highest.high:
        return "separable"
    if not has_power:
        return "no power"
    # an interval without width measures nothing
    return "not separated" if highest.low < highest.high < bound else "not significant"


def _embedding(table: pd.DataFrame, curve: tuple[str, str, str], classes: tuple[str, ...]) -> Drawing:
    is_curve = (table[["feature_space", "target", "threat_model"]] == list(curve)).all(axis=1)
    return Drawing("-".join(["embeddings", *curve]), image_figures.embeddings(table[is_curve], classes))


def _by_eps(table: pd.DataFrame, space: str, styles: dict[str, int]) -> Drawing:
    rows = table[table["feature_space"] == space]
    panels: list[Panel] = [
        over_eps(label, lines_by_curve(rows[rows["metric"] == metric], styles), level=level, y_range=y_range)
        for metric, (label, level, y_range) in PANELS.items()
    ]
    return lines_drawing(f"features-{space}", panels)
