"""Pixel intensities: histograms, distances between distributions, and power spectra."""

from typing import Any

import pandas as pd

from tasks.outcomes.names import AS_GIVEN, display_name
from tasks.params import UNDEFENDED
from tasks.records.vocabulary import CLEAN
from tasks.reporting import image_figures
from tasks.reporting.drawings import Drawing, image_drawings, lines_drawing
from tasks.reporting.examples import ImageGrid, group_by_purifier, split_into_figures
from tasks.reporting.formats import estimate, fixed
from tasks.reporting.headline import Headline
from tasks.reporting.panels import ATTACKED_STYLE, CLEAN_STYLE, Line, Panel, lines_by_purifier, over_eps
from tasks.reporting.results import Results
from tasks.reporting.section import Point, Section, point_of, relation_of
from tasks.reporting.tables import IMAGE_KEYS, at_point, metrics_table

ALL = "all"
"""Class of the rows about the images of all classes."""
MAX_CLASSES = 3
"""Maximum number of classes with a histogram."""
METRICS = {
    "wasserstein_distance": ("Wasserstein (grey levels)", fixed(2)),
    "ks_statistic": ("Kolmogorov-Smirnov", fixed(3)),
}
KEYS = IMAGE_KEYS | {"class": "class"}


def intensities_section(results: Results, headline: Headline) -> Section:
    """Return histograms by class, distances between distributions by eps, and power spectra."""
    key, title = "intensities", "Pixel intensities"
    table, styles = results.intensity, headline.styles
    point = point_of(table, headline)
    if point is None:
        return Section(key, title, {"point": None})
    shown = results.examples
    differences = _differences(shown.differences) if shown else []
    drawings = [
        *differences,
        _histograms(results.intensity_histograms, point, styles),
        _distances(table, point, styles),
        _spectrum(results.spectrum, point, styles),
    ]
    values = {
        "point": point,
        **_shift(table, point),
        "difference_names": [drawing.name for drawing in differences],
        "difference_columns": shown.differences.columns if shown else [],
        "example_point": Point(shown.attack, shown.eps) if shown else None,
        "table": metrics_table(at_point(table[table["class"] == ALL], point), KEYS, METRICS),
        "all_rows": metrics_table(table, KEYS, METRICS),
    }
    return Section(key, title, values, drawings)


def _shift(table: pd.DataFrame, point: Point) -> dict[str, Any]:
    """Return the shift by the attack, and the smallest shift of clean images by a purifier."""
    rows = table[
        (table["class"] == ALL) & (table["metric"] == "wasserstein_distance") & (table["surrogate"] == UNDEFENDED)
    ]
    attacked = point.of(rows)
    adversarial = attacked[attacked["purifier"] == AS_GIVEN].iloc[0]
    purified = rows[rows["attack"] == CLEAN].sort_values("value", kind="stable")
    shift: dict[str, Any] = {"shift": estimate(adversarial, fixed(2)), "purifier": None}
    if purified.empty:
        return shift
    least = purified.iloc[0]
    return shift | {
        "purifier": display_name(least["purifier"]),
        "n_purifiers": len(purified),
        "relation": relation_of(adversarial, least, "smaller than", "larger than", "similar to"),
        "purifier_shift": estimate(least, fixed(2)),
    }


def _differences(differences: ImageGrid) -> list[Drawing]:
    parts = split_into_figures(group_by_purifier(differences, n_first=1))
    return image_drawings("differences", [image_figures.image_grid(differences.part(columns)) for columns in parts])


def _kinds(purifiers: pd.Series, styles: dict[str, int]) -> dict[tuple[str, str], tuple[str, int]]:
    """Return name and style of each kind of images, by image_kind and purifier, in the order of the legend."""
    kinds = {("clean", AS_GIVEN): ("clean", CLEAN_STYLE), ("adversarial", AS_GIVEN): ("adversarial", ATTACKED_STYLE)}
    named = [name for name in purifiers.unique() if name]
    return kinds | {("denoised", name): (f"purified by {display_name(name)}", styles[name]) for name in named}


def _histograms(table: pd.DataFrame, point: Point, styles: dict[str, int]) -> Drawing:
    """Draw one column for each class: the histograms, and below them their difference from the clean images."""
    table = table[table["surrogate"] == UNDEFENDED]
    table = pd.concat([table[table["image_kind"] == CLEAN], point.of(table)])
    kinds = _kinds(table["purifier"], styles)
    shares: list[Panel] = []
    differences: list[Panel] = []
    classes = [name for name in table["class"].unique() if name != ALL]
    for name in classes[:MAX_CLASSES]:
        of_class = (
            table[table["class"] == name].set_index("grey_level").groupby(["image_kind", "purifier"])["pixel_fraction"]
        )
        found = {kind: share.sort_index() for kind, share in of_class}
        shown = {kind: found[kind] for kind in kinds if kind in found}
        moved = {kind: share - shown[CLEAN, AS_GIVEN] for kind, share in shown.items() if kind != (CLEAN, AS_GIVEN)}
        highest, largest = (
            1.15 * max(float(share.iloc[1:-1].abs().max()) for share in each.values()) for each in (shown, moved)
        )
        for panels, label, each, y_range, title in (
            (shares, "share of pixels", shown, (0, highest), f"class {name}"),
            (differences, "difference from clean", moved, (-largest or None, largest or None), ""),
        ):
            lines = [_line(*kinds[kind], share, is_dashed=kind[0] == "denoised") for kind, share in each.items()]
            panels.append(
                Panel("grey level", label, lines, title, y_scale="share", y_range=y_range, drawn="steps", level=0.0)
            )
    return lines_drawing("intensity-histograms", shares + differences, n_columns=len(shares))


def _line(name: str, style: int, values: "pd.Series[float]", is_dashed: bool) -> Line:
    """Return a line over the index of its values."""
    x, y = values.index.to_numpy(float), values.to_numpy(float)
    return Line(name, x, y, style, "dashed" if is_dashed else "solid")


def _distances(table: pd.DataFrame, point: Point, styles: dict[str, int]) -> Drawing:
    rows = table[table["attack"].isin([point.attack, CLEAN]) & (table["class"] == ALL)]
    panels = [
        over_eps(label, lines_by_purifier(rows[rows["metric"] == metric], styles), y_range=(0, None))
        for metric, (label, _) in METRICS.items()
    ]
    return lines_drawing("intensity-by-eps", panels)


def _spectrum(table: pd.DataFrame, point: Point, styles: dict[str, int]) -> Drawing:
    table = table[(table["surrogate"] == UNDEFENDED) & (table["frequency"] > 0)]
    shown = at_point(table, point).sort_values("frequency", kind="stable")
    kinds = {"clean images": CLEAN_STYLE, "perturbation": ATTACKED_STYLE}
    lines = []
    for names, rows in shown.groupby(["signal", "purifier"], sort=False):
        (signal, purifier), power = map(str, names), rows.set_index("frequency")["power"]
        name = f"perturbation, purified by {display_name(purifier)}" if purifier else signal
        lines.append(_line(name, styles[purifier] if purifier else kinds[signal], power, is_dashed=bool(purifier)))
    panel = Panel("frequency (cycles per pixel)", "power", lines, x_scale="frequency", y_scale="log", drawn="lines")
    return lines_drawing("spectrum", [panel])
