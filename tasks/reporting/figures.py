"""The report's figures: each function draws one panel and returns a matplotlib ``Figure``.

No function touches pyplot's state, and :func:`png` and :func:`svg` give the same bytes for the same figure. Colours
are Okabe and Ito's (https://jfly.uni-koeln.de/color/), which colour-blind readers tell apart; line styles and markers
differ as well, so that a grey print can be read. Names of classes are drawn as they are, never as TeX.
"""

import io
import itertools
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from tasks.reporting.findings import attack_name, attacks_of, curves_under, eps_of, eps_text

STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 2.2,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.2,
    "text.parse_math": False,
    "axes.unicode_minus": True,
    # text stays text: small, sharp, found by a search; ids depend on the drawing alone
    "svg.fonttype": "none",
    "svg.hashsalt": "ct-robustness",
}
PALETTE = ["#333333", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"]
LINES = {"transfer": "--", "adaptive": "-", "black_box": ":"}
MARKERS = ["o", "s", "D", "^", "v", "P", "X"]
DPI = 150
TRAINING_SIZE = (4.2, 3.0)
"""Inches, width and height."""


def loss(history: pd.DataFrame, label: str) -> Figure:
    """Training and validation loss by epoch, the kept epoch marked.

    Args:
        history: a row an epoch with ``epoch``, ``train_loss``, ``validation_loss`` and ``best`` (1 at the kept epoch).
        label: of the loss's axis.
    """
    figure, axes = _panel("epoch", label, TRAINING_SIZE)
    _history(axes, history, "loss", scale=1.0)
    axes.set_ylim(bottom=0)
    return _with_legend(figure, axes)


def accuracy(history: pd.DataFrame, label: str) -> Figure:
    """Training and validation accuracy in per cent by epoch, the kept epoch marked.

    Args:
        history: as for :func:`loss`, with ``train_accuracy`` and ``validation_accuracy`` in [0, 1].
        label: of the accuracy's axis.
    """
    figure, axes = _panel("epoch", label, TRAINING_SIZE)
    _history(axes, history, "accuracy", scale=100.0)
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0, symbol=" %"))
    return _with_legend(figure, axes)


def robustness(table: pd.DataFrame, attack: str) -> Figure:
    """Accuracy in per cent against ε under one attack, a curve with its 95 % band for each target and threat model.

    Args:
        table: robustness table (see :mod:`tasks.reporting.findings`).
        attack: ``fgsm``, ``pgd``, ...
    """
    figure, axes = _panel("ε in 1/255", f"accuracy under {attack_name(attack)}")
    _curves(axes, table, attack, "accuracy", scale=100.0)
    axes.set_ylim(-2, 102)
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0, symbol=" %"))
    return _with_legend(figure, axes)


def entropy(table: pd.DataFrame, attack: str) -> Figure:
    """Mean entropy of the predicted probabilities in nats against ε under one attack, curves as in :func:`robustness`.

    Args:
        table: robustness table (see :mod:`tasks.reporting.findings`).
        attack: ``fgsm``, ``pgd``, ...
    """
    figure, axes = _panel("ε in 1/255", f"mean entropy under {attack_name(attack)} (nats)")
    _curves(axes, table, attack, "mean_entropy", scale=1.0)
    axes.set_ylim(bottom=0)
    return _with_legend(figure, axes)


def confusion(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Confusion matrix: images in each cell, and the share of its row (the actual class) as the shade.

    Args:
        counts: int ``(K, K)``, actual class by predicted class.
        classes: the K names.
    """
    n_classes = len(classes)
    side = 2.9 if n_classes <= 4 else min(1.5 + 0.45 * n_classes, 9)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(side, side))
        axes = figure.add_subplot(xlabel="predicted", ylabel="actual")
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1.15, edgecolors="white", linewidth=1.5)
        axes.grid(visible=False)
        axes.set_aspect("equal")
        axes.invert_yaxis()
        for spine in axes.spines.values():
            spine.set_visible(False)
        ticks = np.arange(n_classes) + 0.5
        names = [_shorten(name) for name in classes]
        axes.set_xticks(ticks, names, rotation=0 if n_classes <= 3 else 90)
        axes.set_yticks(ticks, names, rotation=90 if n_classes <= 3 else 0, va="center")
        axes.tick_params(length=0)
        for (row, column), share in np.ndenumerate(shares):
            text = f"{counts[row, column]}\n{100 * share:.1f} %" if n_classes <= 4 else str(counts[row, column])
            color = "white" if share > 0.78 else "#222222"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=color)
    return _laid_out(figure)


def image_grid(
    images: np.ndarray, rows: Sequence[str], columns: Sequence[str], captions: Sequence[Sequence[str]]
) -> Figure:
    """Grey images in a labelled grid.

    Args:
        images: float ``(R, C, H, W)`` in [0, 1].
        rows: R labels.
        columns: C titles, or none.
        captions: R times C texts to stand below the images, or none.
    """
    n_rows, n_columns = images.shape[:2]
    height = 1.9 + 0.25 * bool(captions)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.9 * n_columns + 0.3, height * n_rows + 0.25 * bool(columns)))
        grid = figure.subplots(n_rows, n_columns, squeeze=False)
        for (row, column), axes in np.ndenumerate(grid):
            axes.imshow(images[row, column], cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if captions:
                axes.set_xlabel(_shorten(captions[row][column], 28), fontsize=8.5)
        for axes, label in zip(grid[:, 0], rows, strict=True):
            axes.set_ylabel(_shorten(label, 24))
        for axes, title in zip(grid[0], columns, strict=False):
            axes.set_title(title, fontsize=9.5)
    return _laid_out(figure)


def png(figure: Figure) -> bytes:
    """The figure as PNG at 150 dpi, without a date or a program's name."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def svg(figure: Figure, name: str) -> str:
    """The figure as one ``<svg>`` element to stand in an HTML page, all of its ids prefixed with ``name``."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    element = buffer.getvalue()
    element = element[element.index("<svg") :].strip()
    # HTML knows the namespaces; the size is the page's to give
    element = re.sub(r'(<svg)[^>]*?( viewBox="[^"]*")[^>]*>', r"\1\2>", element, count=1)
    element = re.sub(r'(?<= id=")', f"{name}-", element)
    return re.sub(r'(?<=url\(#)|(?<=xlink:href="#)', f"{name}-", element)


def _laid_out(figure: Figure) -> Figure:
    """Give all parts their places, once; an engine that stays with the figure does it twice at every saving."""
    with mpl.rc_context(STYLE):
        ConstrainedLayoutEngine().execute(figure)
    return figure


def _panel(x_label: str, y_label: str, size: tuple[float, float] = (5.4, 3.5)) -> tuple[Figure, Axes]:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size)
        return figure, figure.add_subplot(xlabel=x_label, ylabel=y_label)


def _with_legend(figure: Figure, axes: Axes) -> Figure:
    with mpl.rc_context(STYLE):
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=3, borderaxespad=0.2)
    return _laid_out(figure)


def _history(axes: Axes, history: pd.DataFrame, quantity: str, scale: float) -> None:
    for part, color, line in (("train", PALETTE[1], "--"), ("validation", PALETTE[2], "-")):
        label = {"train": "training"}.get(part, part)
        axes.plot(history["epoch"], scale * history[f"{part}_{quantity}"], color=color, linestyle=line, label=label)
    best = history[history["best"] == 1]
    values = scale * best[f"validation_{quantity}"]
    axes.plot(best["epoch"], values, "o", color=PALETTE[2], markersize=6, label="kept epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _curves(axes: Axes, table: pd.DataFrame, attack: str, quantity: str, scale: float) -> None:
    """A line for each curve, with its band where the table has an interval.

    ε is logarithmic from the smallest up and linear below it, so that 0 (clean) has its place.
    """
    names = dict.fromkeys(curve.name for each in attacks_of(table) for curve in curves_under(table, each))
    # a curve has its style in every figure, whatever others are beside it
    styles = dict(zip(names, zip(itertools.cycle(PALETTE), itertools.cycle(MARKERS), strict=False), strict=False))
    for curve in curves_under(table, attack):
        color, marker = styles[curve.name]
        rows, line = curve.rows, LINES.get(curve.threat_model, "-")
        if f"{quantity}_low" in rows:
            low, high = scale * rows[f"{quantity}_low"], scale * rows[f"{quantity}_high"]
            axes.fill_between(rows["eps"], low, high, color=color, alpha=0.16, linewidth=0)
        axes.plot(
            rows["eps"], scale * rows[quantity], color=color, marker=marker, markersize=5, ls=line, label=curve.name
        )
    grid = eps_of(table)
    axes.set_xscale("symlog", base=2, linthresh=grid[0], linscale=1)
    axes.xaxis.set_major_locator(FixedLocator([0.0, *grid]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda eps, _: "0\nclean" if eps == 0 else eps_text(eps)))
    axes.set_xlim(-grid[0] / 4, grid[-1] * 1.15)


def _shorten(name: str, limit: int = 16) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"
