"""Active learning: learning curves and label efficiency of the acquisition functions, and the queried images."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from tasks.dataset.prepared import as_pictures
from tasks.evaluation.learning_curves import RANDOM
from tasks.labelling.names import ALL_LABELS
from tasks.outcomes.names import display_name
from tasks.params.section import Training
from tasks.reporting import image_figures
from tasks.reporting.drawings import IMAGES, Drawing, lines_drawing
from tasks.reporting.examples import ImageGrid
from tasks.reporting.formats import Format, estimate, fixed, number, signed_points
from tasks.reporting.headline import Headline, Significance, significance_of
from tasks.reporting.panels import Line, Panel
from tasks.reporting.results import Results
from tasks.reporting.section import Section
from tasks.reporting.tables import Metrics, Table
from tasks.statistics.formatting import TOO_FEW_GROUPS, percent
from tasks.statistics.intervals import MIN_SEEDS

PANELS = {
    "clean_accuracy": ("clean accuracy", "share"),
    "robust_accuracy": ("robust accuracy", "share"),
    "accuracy_gap": ("clean minus robust accuracy", "share"),
    "query_accuracy": ("accuracy on queried images", "share"),
    "mean_pool_entropy": ("mean entropy of the pool (nats)", "linear"),
    "ece": ("expected calibration error", "share"),
}
"""Metric -> label and scale of its axis."""
FIGURES = {"right": list(PANELS)[:3], "doubt": list(PANELS)[3:]}
"""Suffix of a figure's name -> its metrics."""
N_ROWS, N_COLUMNS = 5, 6
"""Maximum number of cycles and of images of a cycle in the figure of queried images."""

ACCURACIES: Metrics = {
    "mean_clean_accuracy": ("mean clean accuracy", percent),
    "mean_clean_accuracy_gain": ("difference to random (points)", signed_points),
    "mean_robust_accuracy": ("mean robust accuracy", percent),
    "mean_robust_accuracy_gain": ("difference to random (points)", signed_points),
    "final_clean_accuracy": ("final clean accuracy", percent),
    "final_clean_accuracy_gain": ("difference to random (points)", signed_points),
    "final_robust_accuracy": ("final robust accuracy", percent),
    "final_robust_accuracy_gain": ("difference to random (points)", signed_points),
    "final_accuracy_gap": ("final clean minus robust accuracy", percent),
}
LABELS: Metrics = {
    "n_labels_90": ("labels to 90 %", fixed(0)),
    "n_labels_90_saved": ("fewer than random", fixed(0)),
    "n_labels_95": ("labels to 95 %", fixed(0)),
    "n_labels_95_saved": ("fewer than random", fixed(0)),
}
Outcome = Literal["better", "worse", "too few seeds", "not compared"] | Significance


@dataclass(frozen=True)
class Gain:
    """Difference of an acquisition function to random selection, in percentage points of mean accuracy."""

    acquisition: str
    """Display name."""
    clean: str
    robust: str
    outcome: Outcome
    """On clean images, for new groups and new seeds."""
    p_value: float
    """p-value on clean images after Holm's correction."""
    n_comparisons: float
    """Comparisons with random, on clean and on attacked images, that are one family."""


def active_learning_section(results: Results, _headline: Headline) -> Section:
    """Return learning curves, label efficiency, and the first images of each query."""
    efficiency, cycles = results.label_efficiency, results.cycles
    queried = list(dict.fromkeys(results.queries["acquisition"])) if results.params.report.include_images else []
    values: dict[str, Any] = {
        "gains": gains_of(efficiency),
        "at_chance": learners_at_chance(cycles, 1 / len(results.data.classes)),
        "random_accuracy": estimate(_metric_row(efficiency, RANDOM, "mean_clean_accuracy"), percent),
        "reference": reference_training(cycles, results.params.active_learning.reference_training),
        "min_seeds": MIN_SEEDS,
        "n_seeds": int(cycles["seed"].nunique()),
        "n_test": int(cycles["n_test"].iloc[0]),
        "n_attacked": int(cycles["n_attacked"].iloc[0]),
        "n_groups": int(cycles["n_test_groups"].iloc[0]),
        "figures_by_name": {f"learning-curves-{name}": [PANELS[each][0] for each in FIGURES[name]] for name in FIGURES},
        "queried": [{"name": f"{IMAGES}queried-{name}", "acquisition": display_name(name)} for name in queried],
        "accuracies": efficiency_table(efficiency, ACCURACIES),
        "labels": efficiency_table(efficiency, LABELS),
    }
    drawings = [_curves(results.learning_curves, name) for name in FIGURES]
    drawings += [_queried(results, name) for name in queried]
    return Section("active-learning", "Active learning", values, drawings)


def gains_of(efficiency: pd.DataFrame) -> list[Gain]:
    """Return the difference to random of every other acquisition function.

    Args:
        efficiency: table of :func:`tasks.evaluation.learning_curves.summary_table`.
    """
    names = [str(name) for name in efficiency["acquisition"].unique() if name != RANDOM]
    gains = []
    for name in names:
        clean, robust = (_metric_row(efficiency, name, f"mean_{kind}_accuracy_gain") for kind in ("clean", "robust"))
        gains.append(
            Gain(
                acquisition=display_name(name),
                clean=estimate(clean, signed_points),
                robust=estimate(robust, signed_points),
                outcome=_outcome(clean),
                p_value=clean["p_value_holm"],
                n_comparisons=clean["n_comparisons"],
            )
        )
    return gains


def learners_at_chance(cycles: pd.DataFrame, chance: float) -> dict[str, str] | None:
    """Return the range of the balanced accuracies after the last cycle if none is above chance; None otherwise.

    Args:
        cycles: table of :func:`tasks.evaluation.learning_curves.cycle_table`.
        chance: balanced accuracy of a constant prediction.
    """
    learners = cycles[cycles["acquisition"] != ALL_LABELS]
    last = learners.sort_values("cycle").groupby(["acquisition", "seed"]).tail(1)
    if not (last["balanced_accuracy_low"] <= chance).all():
        return None
    found = sorted({percent(value) for value in last["balanced_accuracy"].agg(["min", "max"])})
    return {"balanced_accuracy": " to ".join(found), "chance": percent(chance)}


def reference_training(cycles: pd.DataFrame, training: Training) -> str:
    """Describe the training of the reference: its rule, its epochs, and whether it has converged.

    Args:
        cycles: table of :func:`tasks.evaluation.learning_curves.cycle_table`.
        training: ``active_learning.reference_training``.
    """
    epochs = cycles.loc[cycles["acquisition"] == ALL_LABELS, "n_epochs"].astype(int)
    run = f"{epochs.min()} to {epochs.max()} epochs" if epochs.nunique() > 1 else f"{epochs.iloc[0]} epochs"
    if not training.early_stopping_patience:
        return f"trained for {run}, without a rule that stops it"
    rule = f"until the accuracy on validation images had not risen for {training.early_stopping_patience} epochs"
    if n_unfinished := int((epochs >= training.epochs).sum()):
        return (
            f"trained {rule}, for at most {training.epochs} epochs: {n_unfinished} of {len(epochs)} trainings reached "
            "this number and may not have converged"
        )
    return f"trained {rule} ({run})"


def efficiency_table(efficiency: pd.DataFrame, metrics: Metrics) -> Table:
    """Return one row for each acquisition function and one column for each metric.

    Args:
        efficiency: table of :func:`tasks.evaluation.learning_curves.summary_table`.
        metrics: :data:`ACCURACIES` or :data:`LABELS`.
    """
    n_seeds = int(efficiency["n_seeds"].max())
    rows = []
    for acquisition, of_function in efficiency.groupby("acquisition", sort=False):
        by_metric = {row["metric"]: row for _, row in of_function.iterrows()}
        cells = []
        for name, (_, form) in metrics.items():
            row = by_metric.get(name)
            some = f" ({row['n_seeds']} of {n_seeds} seeds)" if row is not None and 0 < row["n_seeds"] < n_seeds else ""
            if row is None or math.isnan(row["value"]):
                cells.append("–")
                continue
            no_interval = "" if name.startswith("n_labels") or some else TOO_FEW_GROUPS
            cells.append(f"{estimate(row, form, no_interval=no_interval)}{_seeds_text(row, form)}{some}")
        rows.append([display_name(str(acquisition)), *cells])
    return Table(["acquisition function", *(head for head, _ in metrics.values())], rows)


def _range(row: "pd.Series[float]", form: Format) -> str:
    return f"{number(row['lowest'], form).removesuffix(' %')} to {number(row['highest'], form)}"


def _seeds_text(row: "pd.Series[float]", form: Format) -> str:
    """Range over the seeds, if there are several."""
    return "" if row["n_seeds"] < 2 or math.isnan(row["lowest"]) else f"; {_range(row, form)}"


def _outcome(gain: "pd.Series[float]") -> Outcome:
    if math.isnan(gain["value"]):
        return "not compared"
    if gain["n_seeds"] < MIN_SEEDS:
        return "too few seeds"
    found = significance_of(gain["all_seeds_low"], gain["all_seeds_high"], gain["p_value_holm"])
    if found != "significant":
        return found
    return "better" if gain["value"] > 0 else "worse"


def _metric_row(efficiency: pd.DataFrame, acquisition: str, metric: str) -> "pd.Series[float]":
    rows = efficiency[(efficiency["acquisition"] == acquisition) & (efficiency["metric"] == metric)]
    row: pd.Series[float] = rows.iloc[0]
    return row


def _curves(table: pd.DataFrame, name: str) -> Drawing:
    panels = []
    for metric in FIGURES[name]:
        label, scale = PANELS[metric]
        rows = table[(table["metric"] == metric) & table["value"].notna()]
        lines = []
        for style, (acquisition, of_line) in enumerate(
            rows[rows["acquisition"] != ALL_LABELS].groupby("acquisition", sort=False)
        ):
            x, y, low, high = (of_line[column].to_numpy(float) for column in ("n_labelled", "value", "low", "high"))
            band = (None, None) if np.isnan(low).all() else (low, high)
            lines.append(Line(display_name(str(acquisition)), x, y, style, "solid", *band))
        full = rows.loc[rows["acquisition"] == ALL_LABELS, "value"]
        level = float(full.iloc[0]) if len(full) else None
        panels.append(
            Panel("labelled images", label, lines, y_scale="share" if scale == "share" else "linear", level=level)
        )
    return lines_drawing(f"learning-curves-{name}", panels)


def _queried(results: Results, acquisition: str) -> Drawing:
    """Draw the first images of each query of the first seed."""
    classes = results.data.classes
    queries = results.queries[results.queries["acquisition"] == acquisition]
    queries = queries[queries["seed"] == queries["seed"].min()]
    cycles = sorted(queries["cycle"].unique())[:N_ROWS]
    images = np.ones((len(cycles), N_COLUMNS, *as_pictures(results.data.pixels[:1]).shape[1:]))
    captions = [[""] * N_COLUMNS for _ in cycles]
    for row, cycle in enumerate(cycles):
        first = queries[queries["cycle"] == cycle].head(N_COLUMNS)
        images[row, : len(first)] = as_pictures(results.data.floats(first["image"].to_numpy()))
        for column, query in enumerate(first.itertuples()):
            is_correct = query.prediction == query.label
            predicted = "" if is_correct else f", predicted {classes[query.prediction]}"
            captions[row][column] = f"{classes[query.label]}{predicted}"
    shown = ImageGrid(images, [f"cycle {cycle}" for cycle in cycles], [], captions)
    return Drawing(f"{IMAGES}queried-{acquisition}", image_figures.image_grid(shown))
