"""What purifiers restore of an attacked image."""

from typing import Any

import pandas as pd

from tasks.params import UNDEFENDED
from tasks.records.vocabulary import AS_GIVEN, CLEAN, spoken
from tasks.reporting.findings import Headline
from tasks.reporting.panels import Panel, over_eps
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
    plain,
    point_of,
    share,
)


def millionths(value: float) -> str:
    """A mean squared error of images in [0, 1] in units that need no zeros."""
    return plain(1e6 * value)


METRICS = {
    "mse": ("MSE · 10⁶", millionths),
    "psnr": ("PSNR, dB", fixed(1)),
    "ssim": ("SSIM", fixed(3)),
    "removed": ("perturbation removed", share),
    "recovery_correlation": ("distance and recovery, ρ", fixed(2)),
    "residual_correlation": ("residual and recovery, ρ", fixed(2)),
}
NOTE = (
    "A purifier is the part of a defence that changes the image before the classifier sees it. All distances are from "
    "the clean original. MSE: mean squared difference, images in [0, 1]. PSNR: the same on a logarithmic scale, in "
    "decibels, more is closer. SSIM: structural similarity, 1 means equal. Perturbation removed: share of its energy "
    "(sum of squares) that the purifier takes away; negative where it adds. ρ: rank correlation (Spearman) between "
    "whether an image's prediction is right again and its distance from the original, most of which is the purifier's "
    "own blur, or from the original as purified (the residual: what is left of the perturbation)."
)


def resilience_section(results: Results, headline: Headline) -> Section:
    """Distance of adversarial and denoised images from the originals, and what purifiers remove."""
    titles = ("resilience", "Resilience", "Resilience: what denoising restores")
    table = results.analysis.resilience
    point = point_of(table, headline)
    if point is None:
        return Section(*titles, "Reconstruction was not measured in this run.")
    drawings = _by_eps(table, point, headline.styles)
    tables = both_tables(point, "Means over the test images with 95 % intervals.", table, IMAGE_KEYS, METRICS)
    return Section(*titles, _answer(table, point), [NOTE], drawings, tables)


def _answer(table: pd.DataFrame, point: Point) -> str:
    at = point.of(table[table["surrogate"] == UNDEFENDED])
    mse = at[at["metric"] == "mse"].sort_values("value", kind="stable")
    adversarial, denoised = mse[mse["purifier"] == AS_GIVEN].iloc[0], mse[mse["purifier"] != AS_GIVEN]
    if denoised.empty:
        return "No defence of this run purifies images."
    best = denoised.iloc[0]
    closer = "neither clearly closer to nor farther from"
    closer = "farther from" if best["low"] > adversarial["high"] else closer
    closer = "closer to" if best["high"] < adversarial["low"] else closer
    among = f", nearest to the originals of {len(denoised)} purifiers," if len(denoised) > 1 else ""
    removed = at[(at["metric"] == "removed") & (at["purifier"] == best["purifier"])].iloc[0]
    return (
        f"Under {point} the images denoised by the {spoken(best['purifier'])}{among} are {closer} the originals than "
        f"the adversarial ones (MSE {estimate(best, millionths)} against {estimate(adversarial, millionths)} "
        f"millionths), while it removes {estimate(removed, share)} of the perturbation's energy."
    )


def _by_eps(table: pd.DataFrame, point: Point, styles: dict[str, int]) -> list[Drawing]:
    rows = table[table["attack"].isin([point.attack, CLEAN])]

    def panel(metric: str, label: str, **more: Any) -> Panel:
        return over_eps(label, lines_of_images(rows[rows["metric"] == metric], styles), **more)

    distances = lines_drawing(
        "resilience-by-eps",
        [panel("mse", "MSE", y_scale="log"), panel("psnr", "PSNR (dB)"), panel("ssim", "SSIM")],
        f"MSE, PSNR and SSIM against the clean originals by ε under {point.attack}",
        f"Distance from the clean originals. {DOTTED}",
    )
    if (rows["metric"] != "removed").all():
        return [distances]
    restored = lines_drawing(
        "resilience-restored",
        [
            panel("removed", "perturbation removed", y_scale="share"),
            panel("recovery_correlation", "distance and recovery, ρ", level=0.0),
            panel("residual_correlation", "residual and recovery, ρ", level=0.0),
        ],
        "Share of the perturbation that purifiers remove, and how distance and residual go with recovery, by ε",
        "What purifiers take away of the perturbation, and whether what is left goes with predictions that are right "
        "again.",
    )
    return [distances, restored]
