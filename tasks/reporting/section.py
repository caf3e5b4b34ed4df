"""What a section of the page is made of, and what all of them need to tell the numbers of a table."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tasks.params import UNDEFENDED
from tasks.records.vocabulary import CLEAN, spoken
from tasks.reporting import figures, interactive
from tasks.reporting.findings import Headline, attack_name, curve_name
from tasks.reporting.panels import Line, Panel, dash_of, line_over_eps
from tasks.statistics.formatting import eps_text

IMAGES = "images-"
"""How the names of figures begin that show images of the data set, whose licence they come under."""

DOTTED = (
    "Dotted: adversarial images as they are; the other lines: behind the purifier of that target, at ε = 0 the clean "
    "images. Bands are 95 % intervals."
)
"""What captions say of :func:`lines_of_images`."""

CURVE_KEYS = {"target": "target", "threat_model": "threat model", "attack": "attack", "eps": "ε in 1/255"}
IMAGE_KEYS = {"surrogate": "crafted on", "attack": "attack", "eps": "ε in 1/255", "images": "images"}
IMAGE_KEYS |= {"purifier": "purifier"}
"""Columns that say what a row is about -> their heads: a point of a curve, or images as they are or purified."""

Format = Callable[[float], str]


@dataclass(frozen=True)
class Drawing:
    """A figure with its words."""

    name: str
    """Of its file, without ending."""
    figure: Figure
    alt: str
    caption: str
    plot: dict[str, Any] | None = None
    """The same for plotly.js, if readers want values."""
    group: str = ""
    """Title of the fold that it is in, if there is something else to look at first."""


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell of each is its head."""

    caption: str
    head: list[str]
    rows: list[list[str]]
    is_folded: bool = False
    """Whether readers unfold it first."""
    is_sortable: bool = False
    """Whether a click on a head sorts the rows by that column."""


@dataclass(frozen=True)
class Section:
    """A question, its answer in one sentence, and what that rests on."""

    key: str
    """Anchor on the page."""
    short: str
    """Title among the links."""
    title: str
    answer: str
    notes: list[str] = field(default_factory=list)
    """Words that the figures and tables need."""
    drawings: list[Drawing] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


@dataclass(frozen=True)
class Point:
    """The attack and ε that a section's sentence and its table are about."""

    attack: str
    eps: float

    def __str__(self) -> str:
        return f"{attack_name(self.attack)} at ε = {eps_text(self.eps)}/255"

    def of(self, table: pd.DataFrame) -> pd.DataFrame:
        """Rows of this attack and ε."""
        return table[(table["attack"] == self.attack) & (table["eps"] == self.eps)]


def point_of(table: pd.DataFrame, headline: Headline) -> Point | None:
    """The headline's attack and ε, or what the table has that is nearest to it; None if nothing in it was attacked."""
    attacked = table[table["attack"] != CLEAN]
    if attacked.empty:
        return None
    attacks = list(attacked["attack"])
    attack = headline.attack if headline.attack in attacks else attacks[-1]
    eps = attacked.loc[attacked["attack"] == attack, "eps"]
    return Point(attack, min(map(float, eps), key=lambda eps: abs(math.log(eps / headline.eps))))


def lines_of_images(rows: pd.DataFrame, styles: dict[str, int]) -> list[Line]:
    """Lines over ε of adversarial images as they are (dotted), and of what each target's purifier makes of them.

    The latter look and are called as the target's curves are elsewhere, and begin with clean images.

    Args:
        rows: of one metric and attack, and of clean images, with ``surrogate``, ``attack``, ``eps``, ``purifier``,
            ``value``, ``low`` and ``high``.
        styles: by target.
    """
    clean, attacked = rows[rows["attack"] == CLEAN], rows[rows["attack"] != CLEAN]
    lines = []
    for names, of_line in attacked.groupby(["surrogate", "purifier"], sort=False):
        surrogate, purifier = map(str, names)
        if purifier:
            threat_model = "adaptive" if purifier == surrogate else "transfer"
            from_clean = pd.concat([clean[clean["purifier"] == purifier], of_line])
            name, dash = curve_name(purifier, threat_model), dash_of(threat_model)
            lines.append(line_over_eps(name, from_clean, style=styles[purifier], dash=dash))
        else:
            name = f"crafted on {spoken(surrogate)}"
            lines.append(line_over_eps(name, of_line, style=styles[surrogate], dash="dotted"))
    return lines


def lines_drawing(
    name: str, panels: Sequence[Panel], alt: str, caption: str, is_interactive: bool = False, n_columns: int = 3
) -> Drawing:
    """Panels as a drawing; an interactive one has a single panel."""
    plot = interactive.line_plot(*panels) if is_interactive else None
    return Drawing(name, figures.lines(panels, n_columns), alt, caption, plot)


def plain(value: float) -> str:
    """A number in at least three digits; NaN is a dash."""
    return _written(value, f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}")


def fixed(n_digits: int) -> Format:
    """Numbers with so many digits behind the point; NaN is a dash."""
    return lambda value: _written(value, f"{value:.{n_digits}f}")


def share(value: float) -> str:
    """``0.932`` as ``93.2 %``; NaN is a dash."""
    return _written(value, f"{100 * value:.1f} %")


def _written(value: float, digits: str) -> str:
    return "–" if math.isnan(value) else digits.replace("-", "−")


def estimate(row: Any, form: Format = plain, quantity: str = "value") -> str:
    """A number with its 95 % interval: ``0.93 [0.90, 0.95]``.

    Args:
        row: with the quantity and its interval, as :func:`tasks.reporting.panels.line_over_eps` finds them.
        form: how to write one number.
        quantity: column.
    """
    prefix = "" if quantity == "value" else f"{quantity}_"
    low, high = float(row[f"{prefix}low"]), float(row[f"{prefix}high"])
    value = form(float(row[quantity]))
    if math.isnan(low) or math.isnan(high):
        return value
    return f"{value} [{form(low).removesuffix(' %')}, {form(high).removesuffix(' %')}]"


def undefended_and_defended(rows: pd.DataFrame, form: Format) -> str:
    """The undefended target's number, then the least and the most of the defended ones with their names.

    Args:
        rows: one of each target and threat model, with ``value``, ``low`` and ``high``.
        form: how to write one number.
    """

    def told(row: Any) -> str:
        return f"{estimate(row, form)} ({curve_name(row['target'], row['threat_model'])})"

    is_bare = rows["target"] == UNDEFENDED
    bare = ", ".join(told(row) for _, row in rows[is_bare].iterrows())
    defended = [told(row) for _, row in rows[~is_bare].sort_values("value", kind="stable").iterrows()]
    if not defended:
        return bare
    between = defended[0] if len(defended) == 1 else f"between {defended[0]} and {defended[-1]}"
    return f"{bare} and, with a defence in front, {between}"


def metrics_table(
    caption: str,
    table: pd.DataFrame,
    keys: dict[str, str],
    metrics: dict[str, tuple[str, Format]],
    counts: dict[str, str] | None = None,
    is_folded: bool = False,
) -> Table:
    """A long table with a row for each combination of keys and a column a metric.

    Args:
        caption: of the table.
        table: with the keys' columns, ``metric``, ``value``, ``low`` and ``high``.
        keys: column -> its head.
        metrics: metric -> its head and how its numbers are written; others are left out.
        counts: column of integers that do not depend on the metric -> its head.
        is_folded: whether readers unfold it first.
    """
    rows = []
    for _, of_key in table.groupby(list(keys), sort=False):
        by_metric = {row["metric"]: row for _, row in of_key.iterrows()}
        first = of_key.iloc[0]
        cells = [estimate(by_metric[name], form) if name in by_metric else "–" for name, (_, form) in metrics.items()]
        rows.append(
            [*(key_text(key, first[key]) for key in keys), *cells, *(f"{first[name]}" for name in counts or {})]
        )
    heads = [*keys.values(), *(head for head, _ in metrics.values()), *(counts or {}).values()]
    return Table(caption, heads, rows, is_folded)


def both_tables(
    point: Point,
    caption: str,
    table: pd.DataFrame,
    keys: dict[str, str],
    metrics: dict[str, tuple[str, Format]],
    counts: dict[str, str] | None = None,
    brief: pd.DataFrame | None = None,
) -> list[Table]:
    """What is under the point, and clean images, then, folded, all rows.

    Args:
        point: attack and ε.
        caption: what the tables have in common.
        table: as :func:`metrics_table` takes it, and the other arguments, too.
        keys: see there.
        metrics: see there.
        counts: see there.
        brief: rows of the table from which the first takes its own, if not from all.
    """
    brief = table if brief is None else brief
    clean = brief[brief["attack"] == CLEAN]
    of_point = pd.concat([clean, point.of(brief)])
    shown = f"Under {point}" if clean.empty else f"Clean images, and under {point}"
    return [
        metrics_table(f"{shown}. {caption}", of_point, keys, metrics, counts),
        metrics_table(f"Every attack and ε. {caption}", table, keys, metrics, counts, is_folded=True),
    ]


def key_text(key: str, value: Any) -> str:
    """A key's value as people write it; an empty one is a dash."""
    match key:
        case "eps":
            return eps_text(value)
        case "attack":
            return attack_name(value)
        case "target" | "surrogate" | "purifier":
            return spoken(value) or "–"
        case _:
            return str(value)


def picture_drawings(name: str, figures: Sequence[Figure], alt: str, caption: str) -> list[Drawing]:
    """Figures of images that belong together; the first carries the words for all."""
    return [
        Drawing(
            f"{IMAGES}{name}-{number}" if number else f"{IMAGES}{name}",
            figure,
            alt,
            "Continued." if number else caption,
        )
        for number, figure in enumerate(figures)
    ]
