"""Detection of adversarial images: ROC curves, detection rates, and rejection of images."""

from typing import Any

import pandas as pd

from tasks.outcomes.names import (
    ALL_DETECTORS,
    BEST_DETECTOR,
    DETECTOR_ATTACKS,
    DETECTOR_EVASION,
    JOINT_DETECTOR_EVASION,
    display_name,
)
from tasks.params import UNDEFENDED
from tasks.reporting.drawings import Drawing, lines_drawing
from tasks.reporting.formats import estimate, fixed, number
from tasks.reporting.headline import Headline
from tasks.reporting.names import attack_name
from tasks.reporting.panels import DASHES, Line, Panel, line_over_eps, over_eps
from tasks.reporting.results import Results
from tasks.reporting.section import Point, Section, point_of
from tasks.reporting.tables import Table, key_text
from tasks.statistics.formatting import eps_text, percent, sample_text

KEYS = {"detector": "detector", "surrogate": "surrogate", "attack": "attack", "eps": "ε in 1/255"}
KEYS |= {"n": "n", "n_groups": "groups"}
RATES = {
    "auroc": ("AUROC", fixed(2)),
    "false_positive_rate": ("false-positive rate", percent),
    "detection_rate": ("detection rate", percent),
    "detection_rate_successful": ("detection rate, successful attacks", percent),
}
SHARE_RANGE = (-0.02, 1.02)
Styles = dict[str, int]
"""Style of each detector."""


def detection_section(results: Results, headline: Headline) -> Section:
    """Return ROC curves, AUROC by eps, detection rates, and accuracies behind a detector that rejects images."""
    key, title = "detection", "Detection of adversarial images"
    table, roc, rejection = results.detection, results.roc, results.rejection
    point = point_of(table[~table["attack"].isin(DETECTOR_ATTACKS)], headline)
    if point is None:
        return Section(key, title, {"point": None})
    by_attack = rates_by_attack(table, point)
    best, table = _best_detector(table, point), table[table["detector"] != BEST_DETECTOR]
    styles = {str(detector): style for style, detector in enumerate(table["detector"].unique())}
    attacks = [point.attack, *DETECTOR_ATTACKS]
    rocs = [
        (names, _roc(rows, styles))
        for names, rows in _by_crafting(roc[(roc["eps"] == point.eps) & roc["attack"].isin(attacks)])
    ]
    aurocs = [(names, _auroc_by_eps(rows, styles)) for names, rows in _by_crafting(table) if rows["eps"].nunique() > 1]
    curves, drawings = [], []
    for kind, group in (("roc", rocs), ("auroc", aurocs)):
        for (surrogate, attack), panel in group:
            is_undefended = surrogate == UNDEFENDED
            name = f"{kind}-{surrogate}-{attack}"
            # curves of attacks on defences are folded and have no interactive version
            drawings.append(lines_drawing(name, [panel], is_interactive=is_undefended))
            curve = {"name": name, "kind": kind, "is_undefended": is_undefended}
            curve |= {"attack": attack_name(attack), "surrogate": display_name(surrogate)}
            is_own = (table["surrogate"] == surrogate) & (table["attack"] == attack)
            curves.append(curve | {"sample": _sample(table[is_own], headline.unit)})
    rejection = rejection[(rejection["eps"] == point.eps) & rejection["attack"].isin(attacks)]
    nominal_rate = _nominal_rate(rejection, results.params.analyze.false_positive_rate)
    keys = ["detector", "surrogate", "attack", "eps"]
    rejection = rejection.merge(table[[*keys, "n", "n_groups"]], on=keys)
    if len(rejection):
        drawings.append(_rejection_drawing(rejection, styles))
    values = {
        "point": point,
        "target_rate": percent(results.params.analyze.false_positive_rate),
        "best": best,
        "too_often": flag_too_often(table, point, results.params.analyze.false_positive_rate),
        "by_attack": by_attack,
        "evasion": results.params.analyze.detector_evasion,
        "curves": curves,
        "rates": _rates(table[(table["eps"] == point.eps) & table["attack"].isin(attacks)]),
        "all_rates": _rates(table),
        "nominal_rate": percent(nominal_rate),
        "rejection_samples": [
            f"{attack_name(str(attack))}: {_sample(rows, headline.unit)}"
            for attack, rows in rejection.groupby("attack", sort=False)
        ],
        "rejection": _rejection_table(rejection, nominal_rate) if len(rejection) else None,
    }
    return Section(key, title, values, drawings)


def _sample(rows: pd.DataFrame, unit: str) -> str:
    """Number of images of some rows, and of their groups; several numbers if the rows have different images."""
    counts = rows[["n", "n_groups"]].drop_duplicates().itertuples(index=False, name=None)
    return " or ".join(sample_text(int(n), int(n_groups), unit) for n, n_groups in counts)


def _by_crafting(table: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """Return the rows of each surrogate and attack."""
    groups = table.groupby(["surrogate", "attack"], sort=False)
    return [((str(surrogate), str(attack)), rows) for (surrogate, attack), rows in groups]


def _best_detector(table: pd.DataFrame, point: Point) -> dict[str, Any]:
    """Return the rates of the best detector under each attack, as text; None for attacks that did not run."""
    best = table[(table["detector"] == BEST_DETECTOR) & (table["eps"] == point.eps)].set_index("attack")
    rates: dict[str, Any] = {"n": int(best["n_detectors"].iloc[0]), "detector": best["chosen_detector"].iloc[0]}
    rates["false_positive_rate"] = estimate(best.iloc[0], percent, "false_positive_rate")
    names = {"unaware": point.attack, "aware": DETECTOR_EVASION, "joint": JOINT_DETECTOR_EVASION}
    for name, attack in names.items():
        row: Any = best.loc[attack] if attack in best.index else None
        for count in ("n", "n_successful"):
            rates[f"{name}_{count}"] = number(None if row is None else row[count], fixed(0))
        for key, quantity in (("detected", "detection_rate_successful"), ("undetected", "undetected_success_rate")):
            rates[f"{name}_{key}"] = None if row is None else estimate(row, percent, quantity)
    adaptive = table[(table["detector"] == BEST_DETECTOR) & (table["attack"] == DETECTOR_EVASION)]
    rates["same_images"] = [_on_same_images(row) for _, row in adaptive.sort_values("eps").iterrows()]
    joint = table[(table["detector"] == ALL_DETECTORS) & (table["attack"] == JOINT_DETECTOR_EVASION)]
    joint = joint[joint["eps"] == point.eps]
    undetected = "undetected_success_rate"
    return rates | {"all_undetected": None if joint.empty else estimate(joint.iloc[0], percent, undetected)}


def flag_too_often(table: pd.DataFrame, point: Point, target_rate: float) -> list[str]:
    """Detectors that flag more clean test images than they should, by their whole interval, with their rates.

    The intervals are not corrected for the number of detectors: that would hide warnings.

    Args:
        table: ``detection.csv``.
        point: attack that ignores detectors, and eps; all attacked images have a row there.
        target_rate: ``analyze.false_positive_rate``.
    """
    at_point = (table["surrogate"] == UNDEFENDED) & (table["attack"] == point.attack) & (table["eps"] == point.eps)
    is_single = table["detector"] != BEST_DETECTOR
    rows = table[at_point & is_single & (table["false_positive_rate_low"] > target_rate)]
    return [f"{row['detector']} ({estimate(row, percent, 'false_positive_rate')})" for row in rows.to_dict("records")]


def _on_same_images(row: Any) -> dict[str, str]:
    """Return the detection rates of both attacks on the images of the adaptive attack on detectors, as text."""
    quantity = "detection_rate_successful"
    texts = {"eps": eps_text(row["eps"]), "n": str(row["n"])}
    for name, prefix in (("unaware", "ignoring_"), ("aware", "")):
        texts[name] = estimate(row, percent, prefix + quantity)
        texts[f"{name}_n"] = number(row[f"{prefix}n_successful"], fixed(0))
    return texts


def rates_by_attack(table: pd.DataFrame, point: Point) -> Table:
    """Return the rates of each detector in front of the undefended classifier under three attacks.

    Args:
        table: ``detection.csv``.
        point: attack that ignores detectors, and eps.
    """
    attacks = {point.attack: "ignores it", DETECTOR_EVASION: "attacks it", JOINT_DETECTOR_EVASION: "attacks all"}
    quantities = {"detection_rate_successful": "detected", "undetected_success_rate": "undetected"}
    rows = table[(table["surrogate"] == UNDEFENDED) & (table["eps"] == point.eps)]
    texts = []
    for detector in dict.fromkeys(rows["detector"]):
        of_detector = rows[rows["detector"] == detector].set_index("attack")
        cells = []
        for attack in attacks:
            # the joint attack is the adaptive attack on all detectors combined
            is_combination = detector == ALL_DETECTORS and attack == DETECTOR_EVASION
            name = JOINT_DETECTOR_EVASION if is_combination else attack
            row = of_detector.loc[name] if name in of_detector.index else None
            cells.append("–" if row is None else f"{row['n']} ({number(row['n_successful'], fixed(0))})")
            cells += ["–" if row is None else estimate(row, percent, quantity) for quantity in quantities]
        first = of_detector.iloc[0]
        texts.append([str(detector), estimate(first, percent, "false_positive_rate"), *cells])
    columns = ["n (broken)", *quantities.values()]
    heads = [f"{column}, attack {access}" for access in attacks.values() for column in columns]
    return Table(["detector", "false-positive rate", *heads], texts)


def _nominal_rate(rejection: pd.DataFrame, false_positive_rate: float) -> float:
    """Return the largest tabulated nominal false-positive rate up to the parameter."""
    rates = rejection["nominal_false_positive_rate"]
    rates = rates[rates <= false_positive_rate]
    return 0.0 if rates.empty else float(rates.max())


def _roc(table: pd.DataFrame, styles: Styles) -> Panel:
    lines = []
    for detector, rows in table.groupby("detector", sort=False):
        rates = rows[["false_positive_rate", "true_positive_rate"]].sort_values(list(rows.columns[-2:]))
        x, y = (rates[column].to_numpy(float) for column in rates)
        style = styles[str(detector)]
        lines.append(Line(str(detector), x, y, style, DASHES[style % len(DASHES)]))
    return Panel(
        "false-positive rate",
        "true-positive rate",
        lines,
        x_scale="share",
        y_scale="share",
        y_range=SHARE_RANGE,
        drawn="lines",
        diagonal=True,
    )


def _auroc_by_eps(table: pd.DataFrame, styles: Styles) -> Panel:
    lines = [
        line_over_eps(str(detector), rows, "auroc", styles[str(detector)])
        for detector, rows in table.groupby("detector", sort=False)
    ]
    return over_eps("AUROC", lines, y_range=(None, 1.02), level=0.5)


def _rejection_drawing(rejection: pd.DataFrame, styles: Styles) -> Drawing:
    panels = []
    for attack, of_attack in rejection.groupby("attack", sort=False):
        lines = []
        for detector, rows in of_attack.groupby("detector", sort=False):
            columns = ("clean_rejection_rate", "accepted_accuracy", "accepted_accuracy_low", "accepted_accuracy_high")
            x, y, low, high = (rows[name].to_numpy(float) for name in columns)
            style = styles[str(detector)]
            lines.append(Line(str(detector), x, y, style, DASHES[style % len(DASHES)], low, high))
        labels = ("rejected clean images", "accuracy on accepted images")
        title = f"{attack_name(str(attack))}, n = {of_attack['n'].iloc[0]}"
        panels.append(Panel(*labels, lines, title, x_scale="share", y_scale="share", y_range=SHARE_RANGE))
    return lines_drawing("rejection", panels, n_columns=2)


def _rejection_table(rejection: pd.DataFrame, nominal_rate: float) -> Table:
    rows = []
    for (detector, attack), of_detector in rejection.groupby(["detector", "attack"], sort=False):
        rates = of_detector["nominal_false_positive_rate"]
        without, behind = (of_detector[rates == rate].iloc[0] for rate in (0.0, nominal_rate))
        rows.append(
            [
                str(detector),
                attack_name(str(attack)),
                *(str(of_detector[count].iloc[0]) for count in ("n", "n_groups")),
                estimate(behind, percent, "clean_rejection_rate"),
                estimate(behind, percent, "adversarial_rejection_rate"),
                *(
                    estimate(row, percent, metric)
                    for metric in ("accepted_accuracy", "undetected_error_rate")
                    for row in (without, behind)
                ),
            ]
        )
    head = ["detector", "attack", "n", "groups", "clean images rejected", "attacked images rejected"]
    head += ["accuracy without rejection", "accuracy on accepted images"]
    return Table([*head, "error rate without rejection", "undetected error rate"], rows)


def _rates(table: pd.DataFrame) -> Table:
    rows = [
        [
            *(key_text(key, row[key]) for key in KEYS),
            number(row["threshold"]),
            *(estimate(row, form, quantity) for quantity, (_, form) in RATES.items()),
        ]
        for _, row in table.iterrows()
    ]
    return Table([*KEYS.values(), "threshold", *(head for head, _ in RATES.values())], rows)
