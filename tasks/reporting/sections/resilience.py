"""Effect of the purifiers: distance of adversarial and purified images to the clean images."""

from typing import Any

import pandas as pd

from tasks.outcomes.names import AS_GIVEN, display_name
from tasks.params import UNDEFENDED
from tasks.records.vocabulary import CLEAN
from tasks.reporting.drawings import Drawing, lines_drawing
from tasks.reporting.formats import estimate, fixed, plain
from tasks.reporting.headline import Headline
from tasks.reporting.names import attack_name
from tasks.reporting.panels import Panel, lines_by_purifier, over_eps
from tasks.reporting.results import Results
from tasks.reporting.section import Point, Section, point_of, relation_of
from tasks.reporting.tables import IMAGE_KEYS, at_point, metrics_table
from tasks.statistics.formatting import percent


def millionths(value: float) -> str:
    """Format a mean squared error of images in [0, 1] in units of 10⁻⁶."""
    return plain(1e6 * value)


METRICS = {
    "mse": ("MSE · 10⁶", millionths),
    "psnr": ("PSNR (dB)", fixed(1)),
    "ssim": ("SSIM", fixed(3)),
    "removed_energy_fraction": ("perturbation removed", percent),
    "recovery_correlation": ("ρ of distance and recovery", fixed(2)),
    "residual_correlation": ("ρ of residual and recovery", fixed(2)),
}


def resilience_section(results: Results, headline: Headline) -> Section:
    """Return the distance to the clean images by eps, and the share of the perturbation that purifiers remove."""
    key, title = "resilience", "Effect of the purifiers (resilience)"
    table = results.resilience
    point = point_of(table, headline)
    if point is None:
        return Section(key, title, {"point": None})
    values = {
        "point": point,
        "attack": attack_name(point.attack),
        **_effect(table, point),
        "table": metrics_table(at_point(table, point), IMAGE_KEYS, METRICS),
        "all_rows": metrics_table(table, IMAGE_KEYS, METRICS),
    }
    return Section(key, title, values, _drawings(table, point, headline.styles))


def _effect(table: pd.DataFrame, point: Point) -> dict[str, Any]:
    """Return the purifier whose images are nearest to the clean ones, compared with the adversarial images."""
    at = point.of(table[table["surrogate"] == UNDEFENDED])
    mse = at[at["metric"] == "mse"].sort_values("value", kind="stable")
    adversarial, purified = mse[mse["purifier"] == AS_GIVEN].iloc[0], mse[mse["purifier"] != AS_GIVEN]
    if purified.empty:
        return {"purifier": None}
    best = purified.iloc[0]
    removed = at[(at["metric"] == "removed_energy_fraction") & (at["purifier"] == best["purifier"])].iloc[0]
    return {
        "purifier": display_name(best["purifier"]),
        "n_purifiers": len(purified),
        "relation": relation_of(best, adversarial, "closer to", "farther from", "as far from"),
        "purified_mse": estimate(best, millionths),
        "adversarial_mse": estimate(adversarial, millionths),
        "removed": estimate(removed, percent),
    }


def _drawings(table: pd.DataFrame, point: Point, styles: dict[str, int]) -> list[Drawing]:
    rows = table[table["attack"].isin([point.attack, CLEAN])]

    def panel(metric: str, label: str, **more: Any) -> Panel:
        return over_eps(label, lines_by_purifier(rows[rows["metric"] == metric], styles), **more)

    distances = lines_drawing(
        "resilience-by-eps", [panel("mse", "MSE", y_scale="log"), panel("psnr", "PSNR (dB)"), panel("ssim", "SSIM")]
    )
    if (rows["metric"] != "removed_energy_fraction").all():
        return [distances]
    restored = lines_drawing(
        "resilience-restored",
        [
            panel("removed_energy_fraction", "perturbation removed", y_scale="share"),
            panel("recovery_correlation", "ρ of distance and recovery", level=0.0),
            panel("residual_correlation", "ρ of residual and recovery", level=0.0),
        ],
    )
    return [distances, restored]
