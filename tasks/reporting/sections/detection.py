"""Whether an input can be told to be adversarial."""

from dataclasses import replace

import pandas as pd

from tasks.params import UNDEFENDED
from tasks.records.vocabulary import spoken
from tasks.reporting.findings import Headline, attack_name
from tasks.reporting.panels import DASHES, Line, Panel, line_over_eps, over_eps
from tasks.reporting.results import Results
from tasks.reporting.sections.section import (
    Drawing,
    Point,
    Section,
    Table,
    estimate,
    fixed,
    key_text,
    lines_drawing,
    plain,
    point_of,
    share,
)
from tasks.statistics.formatting import eps_text

KNOWING = " and detector"
"""How attacks are called that lower the detector's score as well."""
KEYS = {"detector": "detector", "surrogate": "crafted on", "attack": "attack", "eps": "ε in 1/255", "n": "images"}
RATES = {
    "auroc": ("AUROC", fixed(2)),
    "false_positive_rate": ("false alarms", share),
    "detection_rate": ("detected", share),
    "detection_rate_successful": ("detected of the successful", share),
}


NOTE = (
    "A detector gives each input a score; above a threshold it raises the alarm. The threshold is chosen on clean "
    "validation images, so false alarms on test images may differ from what was aimed at. AUROC: 0.5 is guessing, "
    "1 is perfect. “… and detector” is an attacker who knows the detector and brings the score as near to "
    "that of an ordinary clean image as he can: that row says the most that a detector is worth."
)


def detection_section(results: Results, headline: Headline) -> Section:
    """ROC curves, AUROC by ε, and what a threshold from the validation images gives."""
    titles = ("detection", "Detection", "Can an attacked input be detected?")
    table, roc = results.analysis.detection, results.analysis.roc
    point = point_of(table[~table["attack"].str.endswith(KNOWING)] if len(table) else table, headline)
    if point is None:
        return Section(*titles, "No detector was put to the test in this run.")
    styles = {str(detector): number for number, detector in enumerate(table["detector"].unique())}
    shown = [point.attack, f"{point.attack}{KNOWING}"]
    at = roc[(roc["eps"] == point.eps) & roc["attack"].isin(shown)]
    drawings = [
        _roc(curves, str(surrogate), str(attack), point.eps, styles)
        for (surrogate, attack), curves in at.groupby(["surrogate", "attack"], sort=False)
    ]
    drawings += [
        _auroc_by_eps(rows, str(surrogate), str(attack), styles)
        for (surrogate, attack), rows in table.groupby(["surrogate", "attack"], sort=False)
        if rows["eps"].nunique() > 1
    ]
    caption = "Operating points with 95 % intervals; “successful” are images that the attack turns wrong."
    of_point = table[(table["eps"] == point.eps) & table["attack"].isin(shown)]
    tables = [
        _operating_points(f"Under {point}. {caption}", of_point),
        _operating_points(f"Every attack and ε. {caption}", table, is_folded=True),
    ]
    gate = results.analysis.gate
    gates = gate[(gate["eps"] == point.eps) & gate["attack"].isin(shown)]
    if len(gates):
        drawings.append(_gate_drawing(gates, point, styles))
        tables.insert(1, _gate_table(gates, point))
    return Section(*titles, _answer(table, point), [NOTE], drawings, tables)


def _answer(table: pd.DataFrame, point: Point) -> str:
    at = point.of(table).dropna(subset=["auroc"])
    best = at.sort_values("auroc", ascending=False, kind="stable").iloc[0]
    answer = (
        f"The best detector of {point} is the {best['detector']}, with an AUROC of "
        f"{estimate(best, fixed(2), 'auroc')} (crafted on the target {spoken(best['surrogate'])}); at a false alarm on "
        f"{share(best['false_positive_rate'])} of the clean images it detects "
        f"{estimate(best, share, 'detection_rate')}"
    )
    same = {"detector": best["detector"], "surrogate": best["surrogate"], "attack": f"{point.attack}{KNOWING}"}
    knowing = table[(table[list(same)] == pd.Series(same)).all(axis=1) & (table["eps"] == point.eps)]
    if knowing.empty:
        return f"{answer}."
    return f"{answer}; against an attacker who knows it the AUROC is {estimate(knowing.iloc[0], fixed(2), 'auroc')}."


def _gate_drawing(gates: pd.DataFrame, point: Point, styles: dict[str, int]) -> Drawing:
    panels = []
    for attack, of_attack in gates.groupby("attack", sort=False):
        lines = []
        for detector, rows in of_attack.groupby("detector", sort=False):
            x, y, low, high = (rows[name].to_numpy(float) for name in ("rejected_clean", *ACCURACY))
            style = styles[str(detector)]
            lines.append(Line(str(detector), x, y, style, DASHES[style % len(DASHES)], low, high))
        panels.append(
            Panel(
                "clean images turned away",
                "accuracy on attacked images that pass",
                lines,
                title=_attack(str(attack)),
                x_scale="share",
                y_scale="share",
                y_range=(-0.02, 1.02),
            )
        )
    at_eps = f"ε = {eps_text(point.eps)}/255"
    return lines_drawing(
        "gate",
        panels,
        f"Accuracy behind each detector as a gate against the share that it turns away, {at_eps}",
        f"Each detector as a gate before the bare classifier, {at_eps}: accuracy on the attacked images that pass, "
        "against the share of clean ones that it turns away, with 95 % Wilson bands. At 0 there is no gate.",
        n_columns=2,
    )


ACCURACY = ("accuracy", "accuracy_low", "accuracy_high")
AIMED = 0.05
"""Share of clean validation images that the gate of the table turns away."""


def _gate_table(gates: pd.DataFrame, point: Point) -> Table:
    rows = []
    for (detector, attack), of_gate in gates.groupby(["detector", "attack"], sort=False):
        gate, none = (of_gate[of_gate["aimed"] == aimed].iloc[0] for aimed in (AIMED, 0.0))
        rows.append(
            [
                str(detector),
                _attack(str(attack)),
                share(gate["rejected_clean"]),
                share(gate["rejected"]),
                estimate(none, share, "accuracy"),
                estimate(gate, share, "accuracy"),
                estimate(none, share, "harm"),
                estimate(gate, share, "harm"),
            ]
        )
    head = ["detector", "attack", "clean turned away", "attacked turned away", "accuracy without", "of what passes"]
    caption = (
        f"Detectors as gates, ε = {eps_text(point.eps)}/255, at a threshold above which {share(AIMED)} of the clean "
        "validation images lie: accuracy on attacked images without and behind the gate, and the share of all attacked "
        "images that are classified wrongly and not turned away. 95 % Wilson intervals."
    )
    return Table(caption, [*head, "wrong without", "wrong and passed"], rows)


def _attack(attack: str) -> str:
    base = attack.removesuffix(KNOWING)
    return attack_name(base) + attack.removeprefix(base)


def _roc(table: pd.DataFrame, surrogate: str, attack: str, eps: float, styles: dict[str, int]) -> Drawing:
    lines = []
    for detector, rows in table.groupby("detector", sort=False):
        rates = rows[["false_positive_rate", "true_positive_rate"]].sort_values(list(rows.columns[-2:]))
        x, y = (rates[column].to_numpy(float) for column in rates)
        lines.append(Line(str(detector), x, y, styles[str(detector)], DASHES[styles[str(detector)] % len(DASHES)]))
    panel = Panel(
        "false alarms on clean images",
        "attacked images detected",
        lines,
        x_scale="share",
        y_scale="share",
        y_range=(-0.02, 1.02),
        drawn="lines",
        diagonal=True,
    )
    return _drawing(
        "roc",
        panel,
        (surrogate, attack),
        f"ROC, {_attack(attack)} at ε = {eps_text(eps)}/255",
        "The grey diagonal is guessing.",
    )


def _auroc_by_eps(table: pd.DataFrame, surrogate: str, attack: str, styles: dict[str, int]) -> Drawing:
    lines = [
        line_over_eps(str(detector), rows, "auroc", styles[str(detector)])
        for detector, rows in table.groupby("detector", sort=False)
    ]
    panel = over_eps("AUROC", lines, y_range=(None, 1.02), level=0.5)
    note = "Bands are 95 % intervals; the grey line is guessing."
    return _drawing("auroc", panel, (surrogate, attack), f"AUROC by ε, {_attack(attack)}", note)


def _drawing(kind: str, panel: Panel, crafting: tuple[str, str], title: str, note: str) -> Drawing:
    """Curves of the detectors; those of what was crafted on defences are folded, and only drawn."""
    surrogate, attack = crafting
    is_bare = surrogate == UNDEFENDED
    title = f"{title}, crafted on the target {spoken(surrogate)}"
    drawing = lines_drawing(
        f"{kind}-{surrogate}-{attack.replace(' ', '-')}",
        [panel],
        f"Curves of the detectors: {title}",
        f"{title}. {note}",
        is_interactive=is_bare,
    )
    return drawing if is_bare else replace(drawing, group="Crafted on the defended classifier")


def _operating_points(caption: str, table: pd.DataFrame, is_folded: bool = False) -> Table:
    rows = [
        [
            *(_attack(row[key]) if key == "attack" else key_text(key, row[key]) for key in KEYS),
            plain(row["threshold"]),
            *(estimate(row, form, quantity) for quantity, (_, form) in RATES.items()),
        ]
        for _, row in table.iterrows()
    ]
    return Table(caption, [*KEYS.values(), "threshold", *(head for head, _ in RATES.values())], rows, is_folded)
