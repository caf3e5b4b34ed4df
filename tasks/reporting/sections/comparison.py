"""Comparison of the targets under the worst case of all attacks, with ranks, tests, cost and checks."""

import math
from typing import Any

import numpy as np
import pandas as pd

from tasks.params import UNDEFENDED
from tasks.records.vocabulary import display_name
from tasks.reporting.drawings import Drawing, lines_drawing
from tasks.reporting.formats import estimate, number, p_text, plain
from tasks.reporting.headline import Headline
from tasks.reporting.panels import Line, line_over_eps, over_eps
from tasks.reporting.results import Results
from tasks.reporting.section import Section
from tasks.reporting.tables import Table
from tasks.statistics.formatting import eps_text, percent, with_interval

ALPHA = 0.05
"""Significance level of McNemar's test."""
MAX_LINES = 7
"""Maximum number of lines in a figure: the number of colours."""
BOUNDS = ("", "_low", "_high")


def comparison_section(results: Results, headline: Headline) -> Section:
    """Return the targets ranked by worst-case accuracy under adaptive attacks at the headline's eps."""
    at_eps = results.comparison[results.comparison["eps"] == headline.eps]
    ranked = at_eps[at_eps["threat_model"] == "adaptive"]
    drawn = _drawn_targets(ranked)
    best = ranked.iloc[0]
    is_certified = len(results.certified_accuracy) > 0
    values: dict[str, Any] = {
        "eps": headline.eps,
        "n": int(ranked["n"].iloc[0]),
        "n_targets": len(ranked),
        "best": best,
        "p_text": None if pd.isna(best["p_value"]) else p_text(best["p_value"]),
        "is_significant": best["p_value"] < ALPHA,
        "n_drawn": len(drawn),
        "has_certified_lines": bool(results.certified_accuracy["target"].isin(drawn).any()),
        "ranking": _ranking(at_eps),
        "minimum_perturbation": _minimum_perturbation_table(results.minimum_perturbation, ranked),
        "certified": _certified_table(results.certified_accuracy) if is_certified else None,
        "everywhere": _every_point(results.comparison),
    }
    drawings = [_worst_case_drawing(results, drawn, headline), _minimum_perturbation_drawing(results, drawn, headline)]
    return Section("comparison", "Comparison of the targets", values, drawings)


def next_target_text(row: "pd.Series[float]") -> str:
    """Comparison with the next target in rank: images correct only here, only there, and McNemar's p-value."""
    if pd.isna(row["p_value"]):
        return "–"
    return f"{row['n_only_this_correct']:.0f} : {row['n_only_next_correct']:.0f}, {p_text(row['p_value'])}"


def size_text(value: float) -> str:
    """Size of a perturbation in units of 1/255; infinite: larger than the grid."""
    return "above the grid" if math.isinf(value) else plain(value)


def checks_text(row: "pd.Series[float]") -> str:
    """Number of checks of a target that fail or warn: ``1 FAIL, 2 WARN``."""
    counts = {status: int(row[f"n_{status.lower()}"]) for status in ("FAIL", "WARN")}
    return ", ".join(f"{n} {status}" for status, n in counts.items() if n) or "all pass"


def _drawn_targets(ranked: pd.DataFrame) -> list[str]:
    """Return the first targets in rank, and always the undefended classifier."""
    drawn = list(ranked["target"][:MAX_LINES])
    if UNDEFENDED not in drawn:
        drawn[-1] = UNDEFENDED
    return drawn


def _ranking(at_eps: pd.DataFrame) -> Table:
    by_threat_model = {str(threat): rows for threat, rows in at_eps.groupby("threat_model", sort=False)}
    ranked = by_threat_model.pop("adaptive")
    others = {threat: rows.set_index("target") for threat, rows in by_threat_model.items()}
    rows = []
    for _, row in ranked.iterrows():
        target = row["target"]
        under_others = [
            with_interval(rows.loc[target], "robust_accuracy") if target in rows.index else "–"
            for rows in others.values()
        ]
        rows.append(
            [
                f"{row['rank']}. {display_name(target)}",
                with_interval(row, "clean_accuracy"),
                *under_others,
                with_interval(row, "robust_accuracy"),
                next_target_text(row),
                f"{row['n_parameters'] / 1e6:.2f} M",
                f"{row['multiply_adds'] / 1e6:.0f} M",
                checks_text(row),
            ]
        )
    head = ["target", "clean", *map(display_name, others), "adaptive", "next target", "parameters", "multiply-adds"]
    return Table([*head, "checks"], rows)


def _worst_case_drawing(results: Results, drawn: list[str], headline: Headline) -> Drawing:
    table, certified = results.comparison, results.certified_accuracy
    lines = []
    for target in drawn:
        points = table[(table["target"] == target) & (table["threat_model"] == "adaptive")]
        clean = points.iloc[:1].assign(
            eps=0.0, **{f"robust_accuracy{end}": points[f"clean_accuracy{end}"] for end in BOUNDS}
        )
        style = headline.styles[target]
        lines.append(line_over_eps(display_name(target), pd.concat([clean, points]), "robust_accuracy", style))
        of_target = certified[certified["target"] == target]
        if len(of_target):
            lines.append(line_over_eps(f"{display_name(target)}, certified", of_target, "accuracy", style, "dashed"))
    panel = over_eps("worst-case accuracy", lines, y_scale="share", y_range=(-0.02, 1.02))
    return lines_drawing("defences-worst", [panel], is_interactive=True)


def _minimum_perturbation_drawing(results: Results, drawn: list[str], headline: Headline) -> Drawing:
    by_image = results.minimum_eps.groupby(["target", "image"])["minimum_perturbation"].min()
    grid = tuple(sorted(results.comparison["eps"].unique()))
    lines = []
    for target in drawn:
        sizes = np.sort(by_image[target][by_image[target] > 0])
        if not len(sizes):
            continue
        within = sizes[sizes <= grid[-1]]
        unbroken = 1 - np.arange(len(within) + 1) / len(sizes)
        # a step function: an image counts as unbroken below its own minimum
        x = np.append(np.repeat([0, *within], 2)[1:], grid[-1])
        lines.append(Line(display_name(target), x, np.repeat(unbroken, 2), headline.styles[target]))
    panel = over_eps("images not broken", lines, y_scale="share", y_range=(-0.02, 1.02), drawn="lines", ticks=grid)
    return lines_drawing("defences-minimum-perturbation", [panel])


def _minimum_perturbation_table(minimum: pd.DataFrame, ranked: pd.DataFrame) -> Table:
    by_target = minimum.set_index("target")
    rows = []
    for target in ranked["target"]:
        row = by_target.loc[target]
        quartiles = [size_text(row["q25"]), estimate(row, size_text, "median"), size_text(row["q75"])]
        rows.append([display_name(target), f"{row['n']:.0f}", *quartiles, number(row["unbroken_fraction"], percent)])
    return Table(["target", "n", "first quartile", "median", "third quartile", "not broken"], rows)


def _certified_table(certified: pd.DataFrame) -> Table:
    rows = [
        [display_name(str(target)), f"{rows['n'].iloc[0]}", *(with_interval(row) for _, row in rows.iterrows())]
        for target, rows in certified.groupby("target", sort=False)
    ]
    return Table(["target", "n", *(f"ε = {eps_text(eps)}/255" for eps in sorted(certified["eps"].unique()))], rows)


def _every_point(table: pd.DataFrame) -> Table:
    rows = [
        [
            display_name(row["target"]),
            display_name(row["threat_model"]),
            eps_text(row["eps"]),
            str(row["rank"]),
            with_interval(row, "clean_accuracy"),
            with_interval(row, "robust_accuracy"),
            next_target_text(row),
        ]
        for _, row in table.iterrows()
    ]
    head = ["target", "threat model", "ε in 1/255", "rank", "clean accuracy", "worst-case accuracy", "next target"]
    return Table(head, rows)
