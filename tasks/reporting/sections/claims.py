"""Whether the study's claims hold here, and the area under the accuracy curves."""

from typing import Any

import pandas as pd

from tasks.reporting.findings import Headline, attack_name, curve_name
from tasks.reporting.sections.section import Table, estimate, share, undefended_and_defended

HOLDS, FALLS, OPEN = "holds", "does not hold", "can't be told"
BADGES = {HOLDS: "HOLDS", FALLS: "FALLS", OPEN: "OPEN"}
"""How outcomes begin -> class of their badge."""


def verdict_sentence(verdict: list[dict[str, Any]]) -> str:
    """How many of the claims hold."""
    if not verdict:
        return "No claim of the study was put to the test in this run."
    outcomes = [next(start for start in BADGES if claim["outcome"].startswith(start)) for claim in verdict]
    return (
        f"Of {len(verdict)} claims of the study, {_counted(outcomes.count(HOLDS), 'holds', 'hold')} here, "
        f"{_counted(outcomes.count(FALLS), 'does not', 'do not')}, and {outcomes.count(OPEN)} can't be told."
    )


def _counted(n: int, one: str, many: str) -> str:
    return f"{n or 'none'} {one if n == 1 else many}"


def elsewhere(claim: dict[str, Any]) -> str:
    """Outcomes at other ε: ``at 0.25, 0.5: holds; at 4: does not hold``; empty for what does not depend on ε."""
    eps_by_outcome: dict[str, list[str]] = {}
    for eps, outcome in claim["elsewhere"].items():
        eps_by_outcome.setdefault(next(start for start in BADGES if outcome.startswith(start)), []).append(eps)
    return "; ".join(f"at {', '.join(eps)}: {outcome}" for outcome, eps in eps_by_outcome.items())


def badge_of(outcome: str) -> str:
    """Class of an outcome's badge."""
    return next(badge for start, badge in BADGES.items() if outcome.startswith(start))


def area_table(area: pd.DataFrame) -> Table:
    """Mean accuracy over the octaves of ε: a row a curve, a column an attack."""
    attacks = list(dict.fromkeys(area["attack"]))
    rows = []
    for (target, threat_model), of_curve in area.groupby(["target", "threat_model"], sort=False):
        by_attack = {row["attack"]: estimate(row, share) for _, row in of_curve.iterrows()}
        rows.append([curve_name(str(target), str(threat_model)), *(by_attack.get(attack, "–") for attack in attacks)])
    caption = (
        "Area under each accuracy curve over its width: the mean accuracy over the grid's octaves (doublings) of ε, "
        "one number for a whole curve, with 95 % intervals."
    )
    return Table(caption, ["mean over ε", *map(attack_name, attacks)], rows)


def area_sentence(area: pd.DataFrame, headline: Headline) -> str:
    """The areas under the headline's attack."""
    rows = area[area["attack"] == headline.attack]
    if rows.empty:
        return "The area under these curves was not computed in this run."
    return (
        f"Averaged over the octaves of ε, {attack_name(headline.attack)} leaves an accuracy of "
        f"{undefended_and_defended(rows, share)}."
    )
