"""Comparison of the targets: ranks by validation images, worst case, tests, operating points, cost and checks."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from tasks.dataset.prepared import SPLITS, Prepared
from tasks.outcomes.names import display_name
from tasks.params import UNDEFENDED
from tasks.records.expected import FRESH, N_FRESH_SAMPLES
from tasks.records.operating_points import OperatingPoint
from tasks.records.vocabulary import AS_TRAINED
from tasks.reporting.drawings import Drawing, lines_drawing
from tasks.reporting.formats import estimate, fixed, number, p_text, plain, signed_points, unsigned_points
from tasks.reporting.headline import Headline, significance_of
from tasks.reporting.panels import Line, line_over_eps, over_eps
from tasks.reporting.results import Results
from tasks.reporting.section import Section
from tasks.reporting.sections.validation import status_counts
from tasks.reporting.tables import Table
from tasks.statistics.formatting import Row, eps_text, percent, with_interval
from tasks.statistics.groups import class_group_sizes, too_few_groups

MAX_LINES = 7
"""Maximum number of lines in a figure: the number of colours."""


def comparison_section(results: Results, headline: Headline) -> Section:
    """Return the targets ranked by validation images, and their worst case at the headline's eps by operating point."""
    comparison, certified = results.comparison, results.certified_accuracy
    at_eps = comparison[comparison["eps"] == headline.eps]
    by_point = {point: at_eps[at_eps["operating_point"] == point] for point in headline.operating_points}
    at_point = by_point.pop(headline.operating_point)
    ranked = at_point[at_point["threat_model"] == "adaptive"]
    drawn, best = _drawn_targets(ranked), ranked.iloc[0]
    values: dict[str, Any] = {
        "n_targets": len(ranked),
        "n_comparisons": int(ranked["p_value"].notna().sum()),
        "best": best["target"],
        "balanced": {
            state: estimate(best, percent, f"{state}_balanced_accuracy") for state in ("validation", "clean", "robust")
        },
        "n_validation": best["n_validation"],
        "n_validation_groups": best["n_validation_groups"],
        "next_target": best["next_target"] if len(ranked) > 1 else None,
        "difference": estimate(best, signed_points, "difference"),
        "significance": significance_of(*best[["difference_low", "difference_high", "p_value_holm"]]),
        "p_value": best["p_value_holm"],
        "detectable": None if math.isnan(best["detectable_difference"]) else best["detectable_difference"],
        "tied_eps": _tied_eps(comparison, headline.chance),
        "random_targets": _random_targets(results.records),
        "n_samples": N_FRESH_SAMPLES,
        "n_drawn": len(drawn),
        "has_certified_lines": bool(certified["target"].isin(drawn).any()),
        "ranking": _ranking(at_point, headline.without_black_box_power),
        "gains": _gain_table(headline),
        "configurations": _configuration_table(results.configurations),
        "other_rankings": {point: _ranking(rows, headline.without_black_box_power) for point, rows in by_point.items()},
        "operating_points": _operating_point_table(results.operating_points, results.data, headline),
        "validation_leakage": _validation_leakage(results.data.table),
        "costs": _cost_table(ranked, results.checks),
        "minimum_perturbation": _minimum_perturbation_table(results.minimum_perturbation, ranked),
        "certified": _certified_table(certified) if len(certified) else None,
        "everywhere": _every_point(comparison, headline.without_black_box_power),
    }
    drawings = [
        _worst_case_drawing(certified, drawn, headline),
        _minimum_perturbation_drawing(results, drawn, headline),
    ]
    return Section("comparison", "Comparison of the targets", values, drawings)


def size_text(value: float) -> str:
    """Size of a perturbation in units of 1/255; infinite: larger than the grid."""
    return "above the grid" if math.isinf(value) else plain(value)


def checks_text(statuses: list[str]) -> str:
    """Number of checks of a target that do not pass: ``1 FAIL, 2 WARN``."""
    counts = status_counts([status for status in statuses if status not in ("PASS", "INFO")])
    return ", ".join(f"{n} {status}" for status, n in counts.items()) or "all pass"


def _drawn_targets(ranked: pd.DataFrame) -> list[str]:
    """Return the first targets in rank, and always the undefended classifier."""
    drawn = list(ranked["target"][:MAX_LINES])
    if UNDEFENDED not in drawn:
        drawn[-1] = UNDEFENDED
    return drawn


def _tied_eps(comparison: pd.DataFrame, chance: float) -> list[float]:
    """Return the eps at which two or more targets are not above a constant prediction on validation images."""
    of_targets = comparison[["eps", "target", "validation_balanced_accuracy"]].drop_duplicates(["eps", "target"])
    n_lowest = (of_targets["validation_balanced_accuracy"] <= chance).groupby(of_targets["eps"]).sum()
    return [float(eps) for eps in n_lowest.index[n_lowest > 1]]


def _random_targets(records: pd.DataFrame) -> list[str]:
    """Return the targets that draw random numbers."""
    if FRESH not in records:
        return []
    return [str(target) for target in records.loc[records[FRESH].notna(), "target"].unique()]


def _ranking(at_point: pd.DataFrame, without_power: Sequence[str]) -> Table:
    """Return the targets at one operating point and eps: balanced accuracies, and the comparison with the next.

    Args:
        at_point: rows of ``comparison.csv``.
        without_power: targets whose check ``black_box`` has no power.
    """
    by_threat_model = {str(threat): rows for threat, rows in at_point.groupby("threat_model", sort=False)}
    ranked = by_threat_model.pop("adaptive")
    others = {threat: rows.set_index("target") for threat, rows in by_threat_model.items()}
    rows = []
    for _, row in ranked.iterrows():
        target = row["target"]
        under_others = [
            _under(table, target, row["n"]) + _power_text(threat, target, without_power)
            for threat, table in others.items()
        ]
        rows.append(
            [
                f"{row['rank']}. {display_name(row['target'])}",
                estimate(row, percent, "validation_balanced_accuracy"),
                estimate(row, percent, "clean_balanced_accuracy"),
                estimate(row, percent, "robust_balanced_accuracy"),
                number(row["robust_balanced_accuracy_8bit"], percent),
                *under_others,
                *_next_target(row, "p_value_holm"),
                number(row["detectable_difference"], unsigned_points),
            ]
        )
    head = ["target", "validation, sweep, as trained", "clean", "worst case, adaptive", "the same, 8-bit"]
    head += [f"worst case, {display_name(threat)}" for threat in others]
    head += ["difference to the next", "correct only here : only there", "p (Holm)", "detectable difference"]
    return Table(head, rows)


def _gain_table(headline: Headline) -> Table:
    """Return the difference of each defence to the undefended classifier, with its test."""
    rows = [
        [
            display_name(target),
            estimate(found.difference._asdict(), signed_points),
            estimate(found.over_better._asdict(), signed_points),
            _p_cell(found.difference.low, found.p_value_holm),
            found.significance,
            number(found.detectable, unsigned_points),
        ]
        for target, found in headline.comparisons.items()
    ]
    head = ["target", "difference to undefended", "difference to the better of undefended and constant"]
    return Table([*head, "p (Holm)", "test", "detectable difference"], rows)


def _configuration_table(configurations: pd.DataFrame) -> Table:
    """Return the configurations that were compared on these images, the best on validation images first."""
    rows = [
        [
            display_name(row["target"]),
            str(row["configuration"]),
            *(f"{row[name]:g}" for name in ("seed", "eps", "n", "n_groups")),
            estimate(row, percent, "balanced_accuracy"),
        ]
        for _, row in configurations.sort_values("balanced_accuracy", ascending=False, kind="stable").iterrows()
    ]
    head = ["target", "configuration", "seed", "ε in 1/255", "n", "groups", "balanced accuracy"]
    return Table(head, rows)


def _under(rows: pd.DataFrame, target: str, n_attacked: int) -> str:
    """Return the balanced accuracy of a target under a threat model.

    On a part of the attacked images, accuracies cannot be compared with those on all. So the text also has the number
    of images, and how many of the correct ones the attacks of the threat model and all attacks break.
    """
    if target not in rows.index:
        return "–"
    row: Row = rows.loc[target]
    text = estimate(row, percent, "robust_balanced_accuracy")
    if row["n"] == n_attacked:
        return text
    n_correct, n_broken, n_broken_adaptive = (
        plain(row[name]) for name in ("n_clean_correct", "n_broken", "n_broken_adaptive")
    )
    return f"{text} (n = {row['n']}: {n_broken} of {n_correct} broken, {n_broken_adaptive} by all attacks)"


def _power_text(threat_model: str, target: str, without_power: Sequence[str]) -> str:
    return ", no power" if threat_model == "black_box" and target in without_power else ""


def _next_target(row: "pd.Series[float]", p_value: str) -> list[str]:
    """Return the comparison with the next target in rank: difference, images correct for one of the two, p-value."""
    if pd.isna(row["next_target"]):
        return ["–"] * 3
    return [
        estimate(row, signed_points, "difference"),
        f"{row['n_only_this_correct']:.0f} : {row['n_only_next_correct']:.0f}",
        _p_cell(row["difference_low"], row[p_value]),
    ]


def _p_cell(low: float, p_value: float) -> str:
    """Return a p-value; a dash if the difference has no interval, since then there is no test."""
    is_test = not (math.isnan(low) or math.isnan(p_value))
    return p_text(p_value).removeprefix("p ").removeprefix("= ") if is_test else "–"


def _operating_point_table(points: dict[str, list[OperatingPoint]], data: Prepared, headline: Headline) -> Table:
    """Return biases, and recalls on clean images and in the worst case, of each target and operating point."""
    rows_of = data.indices("validation")
    sizes = class_group_sizes(data.labels(rows_of), data.identity(rows_of)["group"], len(data.classes))
    no_interval = "too few groups" if any(map(too_few_groups, sizes)) else "undetermined"
    metrics = ["balanced_accuracy", *headline.recalls]
    rows = []
    for target, of_target in points.items():
        for point in of_target:
            of_point = [
                estimate(headline.at(target, eps, metric, point.name), percent)
                for eps in (0.0, headline.eps)
                for metric in metrics
            ]
            rows.append([display_name(target), display_name(point.name), *_biases(point, no_interval), *of_point])
    head = ["target", "operating point", *(f"bias of {name}" for name in data.classes[1:])]
    head += [f"{state}: {display_name(metric)}" for state in ("clean", "worst case") for metric in metrics]
    return Table(head, rows)


def _biases(point: OperatingPoint, no_interval: str) -> list[str]:
    """Return the biases of all classes but the first, whose bias is 0, with their intervals or why there is none."""
    if point.name == AS_TRAINED:
        return ["0"] * (len(point.biases) - 1)
    if point.biases_low is None or point.biases_high is None:
        return [f"{fixed(2)(bias)} [{no_interval}]" for bias in point.biases[1:]]
    bounds = zip(point.biases, point.biases_low, point.biases_high, strict=True)
    return [estimate(dict(zip(("value", "low", "high"), of_class, strict=True)), fixed(2)) for of_class in bounds][1:]


def _validation_leakage(table: pd.DataFrame) -> dict[str, str]:
    """Return the share of validation images with a group in training, and of test images with one in validation."""
    train, validation, test = (table.loc[table["split"] == split, "group"] for split in SPLITS)
    shares = {"in_train": validation.isin(train).mean(), "of_test": test.isin(validation).mean()}
    return {name: percent(float(share)) for name, share in shares.items()}


def _cost_table(ranked: pd.DataFrame, checks: list[dict[str, Any]]) -> Table:
    rows = [
        [
            display_name(row["target"]),
            f"{row['n_parameters'] / 1e6:.2f} M",
            f"{row['multiply_adds'] / 1e6:.0f} M",
            checks_text([check["status"] for check in checks if check["target"] == row["target"]]),
        ]
        for _, row in ranked.iterrows()
    ]
    return Table(["target", "parameters", "multiply-adds", "checks"], rows)


def _worst_case_drawing(certified: pd.DataFrame, drawn: list[str], headline: Headline) -> Drawing:
    table = headline.worst_case
    table = table[(table["operating_point"] == headline.operating_point) & (table["metric"] == "balanced_accuracy")]
    lines = []
    for target in drawn:
        style = headline.styles[target]
        lines.append(line_over_eps(display_name(target), table[table["target"] == target], style=style))
        of_target = certified[(certified["target"] == target) & certified["accuracy"].notna()]
        if len(of_target):
            lines.append(line_over_eps(f"{display_name(target)}, certified", of_target, "accuracy", style, "dashed"))
    label = "balanced accuracy in the worst case"
    panel = over_eps(label, lines, y_scale="share", y_range=(-0.02, 1.02), level=headline.chance)
    return lines_drawing("defences-worst", [panel], is_interactive=True)


def _minimum_perturbation_drawing(results: Results, drawn: list[str], headline: Headline) -> Drawing:
    as_trained = results.minimum_eps[results.minimum_eps["operating_point"] == AS_TRAINED]
    by_image = as_trained.groupby(["target", "image"])["minimum_perturbation"].min()
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
        quartiles = [number(row["q25"], size_text), estimate(row, size_text, "median"), number(row["q75"], size_text)]
        counts = [f"{row[name]:.0f}" for name in ("n", "n_groups")]
        rows.append([display_name(target), *counts, *quartiles, number(row["unbroken_fraction"], percent)])
    return Table(["target", "n", "groups", "first quartile", "median", "third quartile", "not broken"], rows)


def _certified_table(certified: pd.DataFrame) -> Table:
    rows = [
        [
            display_name(str(target)),
            *(f"{rows[name].iloc[0]}" for name in ("n", "n_groups")),
            plain(rows["largest_eps"].iloc[0]),
            *(estimate(row, percent, "accuracy") for _, row in rows.iterrows()),
        ]
        for target, rows in certified.groupby("target", sort=False)
    ]
    eps = [f"ε = {eps_text(eps)}/255" for eps in sorted(certified["eps"].unique())]
    return Table(["target", "n", "groups", "largest ε", *eps], rows)


def _every_point(table: pd.DataFrame, without_power: Sequence[str]) -> Table:
    rows = [
        [
            display_name(row["target"]),
            display_name(row["operating_point"]),
            display_name(row["threat_model"]) + _power_text(row["threat_model"], row["target"], without_power),
            eps_text(row["eps"]),
            str(row["n"]),
            str(row["n_groups"]),
            str(row["rank"]),
            *(estimate(row, percent, f"{state}_balanced_accuracy") for state in ("clean", "robust")),
            number(row["robust_balanced_accuracy_8bit"], percent),
            with_interval(row, "robust_accuracy"),
            number(row["robust_accuracy_8bit"], percent),
            *_next_target(row, "p_value"),
        ]
        for _, row in table.iterrows()
    ]
    head = ["target", "operating point", "threat model", "ε in 1/255", "n", "groups", "rank"]
    head += ["clean: balanced accuracy", "worst case: balanced accuracy", "8-bit", "worst case: accuracy", "8-bit"]
    return Table([*head, "difference to the next", "correct only here : only there", "p"], rows)
