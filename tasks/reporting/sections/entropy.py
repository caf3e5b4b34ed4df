"""Mean entropy of the predictions by eps."""

import math

import pandas as pd

from tasks.reporting.curves import attacks_of
from tasks.reporting.drawings import lines_drawing
from tasks.reporting.formats import number
from tasks.reporting.headline import Headline
from tasks.reporting.names import attack_name
from tasks.reporting.panels import Panel, over_eps
from tasks.reporting.results import Results
from tasks.reporting.section import Section
from tasks.reporting.sections.accuracy import quantity_lines


def entropy_section(results: Results, headline: Headline) -> Section:
    """Return the mean entropy of the predictions against eps, one figure for each attack."""
    table, n_classes = results.robustness, len(results.data.classes)
    with_entropy = table[table["mean_entropy"].notna()]
    attacks = attacks_of(with_entropy)
    drawings = [
        lines_drawing(f"entropy-{attack}", [entropy_panel(with_entropy, attack, headline.styles)]) for attack in attacks
    ]
    values = {"attacks": attacks, "n_classes": n_classes, "max_entropy": number(math.log(n_classes))}
    return Section("entropy", "Entropy of the predictions", values, drawings)


def entropy_panel(table: pd.DataFrame, attack: str, styles: dict[str, int]) -> Panel:
    """Return the panel of mean entropy (nats) against eps under one attack.

    Args:
        table: robustness table.
        attack: name in the table.
        styles: style of each target.
    """
    lines = quantity_lines(table, attack, "mean_entropy", styles)
    return over_eps(f"mean entropy under {attack_name(attack)} (nats)", lines, y_range=(0, None))
