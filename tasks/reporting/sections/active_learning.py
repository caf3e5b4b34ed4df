"""Which images should be labelled, if labels are dear?"""

import math

import numpy as np
import pandas as pd

from tasks.labelling.learning_curves import ALL_LABELS, RANDOM
from tasks.records.vocabulary import spoken
from tasks.reporting import pictures
from tasks.reporting.examples import Pictures
from tasks.reporting.findings import Headline
from tasks.reporting.panels import Line, Panel
from tasks.reporting.results import Learning, Results
from tasks.reporting.sections.section import (
    IMAGES,
    Drawing,
    Format,
    Section,
    Table,
    estimate,
    lines_drawing,
    share,
)

PANELS = {
    "clean_accuracy": ("clean accuracy", "share"),
    "robust_accuracy": ("robust accuracy", "share"),
    "gap": ("clean minus robust accuracy", "share"),
    "labelling_accuracy": ("labelling accuracy", "share"),
    "pool_entropy": ("entropy of the pool (nats)", "linear"),
    "ece": ("expected calibration error", "share"),
}
"""Metric -> its axis, and how that is written."""
N_ROWS, N_COLUMNS = 5, 6
"""Cycles and images of a cycle in the figure of queried images, at most."""


def points(value: float) -> str:
    """A difference of shares in percentage points; NaN is a dash."""
    return "–" if math.isnan(value) else f"{100 * value:+.1f}".replace("-", "−")


def whole(value: float) -> str:
    """A number of labels; NaN is a dash."""
    return "–" if math.isnan(value) else f"{value:.0f}".replace("-", "−")


ACCURACIES: dict[str, tuple[str, Format]] = {
    "clean_area": ("mean clean accuracy", share),
    "clean_area_gain": ("against random, points", points),
    "robust_area": ("mean robust accuracy", share),
    "robust_area_gain": ("against random, points", points),
    "final_clean": ("clean at the end", share),
    "final_clean_gain": ("against random, points", points),
    "final_robust": ("robust at the end", share),
    "final_robust_gain": ("against random, points", points),
    "final_gap": ("gap at the end", share),
}
LABELS: dict[str, tuple[str, Format]] = {
    "labels_90": ("labels to 90 %", whole),
    "labels_90_saved": ("fewer than random", whole),
    "labels_95": ("labels to 95 %", whole),
    "labels_95_saved": ("fewer than random", whole),
}
"""Quantity -> its head in a table, and how it is written."""
NOTE = (
    "A classifier begins with few labelled images. In each cycle an acquisition function chooses images of the pool, "
    "their labels are told, and it trains on. Labelling accuracy: of the classifier on images that it is about to be "
    "told the label of. Robust accuracy: under PGD that knows the classifier. Mean accuracies are over the numbers of "
    "labels (the area under the learning curve over its width). Labels to 90 %: from which the clean accuracy reaches "
    "90 % of what all labels give. Of two classes, margin and least confidence ask for the same images as entropy. "
    "Every training lasts as many epochs, so more labels are more steps, too. These classifiers see smaller images and "
    "are trained in another way than the one of the other sections."
)


def active_learning_section(results: Results, _headline: Headline) -> Section:
    """Learning curves of all acquisition functions, what decides between them, and the images that they asked for."""
    learning = results.learning
    seeds = learning.cycles["seed"].nunique()
    spread = f"bands are 95 % intervals over {seeds} seeds" if seeds > 1 else "one seed, so there is no interval"
    drawings = [
        _curves(learning, list(PANELS)[:3], "right", spread),
        _curves(learning, list(PANELS)[3:], "doubt", spread),
    ]
    drawings += [_queried(learning, results, name) for name in dict.fromkeys(learning.queries["acquisition"])]
    tables = efficiency_tables(learning.efficiency)
    return Section(
        "active-learning",
        "Active learning",
        "Active learning: which images should be labelled?",
        _answer(learning),
        [NOTE],
        drawings,
        tables,
    )


def _answer(learning: Learning) -> str:
    names = _asked(learning)
    gains = {name: _quantity(learning.efficiency, name, "clean_area_gain") for name in names}
    if not names:
        return _random_alone(learning)
    if len(names) <= 2 or any(math.isnan(gain["low"]) for gain in gains.values()):
        return " ".join(comparison(learning.efficiency, name) for name in names)
    better, worse = (
        [f"{spoken(name)} ({estimate(gain, points)})" for name, gain in gains.items() if sign * gain[end] > 0]
        for sign, end in ((1, "low"), (-1, "high"))
    )
    return (
        f"Of {len(names)} acquisition functions, by their mean clean accuracy in points against random, better: "
        f"{', '.join(better) or 'none'}; worse: {', '.join(worse) or 'none'}; not told from it: "
        f"{len(names) - len(better) - len(worse)}."
    )


def comparison(efficiency: pd.DataFrame, acquisition: str) -> str:
    """A sentence on whether an acquisition function beats random."""
    gain = _quantity(efficiency, acquisition, "clean_area_gain")
    robust = _quantity(efficiency, acquisition, "robust_area_gain")
    name = spoken(acquisition)
    sentence = (
        f"{name[0].upper()}{name[1:]} changes the mean clean accuracy by {estimate(gain, points)} points against "
        f"random, the robust one by {estimate(robust, points)}"
    )
    if math.isnan(gain["value"]):
        return f"{name[0].upper()}{name[1:]} asked for too little to be compared with random."
    if math.isnan(gain["low"]):
        return f"{sentence}; one seed decides nothing."
    if gain["low"] > 0:
        return f"{sentence}: better than random on clean images."
    return (
        f"{sentence}: worse than random on clean images."
        if gain["high"] < 0
        else f"{sentence}: not told from random on clean images."
    )


def _asked(learning: Learning) -> list[str]:
    names = learning.efficiency["acquisition"].unique()
    return [str(name) for name in names if name != RANDOM]


def _random_alone(learning: Learning) -> str:
    area = _quantity(learning.efficiency, RANDOM, "clean_area")
    return f"Images were chosen at random: mean clean accuracy {estimate(area, share)}."


def _quantity(efficiency: pd.DataFrame, acquisition: str, quantity: str) -> "pd.Series[float]":
    of = efficiency[(efficiency["acquisition"] == acquisition) & (efficiency["quantity"] == quantity)]
    row: pd.Series[float] = of.iloc[0]
    return row


def _curves(learning: Learning, metrics: list[str], name: str, spread: str) -> Drawing:
    table = learning.curves
    panels = []
    for metric in metrics:
        label, scale = PANELS[metric]
        rows = table[(table["metric"] == metric) & table["value"].notna()]
        lines = []
        for style, (acquisition, of_line) in enumerate(
            rows[rows["acquisition"] != ALL_LABELS].groupby("acquisition", sort=False)
        ):
            x, y, low, high = (of_line[column].to_numpy(float) for column in ("n_labelled", "value", "low", "high"))
            band = (None, None) if np.isnan(low).all() else (low, high)
            lines.append(Line(spoken(str(acquisition)), x, y, style, "solid", *band))
        full = rows.loc[rows["acquisition"] == ALL_LABELS, "value"]
        level = float(full.iloc[0]) if len(full) else None
        panels.append(
            Panel("labelled images", label, lines, y_scale="share" if scale == "share" else "linear", level=level)
        )
    said = ", ".join(PANELS[metric][0] for metric in metrics)
    return lines_drawing(
        f"learning-curves-{name}",
        panels,
        f"{said} against the number of labelled images, by acquisition function; a table has the numbers",
        f"{said[0].upper()}{said[1:]} by labelled images; {spread}. Grey lines: what all labels give.",
    )


def efficiency_tables(efficiency: pd.DataFrame) -> list[Table]:
    """What labels are worth, and how many are needed; a row for each acquisition function.

    Args:
        efficiency: of :func:`tasks.labelling.learning_curves.summary_table`.
    """
    seeds = int(efficiency["n_seeds"].max())
    of = f"mean of {seeds} {'seeds with 95 % intervals (Student)' if seeds > 1 else 'seed'}"
    return [
        _table(efficiency, ACCURACIES, f"What labels are worth, {of}."),
        _table(efficiency, LABELS, f"How many labels are needed, {of}; a dash: not reached, or nothing to compare."),
    ]


def _table(efficiency: pd.DataFrame, quantities: dict[str, tuple[str, Format]], caption: str) -> Table:
    seeds = int(efficiency["n_seeds"].max())
    rows = []
    for acquisition, of in efficiency.groupby("acquisition", sort=False):
        by_quantity = {row["quantity"]: row for _, row in of.iterrows()}
        cells = []
        for name, (_, form) in quantities.items():
            told = by_quantity.get(name)
            few = f" ({told['n_seeds']} of {seeds} seeds)" if told is not None and 0 < told["n_seeds"] < seeds else ""
            cells.append("–" if told is None else f"{estimate(told, form)}{few}")
        rows.append([spoken(str(acquisition)), *cells])
    return Table(caption, ["acquisition", *(head for head, _ in quantities.values())], rows, is_sortable=True)


def _queried(learning: Learning, results: Results, acquisition: str) -> Drawing:
    """The first images of each query of the first seed."""
    classes = results.data.classes
    of = learning.queries[learning.queries["acquisition"] == acquisition]
    of = of[of["seed"] == of["seed"].min()]
    cycles = sorted(of["cycle"].unique())[:N_ROWS]
    side = results.data.pixels.shape[2:]
    images = np.ones((len(cycles), N_COLUMNS, *side))
    captions = [[""] * N_COLUMNS for _ in cycles]
    for row, cycle in enumerate(cycles):
        first = of[of["cycle"] == cycle].head(N_COLUMNS)
        images[row, : len(first)] = results.data.floats(first["image"].to_numpy())[:, 0]
        for column, asked in enumerate(first.itertuples()):
            is_right = asked.predicted == asked.label
            captions[row][column] = (
                f"{classes[asked.label]}{'' if is_right else ', taken for ' + classes[asked.predicted]}"
            )
    shown = Pictures(images, [f"cycle {cycle}" for cycle in cycles], [], captions)
    name = spoken(acquisition)
    return Drawing(
        f"{IMAGES}queried-{acquisition}",
        pictures.image_grid(shown),
        f"Images that {name} asked about first in each cycle",
        f"Images that {name} asked about first, a row a cycle, the most wanted on the left; below each its class, and "
        "what the classifier took it for where it was wrong.",
        group="Images that were asked about",
    )
