"""What the robustness table says: curves by name, numbers with their intervals, and the finding in sentences.

The robustness table is ``data/evaluate/robustness.csv``: a row for each target, threat model, attack and ε, rates in
[0, 1], ε in 1/255 of the value range. Clean rows have the attack ``clean``, the threat model ``none`` and ε 0.
"""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tasks.evaluation.records import CLEAN
from tasks.evaluation.robustness import SWEEP, curves_of
from tasks.paths import UNDEFENDED

ATTACK_NAMES = {"fgsm": "FGSM", "pgd": "PGD", SWEEP: "PGD sweep"}
ATTACKERS = {
    "transfer": "the attacker ignores the defence (transfer)",
    "adaptive": "the attacker attacks through it (adaptive)",
}

Row = Any
"""A row of the robustness table (``pd.Series``; its stubs can't say of what)."""


@dataclass(frozen=True)
class Curve:
    """One target under one attack and threat model, over ε."""

    target: str
    threat_model: str
    attack: str
    rows: pd.DataFrame
    """Rows of the robustness table by rising ε; the first is of the same images as they are."""

    @property
    def name(self) -> str:
        """As legends and column heads call it; every attack on the bare classifier is adaptive."""
        return self.target if self.target == UNDEFENDED else f"{self.target}, {self.threat_model}"

    def at(self, eps: float) -> Row:
        """The row of this ε (0: clean)."""
        return self.rows[self.rows["eps"] == eps].iloc[0]


def attacks_of(table: pd.DataFrame) -> list[str]:
    """Attacks of the robustness table in the order of its rows, without ``clean``."""
    return [attack for attack in table["attack"].unique() if attack != CLEAN]


def eps_of(table: pd.DataFrame) -> list[float]:
    """The ε grid, rising, without 0."""
    return sorted({float(eps) for eps in table["eps"]} - {0.0})


def curves_under(table: pd.DataFrame, attack: str) -> list[Curve]:
    """The curves under one attack, in the order of the table."""
    return [Curve(*names, rows) for names, rows in curves_of(table).items() if names[2] == attack]


@dataclass(frozen=True)
class Headline:
    """What the first screen is about: one attack at one ε."""

    attack: str
    eps: float
    clean: dict[str, Row]
    """Name of a target -> its row of the table on all test images as they are."""
    undefended: Curve
    defences: dict[str, dict[str, Curve]]
    """Name of a defence -> threat model -> curve."""
    sentences: list[str]


def headline_of(table: pd.DataFrame) -> Headline:
    """The finding in sentences: PGD (without it, the last attack of the table) at the ε nearest to 1/255."""
    attacks = attacks_of(table)
    attack = "pgd" if "pgd" in attacks else attacks[-1]
    eps = min(eps_of(table), key=lambda eps: abs(math.log(eps)))
    undefended, *defended = curves_under(table, attack)
    assert undefended.target == UNDEFENDED
    defences: dict[str, dict[str, Curve]] = {}
    for curve in defended:
        defences.setdefault(curve.target, {})[curve.threat_model] = curve

    of_clean = table[table["attack"] == CLEAN].drop_duplicates("target")
    clean_rows = {str(row["target"]): row for _, row in of_clean.iterrows()}
    clean, bare = clean_rows[UNDEFENDED], undefended.at(eps)
    n_attacked = f" of {bare['n']} of them" if bare["n"] < clean["n"] else ""
    sentences = [
        f"The classifier is right on {with_interval(clean)} of {clean['n']} clean test images.",
        f"Under {attack_name(attack)} at ε = {eps_text(eps)}/255 it is right on {with_interval(bare)}{n_attacked}.",
    ]
    for name, curves in defences.items():
        kept = [f"on {with_interval(curve.at(eps))} when {ATTACKERS[threat]}" for threat, curve in curves.items()]
        sentences.append(f"With the {name} in front it is right {', and '.join(kept)}.")
        cost = clean["accuracy"] - clean_rows[name]["accuracy"]
        if cost > 0:
            sentences.append(f"The {name} costs {points(cost)} of clean accuracy.")
        if {"transfer", "adaptive"} <= curves.keys():
            verdict = _verdict(bare, curves["transfer"].at(eps), curves["adaptive"].at(eps))
            sentences.append(verdict + _fall(curves["adaptive"]))
    return Headline(attack, eps, clean_rows, undefended, defences, sentences)


def _verdict(bare: Row, transfer: Row, adaptive: Row) -> str:
    seeming = transfer["accuracy"] - bare["accuracy"]
    real = adaptive["accuracy"] - bare["accuracy"]
    if seeming <= 0:
        return "Under attack it gains nothing, not even against an attacker who ignores it."
    if real > seeming:
        return "The adaptive attack does less than the transferred one: look for masked gradients in the checks."
    if real <= 0:
        return f"Its gain of {points(seeming)} under attack vanishes once the attacker knows it."
    if real == seeming:
        return f"Its gain of {points(seeming)} under attack stays when the attacker knows it: look at the checks."
    overlap = ", and the intervals overlap" if adaptive["accuracy_low"] <= bare["accuracy_high"] else ""
    return f"Its gain of {points(seeming)} under attack shrinks to {points(real)} once the attacker knows it{overlap}."


def _fall(adaptive: Curve) -> str:
    """Where hardly any image is left, so that a gain at one small ε is not taken for more than it is."""
    fallen = adaptive.rows[(adaptive.rows["eps"] > 0) & (adaptive.rows["accuracy"] <= 0.01)]
    if fallen.empty:
        return ""
    return f" At ε = {eps_text(fallen.iloc[0]['eps'])}/255 that attacker leaves {with_interval(fallen.iloc[0])}."


def headline_metrics(metrics: dict[str, Any], eps: float) -> dict[str, float]:
    """Metrics of the report's run, from ``metrics.json``.

    ``clean/<metric>`` and ``clean/<defence>_<metric>`` as the step ``evaluate`` names them, and accuracies at one ε as
    ``robust/<target>_<threat model>_<attack>_eps_<eps>``.
    """
    flat = {
        f"clean/{name}" if target == UNDEFENDED else f"clean/{target}_{name}": value
        for target, values in metrics["clean"].items()
        for name, value in values.items()
    }
    for target, by_threat in metrics["robust"].items():
        for threat_model, by_attack in by_threat.items():
            for attack, by_eps in by_attack.items():
                key = f"eps_{eps_text(eps)}"
                flat[f"robust/{target}_{threat_model}_{attack}_{key}"] = by_eps[key]
    return flat


def attack_name(attack: str) -> str:
    """``pgd`` as people write it."""
    return ATTACK_NAMES.get(attack, attack)


def percent(share: float) -> str:
    """``0.9321`` as ``93.2 %``."""
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """A difference of two shares in percentage points: ``0.052`` as ``5.2 points``."""
    return f"{100 * difference:.1f} points"


def with_interval(row: Row, quantity: str = "accuracy") -> str:
    """A rate of a row with its 95 % interval: ``93.2 % [90.6, 95.1]``."""
    return f"{percent(row[quantity])} {interval(row, quantity)}"


def interval(row: Row, quantity: str = "accuracy") -> str:
    """The 95 % interval of a rate of a row, in per cent: ``[90.6, 95.1]``."""
    return f"[{100 * row[f'{quantity}_low']:.1f}, {100 * row[f'{quantity}_high']:.1f}]"


def eps_text(eps: float) -> str:
    """ε in units of 1/255 without needless digits: ``0.25``, ``8``."""
    return f"{eps:g}"
