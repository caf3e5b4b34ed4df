"""Where the classifier looks, before and under attack."""

import pandas as pd

from tasks.reporting import pictures
from tasks.reporting.examples import PERTURBATION, UnderAttack, shared_out
from tasks.reporting.findings import Headline, attack_name
from tasks.reporting.panels import lines_by_curve, over_eps
from tasks.reporting.results import Results
from tasks.reporting.sections.section import (
    CURVE_KEYS,
    Drawing,
    Point,
    Section,
    both_tables,
    fixed,
    lines_drawing,
    picture_drawings,
    point_of,
    undefended_and_defended,
)
from tasks.statistics.formatting import eps_text

METRICS = {"correlation": ("correlation", fixed(2)), "iou": ("overlap (IoU)", fixed(2))}
COUNTS = {"n": "images", "n_blank": "blank maps"}
CHANCE = 0.01 / 0.19
"""IoU of two random tenths of an image: 1 % of the pixels are in both, 19 % in either."""
NOTE = (
    "A heat map (Grad-CAM) colours what speaks for a class. Curves and tables ask of every image what speaks for "
    "the class that was predicted before the attack, and whether it still lies in the same place. Correlation: 1 "
    "means the same map, 0 that the two have nothing in common. Overlap (IoU, intersection over union): places "
    f"among the hottest tenth of both maps over places that are in either; chance gives {CHANCE:.2f}. A blank "
    "map (nothing speaks for that class any more) agrees with none."
)
CAPTION = (
    "Heat maps of adversarial images against those of the clean ones, each seen by the same target: means with "
    "95 % intervals. Attack clean: the defended classifier's maps of clean images against the bare one's."
)


def heatmaps_section(results: Results, headline: Headline) -> Section:
    """Heat maps of example images, and how far those of all test images move."""
    titles = ("heatmaps", "Heat maps", "Where the classifier looks")
    table = results.analysis.heatmaps
    point = point_of(table, headline)
    if point is None:
        return Section(*titles, "Heat maps were not compared in this run.")
    drawings = [*_examples(results.analysis.examples), _by_eps(table, point, headline.styles)]
    tables = both_tables(point, CAPTION, table, CURVE_KEYS, METRICS, COUNTS)
    return Section(*titles, _answer(table, point), [NOTE], drawings, tables)


def _answer(table: pd.DataFrame, point: Point) -> str:
    overlaps = point.of(table[table["metric"] == "iou"])
    return (
        f"Under {point} the hottest tenth of the heat maps overlaps with that of the clean images by "
        f"{undefended_and_defended(overlaps, fixed(2))}: 1 would be the same place, {CHANCE:.2f} is chance."
    )


def _examples(shown: UnderAttack) -> list[Drawing]:
    grids = [
        pictures.image_grid(
            shown.pictures.part(columns),
            {place: shown.maps[column] for place, column in enumerate(columns) if column in shown.maps},
        )
        for columns in shared_out([column] for column in sorted({*shown.maps, PERTURBATION}))
    ]
    return picture_drawings(
        "heatmaps",
        grids,
        f"Images of {', '.join(shown.pictures.rows)} with their heat maps: clean, adversarial and denoised",
        f"What speaks for the prediction below each image, from nothing (the image as it is) to most (yellow); "
        f"{attack_name(shown.attack)} at ε = {eps_text(shown.eps)}/255. The perturbation is amplified about mid grey "
        "by the factor above it.",
    )


def _by_eps(table: pd.DataFrame, point: Point, styles: dict[str, int]) -> Drawing:
    rows = table[table["attack"] == point.attack]
    panels = [
        over_eps(
            label,
            lines_by_curve(rows[rows["metric"] == metric], styles),
            level=CHANCE if metric == "iou" else 0.0,
            y_range=(None, 1.0),
        )
        for metric, (label, _) in METRICS.items()
    ]
    return lines_drawing(
        "heatmaps-by-eps",
        panels,
        f"Correlation and overlap of heat maps against ε under {point.attack}",
        "How much of the clean image's heat map is left under attack. Bands are 95 % intervals; grey lines are chance.",
    )
