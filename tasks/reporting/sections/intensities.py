"""What attack and autoencoder do to the grey levels, and at which fineness."""

import numpy as np
import pandas as pd

from tasks.evaluation.records import CLEAN
from tasks.reporting import figures
from tasks.reporting.findings import Headline
from tasks.reporting.panels import DASHES, Line, Panel, over_eps
from tasks.reporting.results import Results
from tasks.reporting.sections.section import (
    IMAGES,
    Drawing,
    Point,
    Section,
    estimate,
    fixed,
    lines_drawing,
    lines_of_images,
    metrics_table,
    point_of,
)

ALL = "all"
METRICS = {"wasserstein": ("Wasserstein, grey levels", fixed(2)), "ks": ("Kolmogorov-Smirnov", fixed(3))}
KEYS = {"surrogate": "crafted on", "attack": "attack", "eps": "ε in 1/255", "images": "images", "class": "class"}
STYLES = {CLEAN: 0, "adversarial": 4, "denoised": 2}
SPECTRA = {"clean images": 0, "perturbation": 4, "perturbation, denoised": 2}


def intensities_section(results: Results, headline: Headline) -> Section:
    """Histograms by class, distances of distributions by ε, and power spectra."""
    table = results.analysis.intensity
    point = point_of(table, headline)
    section = Section("intensities", "Intensities", "Pixel intensities", _answer(table, point))
    section.notes.append(
        "Wasserstein distance: how far the grey levels have to be moved on average to turn one distribution into the "
        "other, of 255. Kolmogorov-Smirnov: the largest gap between the two cumulative distributions, from 0 to 1. "
        "Both compare distributions, not single pixels: they are small when as many pixels got lighter as darker."
    )
    section.drawings.append(_differences(results.analysis.examples))
    histograms, spectrum = results.analysis.intensity_histograms, results.analysis.spectrum
    if at := point_of(histograms, headline):
        section.drawings.append(_histograms(histograms, at))
    if point:
        section.drawings.append(_by_eps(table, point))
    if at := point_of(spectrum, headline):
        section.drawings.append(_spectrum(spectrum, at))
    if point:
        caption = "Distance of the grey levels from those of the clean images, with 95 % intervals."
        of_clean = table[table["attack"] == CLEAN]
        shown = pd.concat([of_clean, point.of(table)])
        section.tables.extend(
            [
                metrics_table(f"Under {point}. {caption}", shown[shown["class"] == ALL], KEYS, METRICS),
                metrics_table(f"Every ε and class. {caption}", table, KEYS, METRICS, is_folded=True),
            ]
        )
    return section


def _differences(shown: dict[str, np.ndarray]) -> Drawing:
    rows, columns = shown["rows"].tolist(), shown["difference_columns"].tolist()
    return Drawing(
        f"{IMAGES}differences",
        figures.image_grid(shown["differences"], rows, columns, []),
        f"Differences between images of {', '.join(rows)}: {', '.join(columns)}",
        "What differs, amplified about mid grey by the factor above it: the perturbation; what the autoencoder does to "
        "the clean image; and what is left of the perturbation behind the autoencoder.",
    )


def _answer(table: pd.DataFrame, point: Point | None) -> str:
    if point is None:
        return "Grey levels were not compared in this run."
    rows = table[(table["class"] == ALL) & (table["metric"] == "wasserstein")]
    rows = rows[rows["surrogate"] == rows["surrogate"].iloc[0]]
    attacked = point.of(rows)
    adversarial = attacked[attacked["images"] == "adversarial"].iloc[0]
    answer = (
        f"{point} shifts the distribution of grey levels by {estimate(adversarial, fixed(2))} of 255 levels "
        "(Wasserstein distance)"
    )
    denoised = rows[(rows["attack"] == CLEAN) & (rows["images"] == "denoised")]
    if denoised.empty:
        return f"{answer}."
    reference = denoised.iloc[0]
    compared = "more than" if adversarial["low"] > reference["high"] else "about as much as"
    compared = "less than" if adversarial["high"] < reference["low"] else compared
    return f"{answer}, {compared} the autoencoder shifts clean images: {estimate(reference, fixed(2))}."


def _histograms(table: pd.DataFrame, point: Point) -> Drawing:
    """A column a class; above the shares, below their difference from the clean images'."""
    table = table[(table["images"] == CLEAN) | ((table["attack"] == point.attack) & (table["eps"] == point.eps))]
    surrogate = table["surrogate"].iloc[0]
    table = table[table["surrogate"] == surrogate].drop_duplicates(["images", "class", "level"])
    shares, differences = [], []
    classes = [name for name in table["class"].unique() if name != ALL] or [ALL]
    for name in classes[:3]:
        of_class = table[table["class"] == name]
        wide = of_class.pivot(index="level", columns="images", values="share").sort_index()
        shown = [images for images in STYLES if images in wide]
        shares.append(
            Panel(
                "grey level",
                "share of the pixels",
                [_line(images, wide[images]) for images in shown],
                title=f"class {name}",
                y_scale="share",
                y_range=(0, float(wide.iloc[1:-1].to_numpy().max()) * 1.15),
                drawn="steps",
            )
        )
        moved = {images: wide[images] - wide[CLEAN] for images in shown if images != CLEAN}
        largest = 1.15 * max((float(each.iloc[1:-1].abs().max()) for each in moved.values()), default=0.0)
        differences.append(
            Panel(
                "grey level",
                "difference from clean",
                [_line(images, each) for images, each in moved.items()],
                y_scale="share",
                y_range=(-largest or None, largest or None),
                drawn="steps",
                level=0.0,
            )
        )
    return lines_drawing(
        "intensity-histograms",
        shares + differences,
        f"Histograms of grey levels by class: clean, adversarial and denoised, {point}",
        f"Grey levels of all test images, {point}, crafted on the target {surrogate}. Above: shares of the pixels; "
        "below: adversarial or denoised minus clean. Black and white may rise out of the picture.",
        n_columns=len(shares),
    )


def _line(images: str, shares: "pd.Series[float]") -> Line:
    dash = DASHES[images == "denoised"]
    return Line(images, shares.index.to_numpy(float), shares.to_numpy(float), STYLES[images], dash)


def _by_eps(table: pd.DataFrame, point: Point) -> Drawing:
    rows = table[table["attack"].isin([point.attack, CLEAN]) & (table["class"] == ALL)]
    panels = []
    for metric, (label, _) in METRICS.items():
        panels.append(over_eps(label, lines_of_images(rows[rows["metric"] == metric]), y_range=(0, None)))
    return lines_drawing(
        "intensity-by-eps",
        panels,
        f"Wasserstein and Kolmogorov-Smirnov distance of grey levels against ε under {point.attack}",
        "Distance of the grey levels from those of the clean images. Bands are 95 % intervals; at ε = 0: the clean "
        "images behind the autoencoder.",
    )


def _spectrum(table: pd.DataFrame, point: Point) -> Drawing:
    at = pd.concat([table[table["attack"] == CLEAN], point.of(table)])
    at = at[at["surrogate"] == at["surrogate"].iloc[0]]
    lines = []
    for of, style in SPECTRA.items():
        rows = at[(at["of"] == of) & (at["frequency"] > 0)].sort_values("frequency")
        if len(rows):
            dash = DASHES[of.endswith("denoised")]
            lines.append(Line(of, rows["frequency"].to_numpy(float), rows["power"].to_numpy(float), style, dash))
    panel = Panel("frequency (cycles per pixel)", "power", lines, x_scale="frequency", y_scale="log", drawn="lines")
    return lines_drawing(
        "spectrum",
        [panel],
        f"Power by spatial frequency of clean images, of the perturbation, and of what the autoencoder leaves, {point}",
        f"Where in fineness the perturbation lives, {point}: power by spatial frequency, coarse structures left, the "
        "finest right; both axes are logarithmic. Dashed: what is left of the perturbation behind the autoencoder.",
    )
