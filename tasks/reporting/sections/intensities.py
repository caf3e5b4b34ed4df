"""What attacks and purifiers do to the grey levels, and at which fineness."""

import pandas as pd

from tasks.params import UNDEFENDED
from tasks.records.vocabulary import AS_GIVEN, CLEAN, spoken
from tasks.reporting import pictures
from tasks.reporting.examples import UnderAttack, by_purifier, shared_out
from tasks.reporting.findings import Headline, attack_name
from tasks.reporting.panels import ATTACKED_STYLE, CLEAN_STYLE, Line, Panel, over_eps
from tasks.reporting.results import Results
from tasks.reporting.sections.section import (
    DOTTED,
    IMAGE_KEYS,
    Drawing,
    Point,
    Section,
    both_tables,
    estimate,
    fixed,
    lines_drawing,
    lines_of_images,
    picture_drawings,
    point_of,
)
from tasks.statistics.formatting import eps_text

ALL = "all"
MAX_CLASSES = 3
"""Classes whose histograms are drawn, at most."""
METRICS = {"wasserstein": ("Wasserstein, grey levels", fixed(2)), "ks": ("Kolmogorov-Smirnov", fixed(3))}
KEYS = IMAGE_KEYS | {"class": "class"}
NOTE = (
    "Wasserstein distance: how far the grey levels have to be moved on average to turn one distribution into the "
    "other, of 255. Kolmogorov-Smirnov: the largest gap between the two cumulative distributions, from 0 to 1. "
    "Both compare distributions, not single pixels: they are small when as many pixels got lighter as darker."
)


def intensities_section(results: Results, headline: Headline) -> Section:
    """Histograms by class, distances of distributions by ε, and power spectra."""
    titles = ("intensities", "Intensities", "Pixel intensities")
    analysis, styles = results.analysis, headline.styles
    table = analysis.intensity
    point = point_of(table, headline)
    if point is None:
        return Section(*titles, "Grey levels were not compared in this run.")
    drawings = [
        *_differences(analysis.examples),
        _histograms(analysis.intensity_histograms, point, styles),
        _by_eps(table, point, styles),
        _spectrum(analysis.spectrum, point, styles),
    ]
    caption = "Distance of the grey levels from those of the clean images, with 95 % intervals."
    tables = both_tables(point, caption, table, KEYS, METRICS, brief=table[table["class"] == ALL])
    return Section(*titles, _answer(table, point), [NOTE], drawings, tables)


def _differences(shown: UnderAttack) -> list[Drawing]:
    differences = shown.differences
    parts = shared_out(by_purifier(differences, n_first=1))
    return picture_drawings(
        "differences",
        [pictures.image_grid(differences.part(columns)) for columns in parts],
        f"Differences between images of {', '.join(differences.rows)}: {', '.join(differences.columns)}",
        "What differs, amplified about mid grey by the factor above it: the perturbation "
        f"({attack_name(shown.attack)} at ε = {eps_text(shown.eps)}/255); what a purifier does to the clean image; and "
        "what is left of the perturbation behind it.",
    )


def _answer(table: pd.DataFrame, point: Point) -> str:
    rows = table[(table["class"] == ALL) & (table["metric"] == "wasserstein") & (table["surrogate"] == UNDEFENDED)]
    attacked = point.of(rows)
    adversarial = attacked[attacked["purifier"] == AS_GIVEN].iloc[0]
    answer = (
        f"{point} shifts the distribution of grey levels by {estimate(adversarial, fixed(2))} of 255 levels "
        "(Wasserstein distance)"
    )
    denoised = rows[rows["attack"] == CLEAN].sort_values("value", kind="stable")
    if denoised.empty:
        return f"{answer}."
    least = denoised.iloc[0]
    compared = "more than" if adversarial["low"] > least["high"] else "about as much as"
    compared = "less than" if adversarial["high"] < least["low"] else compared
    among = f", the gentlest of {len(denoised)} purifiers," if len(denoised) > 1 else ""
    return (
        f"{answer}, {compared} the {spoken(least['purifier'])}{among} shifts clean images: {estimate(least, fixed(2))}."
    )


def _kinds(purifiers: pd.Series, styles: dict[str, int]) -> dict[tuple[str, str], tuple[str, int]]:
    """Kinds of images by (kind, purifier), in the order of legends, each with its name and style."""
    kinds = {("clean", AS_GIVEN): ("clean", CLEAN_STYLE), ("adversarial", AS_GIVEN): ("adversarial", ATTACKED_STYLE)}
    named = {("denoised", name): (f"denoised by {spoken(name)}", styles[name]) for name in purifiers.unique() if name}
    return kinds | named


def _histograms(table: pd.DataFrame, point: Point, styles: dict[str, int]) -> Drawing:
    """A column a class; above the shares, below their difference from the clean images'."""
    table = table[table["surrogate"] == UNDEFENDED]
    table = pd.concat([table[table["images"] == CLEAN], point.of(table)])
    kinds = _kinds(table["purifier"], styles)
    shares: list[Panel] = []
    differences: list[Panel] = []
    classes = [name for name in table["class"].unique() if name != ALL]
    for name in classes[:MAX_CLASSES]:
        of_class = table[table["class"] == name].set_index("level").groupby(["images", "purifier"])["share"]
        found = {kind: share.sort_index() for kind, share in of_class}
        shown = {kind: found[kind] for kind in kinds if kind in found}
        moved = {kind: share - shown[CLEAN, AS_GIVEN] for kind, share in shown.items() if kind != (CLEAN, AS_GIVEN)}
        highest, largest = (
            1.15 * max(float(share.iloc[1:-1].abs().max()) for share in each.values()) for each in (shown, moved)
        )
        for panels, label, each, y_range, title in (
            (shares, "share of the pixels", shown, (0, highest), f"class {name}"),
            (differences, "difference from clean", moved, (-largest or None, largest or None), ""),
        ):
            lines = [_line(*kinds[kind], share, dashed=kind[0] == "denoised") for kind, share in each.items()]
            panels.append(
                Panel("grey level", label, lines, title, y_scale="share", y_range=y_range, drawn="steps", level=0.0)
            )
    return lines_drawing(
        "intensity-histograms",
        shares + differences,
        f"Histograms of grey levels by class: clean, adversarial and denoised, {point}",
        f"Grey levels of all test images, {point}, crafted on the bare classifier. Above: shares of the pixels; "
        "below: adversarial or denoised minus clean. Black and white may rise out of the picture.",
        n_columns=len(shares),
    )


def _line(name: str, style: int, values: "pd.Series[float]", dashed: bool) -> Line:
    """A line over the index of its values."""
    return Line(name, values.index.to_numpy(float), values.to_numpy(float), style, "dashed" if dashed else "solid")


def _by_eps(table: pd.DataFrame, point: Point, styles: dict[str, int]) -> Drawing:
    rows = table[table["attack"].isin([point.attack, CLEAN]) & (table["class"] == ALL)]
    panels = [
        over_eps(label, lines_of_images(rows[rows["metric"] == metric], styles), y_range=(0, None))
        for metric, (label, _) in METRICS.items()
    ]
    return lines_drawing(
        "intensity-by-eps",
        panels,
        f"Wasserstein and Kolmogorov-Smirnov distance of grey levels against ε under {point.attack}",
        f"Distance of the grey levels from those of the clean images. {DOTTED}",
    )


def _spectrum(table: pd.DataFrame, point: Point, styles: dict[str, int]) -> Drawing:
    table = table[(table["surrogate"] == UNDEFENDED) & (table["frequency"] > 0)]
    shown = pd.concat([table[table["attack"] == CLEAN], point.of(table)]).sort_values("frequency", kind="stable")
    kinds = {"clean images": CLEAN_STYLE, "perturbation": ATTACKED_STYLE}
    lines = []
    for names, rows in shown.groupby(["of", "purifier"], sort=False):
        (of, purifier), power = map(str, names), rows.set_index("frequency")["power"]
        name = f"perturbation, denoised by {spoken(purifier)}" if purifier else of
        lines.append(_line(name, styles[purifier] if purifier else kinds[of], power, dashed=bool(purifier)))
    panel = Panel("frequency (cycles per pixel)", "power", lines, x_scale="frequency", y_scale="log", drawn="lines")
    return lines_drawing(
        "spectrum",
        [panel],
        f"Power by spatial frequency of clean images, of the perturbation, and of what purifiers leave of it, {point}",
        f"Where in fineness the perturbation lives, {point}: power by spatial frequency, coarse structures left, the "
        "finest right; both axes are logarithmic. Dashed: what is left of the perturbation behind a purifier.",
    )
