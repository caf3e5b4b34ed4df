"""Where the classifier looks, before and under attack."""

import numpy as np
import pandas as pd

from tasks.reporting import pictures
from tasks.reporting.findings import Headline
from tasks.reporting.panels import dash_of, line_over_eps, over_eps
from tasks.reporting.results import Results
from tasks.reporting.sections.section import (
    IMAGES,
    Drawing,
    Point,
    Section,
    by_curve,
    estimate,
    fixed,
    lines_drawing,
    metrics_table,
    point_of,
)

METRICS = {"correlation": ("correlation", fixed(2)), "iou": ("overlap (IoU)", fixed(2))}
KEYS = {"target": "target", "threat_model": "threat model", "attack": "attack", "eps": "ε in 1/255"}
COUNTS = {"n": "images", "n_blank": "blank maps"}
CHANCE = 0.01 / 0.19
"""IoU of two random tenths of an image: 1 % of the pixels are in both, 19 % in either."""


def heatmaps_section(results: Results, headline: Headline) -> Section:
    """Heat maps of example images, and how far those of all test images move."""
    table = results.analysis.heatmaps
    point = point_of(table, headline)
    section = Section("heatmaps", "Heat maps", "Where the classifier looks", _answer(table, point))
    section.notes.append(
        "A heat map (Grad-CAM) colours what speaks for a class. Curves and tables ask of every image what speaks for "
        "the class that was predicted before the attack, and whether it still lies in the same place. Correlation: 1 "
        "means the same map, 0 that the two have nothing in common. Overlap (IoU, intersection over union): places "
        f"among the hottest tenth of both maps over places that are in either; chance gives {CHANCE:.2f}. A blank "
        "map (nothing speaks for that class any more) agrees with none."
    )
    section.drawings.append(_examples(results.analysis.examples))
    if point:
        section.drawings.append(_by_eps(table, point))
        caption = (
            "Heat maps of adversarial images against those of the clean ones, each seen by the same target: means with "
            "95 % intervals. Attack clean: the defended classifier's maps of clean images against the bare one's."
        )
        section.tables.extend(
            [
                metrics_table(f"Under {point}. {caption}", point.of(table), KEYS, METRICS, COUNTS),
                metrics_table(f"Every ε. {caption}", table, KEYS, METRICS, COUNTS, is_folded=True),
            ]
        )
    return section


def _answer(table: pd.DataFrame, point: Point | None) -> str:
    if point is None:
        return "Heat maps were not compared in this run."
    overlaps = by_curve(point.of(table[table["metric"] == "iou"]))
    told = ", ".join(f"{estimate(rows.iloc[0], fixed(2))} ({name})" for name, rows in overlaps.items())
    return (
        f"Under {point} the hottest tenth of the heat maps overlaps with that of the clean images by {told}: "
        f"1 would be the same place, {CHANCE:.2f} is chance."
    )


def _examples(shown: dict[str, np.ndarray]) -> Drawing:
    rows, columns = shown["rows"].tolist(), shown["columns"].tolist()
    return Drawing(
        f"{IMAGES}heatmaps",
        pictures.heatmaps(shown["images"], shown["maps"], rows, columns, shown["captions"].tolist()),
        f"Images of {', '.join(rows)} with their heat maps: {', '.join(columns)}",
        "What speaks for the prediction below each image, from nothing (the image as it is) to most (yellow). "
        "Last: the perturbation, amplified about mid grey by the factor above it.",
    )


def _by_eps(table: pd.DataFrame, point: Point) -> Drawing:
    rows = table[table["attack"] == point.attack]
    panels = []
    for metric, (label, _) in METRICS.items():
        curves = by_curve(rows[rows["metric"] == metric])
        lines = [
            line_over_eps(name, of_curve, style=style, dash=dash_of(of_curve["threat_model"].iloc[0]))
            for style, (name, of_curve) in enumerate(curves.items())
        ]
        panels.append(over_eps(label, lines, level=CHANCE if metric == "iou" else 0.0, y_range=(None, 1.0)))
    return lines_drawing(
        "heatmaps-by-eps",
        panels,
        f"Correlation and overlap of heat maps against ε under {point.attack}",
        "How much of the clean image's heat map is left under attack. Bands are 95 % intervals; grey lines are chance.",
    )
