"""Curves of the robustness table: accuracy of one target under one attack, threat model and surrogate, by eps.

The robustness table is ``data/evaluate/robustness.csv``. It has one row for each target, threat model, attack,
surrogate and eps. Rates are in [0, 1], eps is in units of 1/255. Rows of clean images have the attack ``clean``, the
threat model ``none`` and eps 0.
"""

from dataclasses import dataclass

import pandas as pd

from tasks.evaluation.robustness import curves_of
from tasks.params import UNDEFENDED
from tasks.records.vocabulary import CLEAN
from tasks.reporting.names import curve_name
from tasks.statistics.formatting import Row


@dataclass(frozen=True)
class Curve:
    """One target under one attack and threat model."""

    target: str
    threat_model: str
    attack: str
    surrogate: str
    """Surrogate of a transfer attack; empty for other threat models."""
    rows: pd.DataFrame
    """Rows of the robustness table, eps rising. The first row is about the same images without an attack."""

    @property
    def name(self) -> str:
        """Display name in legends and table heads."""
        return curve_name(self.target, self.threat_model, self.surrogate or UNDEFENDED)

    def at(self, eps: float) -> Row:
        """Row of this eps (0: clean)."""
        return self.rows[self.rows["eps"] == eps].iloc[0]


def attacks_of(table: pd.DataFrame) -> list[str]:
    """Attacks of the robustness table, in the order of its rows, without ``clean``."""
    return [attack for attack in table["attack"].unique() if attack != CLEAN]


def eps_of(table: pd.DataFrame) -> list[float]:
    """The eps grid, rising, without 0."""
    return sorted({float(eps) for eps in table["eps"]} - {0.0})


def curves_under(table: pd.DataFrame, attack: str) -> list[Curve]:
    """Curves under one attack, in the order of the table."""
    return [Curve(*names, rows) for names, rows in curves_of(table).items() if names[2] == attack]
