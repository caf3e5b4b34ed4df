"""The headline result: clean and robust accuracy at one attack and eps, without and with the defences."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import pandas as pd

from tasks.analysis.claims import headline_attack
from tasks.evaluation.robustness import clean_rows
from tasks.params import UNDEFENDED
from tasks.records.vocabulary import SEARCHES
from tasks.reporting.curves import Curve, curves_under
from tasks.statistics.formatting import Row, eps_text

MAX_BROKEN_ACCURACY = 0.01
"""A target with an accuracy of at most this is reported as broken."""

Outcome = Literal["adaptive is weaker", "no gain", "no adaptive gain", "same gain", "smaller adaptive gain"]


@dataclass(frozen=True)
class Headline:
    """Accuracies under one attack at one eps."""

    attack: str
    eps: float
    clean: dict[str, Row]
    """Target -> its row of the robustness table on all clean test images."""
    undefended: Curve
    defences: dict[str, dict[str, Curve]]
    """Defence -> threat model -> curve."""

    @property
    def styles(self) -> dict[str, int]:
        """Number of the colour and marker of each target, the same in all figures."""
        return {target: number for number, target in enumerate([self.undefended.target, *self.defences])}

    @property
    def n_attacked(self) -> int:
        """Number of attacked test images."""
        return int(self.undefended.at(self.eps)["n"])

    @cached_property
    def best(self) -> "DefenceResult | None":
        """Result of the defence with the highest accuracy under the adaptive attack."""
        if not self.defences:
            return None
        name = max(self.defences, key=lambda name: float(self.defences[name]["adaptive"].at(self.eps)["accuracy"]))
        return DefenceResult(
            name=name,
            clean_loss=float(self.clean[UNDEFENDED]["accuracy"] - self.clean[name]["accuracy"]),
            undefended=self.undefended.at(self.eps),
            adaptive=self.defences[name]["adaptive"].at(self.eps),
            transfer=self.defences[name]["transfer"].at(self.eps) if "transfer" in self.defences[name] else None,
            broken=_first_broken(self.defences[name]["adaptive"], self.eps),
        )


@dataclass(frozen=True)
class DefenceResult:
    """Accuracies with one defence and differences to the undefended classifier."""

    name: str
    clean_loss: float
    """Clean accuracy of the undefended classifier minus clean accuracy with the defence."""
    undefended: Row
    adaptive: Row
    transfer: Row | None
    """None if the attack was not transferred."""
    broken: Row | None
    """Row of the smallest larger eps at which the adaptive attack breaks almost all images."""

    @property
    def adaptive_gain(self) -> float:
        """Accuracy gained by the defence under the adaptive attack."""
        return float(self.adaptive["accuracy"] - self.undefended["accuracy"])

    @property
    def transfer_gain(self) -> float:
        """Accuracy gained by the defence under the transfer attack."""
        assert self.transfer is not None
        return float(self.transfer["accuracy"] - self.undefended["accuracy"])

    @property
    def intervals_overlap(self) -> bool:
        """Return whether the intervals with the defence (adaptive) and without it overlap."""
        return bool(self.adaptive["accuracy_low"] <= self.undefended["accuracy_high"])

    @property
    def outcome(self) -> Outcome | None:
        """Comparison of the gains under both attacks; None without a transfer attack."""
        if self.transfer is None:
            return None
        if self.adaptive_gain > self.transfer_gain:
            return "adaptive is weaker"
        if self.transfer_gain <= 0:
            return "no gain"
        if self.adaptive_gain <= 0:
            return "no adaptive gain"
        return "same gain" if self.adaptive_gain == self.transfer_gain else "smaller adaptive gain"


def headline_of(table: pd.DataFrame, eps: float) -> Headline:
    """Return the headline result under the attack of the claims (see :func:`headline_attack`).

    Args:
        table: robustness table.
        eps: ``analyze.eps``; one of those in the table.
    """
    attack = headline_attack(table[~table["attack"].isin(SEARCHES)])
    undefended, *defended = curves_under(table, attack)
    assert undefended.target == UNDEFENDED
    defences: dict[str, dict[str, Curve]] = {}
    for curve in defended:
        defences.setdefault(curve.target, {})[curve.threat_model] = curve
    clean = {str(target): row for target, row in clean_rows(table).iterrows()}
    return Headline(attack, eps, clean, undefended, defences)


def headline_metrics(metrics: dict[str, Any], eps: float) -> dict[str, float]:
    """Metrics of the report's tracking run, from ``metrics.json``.

    ``clean/<metric>`` and ``clean/<defence>_<metric>`` as the step ``evaluate`` names them, and accuracies at one eps
    as ``robust/<target>_<threat model>_<attack>_eps_<eps>``.
    """
    flat = {
        f"clean/{name}" if target == UNDEFENDED else f"clean/{target}_{name}": value
        for target, values in metrics["clean"].items()
        for name, value in values.items()
    }
    key = f"eps_{eps_text(eps)}"
    for target, by_threat_model in metrics["robust"].items():
        for threat_model, by_attack in by_threat_model.items():
            for attack, by_eps in by_attack.items():
                flat[f"robust/{target}_{threat_model}_{attack}_{key}"] = by_eps[key]
    return flat


def _first_broken(adaptive: Curve, eps: float) -> Row | None:
    rows = adaptive.rows
    broken = rows[(rows["eps"] > eps) & (rows["accuracy"] <= MAX_BROKEN_ACCURACY)]
    return None if broken.empty else broken.iloc[0]
