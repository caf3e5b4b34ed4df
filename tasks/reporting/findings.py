"""What the robustness table says: curves by name, numbers with their intervals, and the finding in sentences.

The robustness table is ``data/evaluate/robustness.csv``: a row for each target, threat model, attack and ε, rates in
[0, 1], ε in 1/255 of the value range. Clean rows have the attack ``clean``, the threat model ``none`` and ε 0.
"""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tasks.analysis.claims import headline_attack
from tasks.evaluation.robustness import clean_rows, curves_of
from tasks.params import UNDEFENDED
from tasks.records.vocabulary import CLEAN, SEARCHES, SQUARE, SUITE, SWEEP, spoken
from tasks.statistics.formatting import eps_text, points, with_interval

ATTACK_NAMES = {"fgsm": "FGSM", "pgd": "PGD", SWEEP: "PGD sweep", SUITE: "white-box suite", SQUARE: "Square attack"}
ATTACKERS = {
    "transfer": "the attacker ignores the defence (transfer)",
    "adaptive": "the attacker attacks through it (adaptive)",
    "black_box": "the attacker asks for scores and labels alone (black box)",
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
        """As legends and column heads call it."""
        return curve_name(self.target, self.threat_model)

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

    @property
    def styles(self) -> dict[str, int]:
        """Number of the colour and marker of each target, the same in all figures."""
        return {target: number for number, target in enumerate([self.undefended.target, *self.defences])}


def headline_of(table: pd.DataFrame) -> Headline:
    """The finding in sentences, under the attack of the claims (see :func:`headline_attack`) at the ε nearest to 1/255.

    Of several defences they tell of the one that keeps most when the attacker attacks through it.
    """
    attack = headline_attack(table[~table["attack"].isin(SEARCHES)])
    eps = min(eps_of(table), key=lambda eps: abs(math.log(eps)))
    undefended, *defended = curves_under(table, attack)
    assert undefended.target == UNDEFENDED
    defences: dict[str, dict[str, Curve]] = {}
    for curve in defended:
        defences.setdefault(curve.target, {})[curve.threat_model] = curve

    clean_of = {str(target): row for target, row in clean_rows(table).iterrows()}
    clean, bare = clean_of[UNDEFENDED], undefended.at(eps)
    n_attacked = f" of {bare['n']} of them" if bare["n"] < clean["n"] else ""
    sentences = [
        f"The classifier is right on {with_interval(clean)} of {clean['n']} clean test images.",
        f"Under {attack_name(attack)} at ε = {eps_text(eps)}/255 it is right on {with_interval(bare)}{n_attacked}.",
    ]
    if defences:
        best = max(defences, key=lambda name: float(defences[name]["adaptive"].at(eps)["accuracy"]))
        if len(defences) > 1:
            sentences.append(f"Of {len(defences)} defences the {spoken(best)} keeps most when {ATTACKERS['adaptive']}.")
        cost = clean["accuracy"] - clean_of[best]["accuracy"]
        sentences += _of_defence(spoken(best), cost, bare, defences[best], eps)
    return Headline(attack, eps, clean_of, undefended, defences, sentences)


def _of_defence(name: str, cost: float, bare: Row, curves: dict[str, Curve], eps: float) -> list[str]:
    """What a defence keeps under attack, what it costs of clean accuracy, and what is left of its gain."""
    kept = [f"on {with_interval(curve.at(eps))} when {ATTACKERS[threat]}" for threat, curve in curves.items()]
    sentences = [f"With the {name} it is right {', and '.join(kept)}."]
    if cost > 0:
        sentences.append(f"The {name} costs {points(cost)} of clean accuracy.")
    if "transfer" in curves:
        verdict = _verdict(bare, curves["transfer"].at(eps), curves["adaptive"].at(eps))
        sentences.append(verdict + _fall(curves["adaptive"]))
    return sentences


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


def curve_name(target: str, threat_model: str) -> str:
    """``undefended``, ``autoencoder, transfer``; every attack on the bare classifier is adaptive."""
    return (
        spoken(target)
        if target == UNDEFENDED or threat_model == "none"
        else f"{spoken(target)}, {spoken(threat_model)}"
    )


def attack_name(attack: str) -> str:
    """``pgd`` as people write it."""
    return ATTACK_NAMES.get(attack, attack)
