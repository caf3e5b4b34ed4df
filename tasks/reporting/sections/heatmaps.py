"""Grad-CAM heat maps: examples, and the change of the heat maps under attack."""

from tasks.reporting import image_figures
from tasks.reporting.drawings import Drawing, image_drawings, lines_drawing
from tasks.reporting.examples import PERTURBATION, AttackExamples, split_into_figures
from tasks.reporting.formats import fixed
from tasks.reporting.headline import Headline
from tasks.reporting.panels import lines_by_curve, over_eps
from tasks.reporting.results import Results
from tasks.reporting.section import Point, Section, point_of, span_of
from tasks.reporting.tables import CURVE_KEYS, at_point, metrics_table

METRICS = {"correlation": ("correlation", fixed(2)), "iou": ("IoU", fixed(2))}
COUNTS = {"n": "n", "n_blank": "blank maps"}
CHANCE = 0.01 / 0.19
"""IoU of two random tenths of an image: 1 % of the pixels are in both, 19 % in at least one."""


def heatmaps_section(results: Results, headline: Headline) -> Section:
    """Return example heat maps, and the agreement of all heat maps with those of the clean images."""
    key, title = "heatmaps", "Heat maps (Grad-CAM)"
    table = results.heatmaps
    point = point_of(table, headline)
    if point is None:
        return Section(key, title, {"point": None})
    shown = results.examples
    examples = _examples(shown) if shown else []
    rows = table[table["attack"] == point.attack]
    panels = [
        over_eps(
            label,
            lines_by_curve(rows[rows["metric"] == metric], headline.styles),
            level=CHANCE if metric == "iou" else 0.0,
            y_range=(None, 1.0),
        )
        for metric, (label, _) in METRICS.items()
    ]
    values = {
        "point": point,
        "overlap": span_of(point.of(table[table["metric"] == "iou"]), METRICS["iou"][1]),
        "chance": f"{CHANCE:.2f}",
        "example_names": [drawing.name for drawing in examples],
        "example_point": Point(shown.attack, shown.eps) if shown else None,
        "example_classes": shown.images.rows if shown else [],
        "table": metrics_table(at_point(table, point), CURVE_KEYS, METRICS, COUNTS),
        "all_rows": metrics_table(table, CURVE_KEYS, METRICS, COUNTS),
    }
    return Section(key, title, values, [*examples, lines_drawing("heatmaps-by-eps", panels)])


def _examples(shown: AttackExamples) -> list[Drawing]:
    parts = split_into_figures([column] for column in sorted({*shown.maps, PERTURBATION}))
    grids = [
        image_figures.image_grid(
            shown.images.part(columns),
            {place: shown.maps[column] for place, column in enumerate(columns) if column in shown.maps},
        )
        for columns in parts
    ]
    return image_drawings("heatmaps", grids)
