"""Accuracy under attack: a curve for each target, threat model and attack, and the area under the curves."""

from collections.abc import Sequence

import pandas as pd

from tasks.attacks.effort import EFFORTS
from tasks.outcomes.names import display_name
from tasks.records.vocabulary import SQUARE_ON_SURVIVORS, SUITE
from tasks.reporting.curves import attacks_of, curves_under, eps_of
from tasks.reporting.drawings import lines_drawing
from tasks.reporting.formats import estimate, number
from tasks.reporting.headline import Headline
from tasks.reporting.names import attack_name, curve_name
from tasks.reporting.panels import Line, Panel, dash_of, line_over_eps, over_eps
from tasks.reporting.results import Results
from tasks.reporting.section import Section, span_of
from tasks.reporting.tables import Table, key_text
from tasks.statistics.formatting import eps_text, percent, with_interval

POINT_KEYS = {
    "target": "target",
    "threat_model": "threat model",
    "surrogate": "surrogate",
    "attack": "attack",
    "eps": "ε in 1/255",
}
"""Key columns of a point of a curve, with their heads."""
METRICS = {
    "accuracy_8bit": "accuracy, rounded",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "top1_error": "top-1 error",
    "mean_entropy": "entropy",
    "mean_margin": "margin",
    "mean_linf": "L∞",
    "mean_l2": "L2",
    "mean_reconstruction_error": "reconstruction error",
}
"""Columns of the robustness table without an interval -> their heads."""


def accuracy_section(results: Results, headline: Headline) -> Section:
    """Return accuracy curves and tables by attack, the area under the curves, and all metrics."""
    table, area = results.robustness, results.robustness_area
    attacks = attacks_of(table)
    settings = results.params.attack
    n_queries = sum(stage.square_queries for stage in EFFORTS[settings.effort])
    of_analysed = area[area["attack"] == headline.analysed_attack]
    values = {
        "norm": table["norm"].iloc[0],
        "attacks": attacks,
        "curve_names": {attack: [curve.name for curve in curves_under(table, attack)] for attack in attacks},
        "tables": {attack: accuracy_table(table, attack) for attack in attacks},
        "minimum_eps": eps_of(table)[0],
        "effort": settings.effort,
        "square_queries": n_queries,
        "max_square_queries": n_queries * len(settings.eps),
        "survivors": survivors_table(results.minimum_eps, eps_of(table), headline.without_black_box_power),
        "area": _area_table(area),
        "area_span": None if of_analysed.empty else span_of(of_analysed, percent),
        "all_metrics": _all_metrics(table, headline.recalls),
        "surrogates": [
            f"{row['name']} ({row['architecture']}, validation accuracy {number(row['validation_accuracy'], percent)}, "
            f"{'power' if results.metrics['surrogate_has_power'].get(row['name']) else 'no power'})"
            for row in results.surrogates
        ],
        "positive_class": results.data.classes[results.data.positive],
    }
    drawings = [
        lines_drawing(f"robustness-{attack}", [robustness_panel(table, attack, headline.styles)], is_interactive=True)
        for attack in attacks
    ]
    return Section("accuracy", "Accuracy under each attack", values, drawings)


def accuracy_table(table: pd.DataFrame, attack: str) -> Table:
    """Return the accuracy under one attack: one row for each eps (0: clean), columns for each curve.

    Beside the accuracy of a curve is the accuracy after rounding the images to 8 bits. The searches do not measure it.
    """
    curves = curves_under(table, attack)
    rounded = [curve.rows["accuracy_8bit"].iloc[1:].notna().any() for curve in curves]
    head, rows = ["ε in 1/255"], [[f"{eps_text(eps)}{'' if eps else ' (clean)'}"] for eps in [0.0, *eps_of(table)]]
    for curve, has_8bit in zip(curves, rounded, strict=True):
        head += [curve.name, *(["rounded"] if has_8bit else [])]
        for eps, cells in zip([0.0, *eps_of(table)], rows, strict=True):
            row = curve.at(eps)
            cells += [with_interval(row), *([estimate(row, percent, "accuracy_8bit")] if has_8bit else [])]
    return Table(head, rows)


def survivors_table(minimum_eps: pd.DataFrame, grid: list[float], without_power: Sequence[str] = ()) -> Table:
    """Return the number of images that survive the suite and the number of these that Square breaks, at each eps.

    Args:
        minimum_eps: smallest eps that breaks each image, by target, operating point and attack.
        grid: eps of the columns, rising.
        without_power: targets whose check ``black_box`` has no power.
    """
    points = ["target", "operating_point"]
    searches = minimum_eps[minimum_eps["attack"].isin([SUITE, SQUARE_ON_SURVIVORS])]
    by_image = searches.pivot(index=[*points, "image"], columns="attack", values="minimum_eps")
    rows = []
    if SQUARE_ON_SURVIVORS in by_image:
        for target, point in searches[points].drop_duplicates().itertuples(index=False, name=None):
            found = by_image.loc[(target, point)]
            survives = [found[SUITE] > eps for eps in grid]
            is_broken = [found[SQUARE_ON_SURVIVORS] <= eps for eps in grid]
            counts = [f"{(s & b).sum()} of {s.sum()}" for s, b in zip(survives, is_broken, strict=True)]
            power = "no power" if target in without_power else "–"
            rows.append([display_name(target), display_name(point), power, *counts])
    head = ["target", "operating point", "check of black-box attacks"]
    return Table([*head, *(f"ε = {eps_text(eps)}/255" for eps in grid)], rows)


def robustness_panel(table: pd.DataFrame, attack: str, styles: dict[str, int]) -> Panel:
    """Return the panel of accuracy against eps under one attack.

    Args:
        table: robustness table.
        attack: name in the table.
        styles: style of each target.
    """
    lines = quantity_lines(table, attack, "accuracy", styles)
    return over_eps(f"accuracy under {attack_name(attack)}", lines, y_scale="share", y_range=(-0.02, 1.02))


def quantity_lines(table: pd.DataFrame, attack: str, quantity: str, styles: dict[str, int]) -> list[Line]:
    """Return one line over eps for each curve under an attack."""
    return [
        line_over_eps(
            curve.name, curve.rows, quantity, styles[curve.target], dash_of(curve.threat_model, curve.surrogate)
        )
        for curve in curves_under(table, attack)
    ]


def _area_table(area: pd.DataFrame) -> Table:
    attacks = list(dict.fromkeys(area["attack"]))
    rows = []
    for (target, threat_model), of_curve in area.groupby(["target", "threat_model"], sort=False):
        by_attack = {row["attack"]: estimate(row, percent) for _, row in of_curve.iterrows()}
        rows.append([curve_name(str(target), str(threat_model)), *(by_attack.get(attack, "–") for attack in attacks)])
    return Table(["mean over ε", *map(attack_name, attacks)], rows)


def _all_metrics(table: pd.DataFrame, recalls: list[str]) -> Table:
    rows = [
        [
            *(key_text(key, row[key]) for key in POINT_KEYS),
            str(row["n"]),
            str(row["n_groups"]),
            with_interval(row),
            estimate(row, percent, "balanced_accuracy"),
            *(number(row[name], percent) for name in recalls),
            estimate(row, percent, "attack_success_rate"),
            *(number(row[name]) for name in METRICS),
        ]
        for row in table.to_dict("records")
    ]
    head = [*POINT_KEYS.values(), "n", "groups", "accuracy", "balanced accuracy", *map(display_name, recalls)]
    return Table([*head, "attack success rate", *METRICS.values()], rows)
