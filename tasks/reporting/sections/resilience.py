"""What the autoencoder restores of an attacked image."""

from typing import Any

import pandas as pd

from tasks.evaluation.records import CLEAN
from tasks.reporting.findings import Headline
from tasks.reporting.panels import Panel, over_eps
from tasks.reporting.results import Results
from tasks.reporting.sections.section import (
    Drawing,
    Point,
    Section,
    estimate,
    fixed,
    lines_drawing,
    lines_of_images,
    metrics_table,
    plain,
    point_of,
    share,
)


def millionths(value: float) -> str:
    """A mean squared error of images in [0, 1] in units that need no zeros."""
    return plain(1e6 * value)


DISTANCES = {"mse": ("MSE · 10⁶", millionths), "psnr": ("PSNR, dB", fixed(1)), "ssim": ("SSIM", fixed(3))}
RESTORED = {"removed": ("perturbation removed", share), "recovery_correlation": ("goes with recovery, ρ", fixed(2))}
KEYS = {"surrogate": "crafted on", "attack": "attack", "eps": "ε in 1/255", "images": "images"}


def resilience_section(results: Results, headline: Headline) -> Section:
    """Distance of adversarial and denoised images from the originals, and what the autoencoder removes."""
    table = results.analysis.resilience
    point = point_of(table, headline)
    section = Section("resilience", "Resilience", "Resilience: what the autoencoder restores", _answer(table, point))
    section.notes.append(
        "All distances are from the clean original. MSE: mean squared difference, images in [0, 1]. PSNR: the same on "
        "a logarithmic scale, in decibels, more is closer. SSIM: structural similarity, 1 means equal. Perturbation "
        "removed: share of its energy (sum of squares) that the autoencoder takes away; negative where it adds. ρ: "
        "rank correlation (Spearman) between an image's reconstruction loss and whether its prediction is right again."
    )
    if point:
        section.drawings.extend(_by_eps(table, point))
        shown = pd.concat([table[table["attack"] == CLEAN], point.of(table)])
        caption = "Means over the test images with 95 % intervals."
        section.tables.extend(
            [
                metrics_table(f"Under {point}. {caption}", shown, KEYS, DISTANCES | RESTORED),
                metrics_table(f"Every ε. {caption}", table, KEYS, DISTANCES | RESTORED, is_folded=True),
            ]
        )
    return section


def _answer(table: pd.DataFrame, point: Point | None) -> str:
    if point is None:
        return "The autoencoder's reconstruction was not measured in this run."
    at = point.of(table)
    at = at[at["surrogate"] == at["surrogate"].iloc[0]]
    mse = at[at["metric"] == "mse"].set_index("images")
    answer = f"Under {point} the denoised images are"
    if {"adversarial", "denoised"} <= set(mse.index):
        adversarial, denoised = (mse.loc[images] for images in ("adversarial", "denoised"))
        closer = "neither clearly closer to nor farther from"
        closer = "farther from" if denoised["low"] > adversarial["high"] else closer
        closer = "closer to" if denoised["high"] < adversarial["low"] else closer
        answer += (
            f" {closer} the originals than the adversarial ones (MSE {estimate(denoised, millionths)} against "
            f"{estimate(adversarial, millionths)} millionths)"
        )
    removed = at[at["metric"] == "removed"]
    if len(removed):
        answer += f", while the autoencoder removes {estimate(removed.iloc[0], share)} of the perturbation's energy"
    return f"{answer}."


def _by_eps(table: pd.DataFrame, point: Point) -> list[Drawing]:
    rows = table[table["attack"].isin([point.attack, CLEAN])]

    def panel(metric: str, label: str, **more: Any) -> Panel:
        return over_eps(label, lines_of_images(rows[rows["metric"] == metric]), **more)

    return [
        lines_drawing(
            "resilience-by-eps",
            [panel("mse", "MSE", y_scale="log"), panel("psnr", "PSNR (dB)"), panel("ssim", "SSIM")],
            f"MSE, PSNR and SSIM against the clean originals by ε under {point.attack}",
            "Distance from the clean originals. Bands are 95 % intervals; at ε = 0 the clean images behind the "
            "autoencoder.",
        ),
        lines_drawing(
            "resilience-restored",
            [
                panel("removed", "perturbation removed", y_scale="share"),
                panel("recovery_correlation", "loss and recovery, ρ", level=0.0),
            ],
            "Share of the perturbation that the autoencoder removes, and its correlation with recovery, by ε",
            "What the autoencoder takes away of the perturbation, and whether that goes with predictions that are "
            "right again.",
        ),
    ]
