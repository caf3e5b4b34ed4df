"""Line figures and confusion matrices: each function draws one and returns a matplotlib ``Figure``.

No function uses the state of pyplot. :func:`png` and :func:`svg` return the same bytes for the same figure. Lines
differ in colour, marker and dash, so they can be distinguished in a grey print. Class names are plain text, never TeX.
"""

import io
import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator, PercentFormatter

from tasks.reporting.panels import PALETTE, Panel
from tasks.statistics.formatting import eps_text

STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 9.5,
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
    # text stays text, which is small, sharp and searchable; ids depend only on the drawing
    "svg.fonttype": "none",
    "svg.hashsalt": "ct-robustness",
}
MARKERS = ["o", "s", "D", "^", "v", "P", "X", "<"]
"""One more than the number of colours: a repeated colour gets another marker."""
DPI = 150
RASTER_DPI = 100
"""Resolution of points that are too many to be drawn as paths."""
TRAINING_SIZE = (4.2, 3.0)
FREQUENCIES = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]
"""Ticks, in cycles per pixel."""
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
PANEL_SIZES = [(5.4, 3.5), (4.4, 3.1), (3.6, 2.9)]
"""Width and height of a panel in inches, for one, two, and three or more panels in a row."""
HANDLE, LETTER, LEGEND_ROW = 0.62, 0.066, 0.19
"""Sizes in legends in inches: space around a name, width of a letter, height of a row."""


def training(history: pd.DataFrame, quantity: Literal["loss", "accuracy"], title: str) -> Figure:
    """Draw a quantity on training and validation images by epoch; the best epoch is marked.

    Args:
        history: one row for each epoch with ``epoch``, ``train_<quantity>``, ``validation_<quantity>`` and ``best`` (1
            at the best epoch).
        quantity: ``accuracy`` is in [0, 1] and drawn in per cent.
        title: name of the trained model.
    """
    scale = 100.0 if quantity == "accuracy" else 1.0
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=TRAINING_SIZE)
        axes = figure.add_subplot(xlabel="epoch", ylabel=quantity, title=title)
        for part, label, color, line in (
            ("train", "training", PALETTE[1], "--"),
            ("validation", "validation", PALETTE[2], "-"),
        ):
            axes.plot(history["epoch"], scale * history[f"{part}_{quantity}"], color=color, linestyle=line, label=label)
        best = history[history["best"] == 1]
        values = scale * best[f"validation_{quantity}"]
        axes.plot(best["epoch"], values, "o", color=PALETTE[2], markersize=6, label="best epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        if quantity == "loss":
            axes.set_ylim(bottom=0)
        else:
            axes.yaxis.set_major_formatter(PercentFormatter(decimals=0, symbol=" %"))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=3, borderaxespad=0.2)
    return laid_out(figure)


def lines(panels: Sequence[Panel], n_columns: int = 3) -> Figure:
    """Draw panels side by side with one legend.

    Args:
        panels: at least one panel.
        n_columns: maximum number of panels in a row.
    """
    n_columns = min(n_columns, len(panels))
    n_rows = -(-len(panels) // n_columns)
    width, height = PANEL_SIZES[min(n_columns, 3) - 1]
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    legend_columns = max(1, int(width * n_columns / (HANDLE + LETTER * max(map(len, names)))))
    legend_rows = -(-len(names) // legend_columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width * n_columns, height * n_rows + LEGEND_ROW * max(0, legend_rows - 2)))
        grid = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
        for axes, panel in zip(grid, panels, strict=False):
            _draw(axes, panel)
        for axes in grid[len(panels) :]:
            axes.remove()
        handles = {
            label: handle
            for axes in grid[: len(panels)]
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        if len(names) > 1:
            figure.legend(
                [handles[name] for name in names],
                names,
                loc="outside upper left",
                ncols=legend_columns,
                borderaxespad=0.2,
            )
    return laid_out(figure)


def confusion(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix: the number of images in each cell, and its share of the row as the shade.

    Args:
        counts: int ``(K, K)``, actual class by predicted class.
        classes: K names.
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
        names = [shorten(name) for name in classes]
        axes.set_xticks(ticks, names, rotation=0 if n_classes <= 3 else 90)
        axes.set_yticks(ticks, names, rotation=90 if n_classes <= 3 else 0, va="center")
        axes.tick_params(length=0)
        for (row, column), share in np.ndenumerate(shares):
            text = f"{counts[row, column]}\n{100 * share:.1f} %" if n_classes <= 4 else str(counts[row, column])
            color = "white" if share > 0.78 else "#222222"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=color)
    return laid_out(figure)


def png(figure: Figure) -> bytes:
    """Return the figure as PNG at 150 dpi, without metadata."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def jpeg(png: bytes) -> bytes:
    """Return a PNG as JPEG, which needs fewer bytes for scans and noise."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").save(buffer, format="JPEG", quality=85, subsampling=0)
    return buffer.getvalue()


def svg(figure: Figure, name: str) -> str:
    """Return the figure as one ``<svg>`` element for an HTML page; all of its ids have the prefix ``name``."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(
            buffer, format="svg", dpi=RASTER_DPI, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    element = buffer.getvalue()
    element = element[element.index("<svg") :].strip()
    # HTML needs no namespaces; the page sets the size
    element = re.sub(r'(<svg)[^>]*?( viewBox="[^"]*")[^>]*>', r"\1\2>", element, count=1)
    element = re.sub(r'(?<= id=")', f"{name}-", element)
    return re.sub(r'(?<=url\(#)|(?<=xlink:href="#)', f"{name}-", element)


def laid_out(figure: Figure) -> Figure:
    """Compute the layout once; a layout engine that stays with the figure would run twice at every save."""
    with mpl.rc_context(STYLE):
        ConstrainedLayoutEngine().execute(figure)
    return figure


def _draw(axes: Axes, panel: Panel) -> None:
    for line in panel.lines:
        style: dict[str, Any] = {"color": line.color, "linestyle": line.dash}
        if panel.drawn == "markers":
            style |= {"marker": MARKERS[line.style % len(MARKERS)], "markersize": 5}
            style |= {"markerfacecolor": "white"} if line.is_hollow else {}
        if panel.drawn == "steps":
            style |= {"drawstyle": "steps-mid"}
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=line.color, alpha=0.16, linewidth=0)
        axes.plot(line.x, line.y, label=line.name, **style)
    axes.set(xlabel=panel.x_label, ylabel=panel.y_label, title=panel.title)
    if panel.diagonal:
        axes.plot([0, 1], [0, 1], color="#888888", linewidth=0.8, zorder=1)
    if panel.level is not None:
        axes.axhline(panel.level, color="#888888", linewidth=0.8, zorder=1)
    if panel.y_scale == "log":
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(_power))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(*panel.y_range)
    shares = FuncFormatter(lambda value, _: f"{100 * value:.3g} %".replace("-", "−"))
    if panel.y_scale == "share":
        axes.yaxis.set_major_formatter(shares)
    match panel.x_scale:
        case "eps":
            _scale_eps(axes, panel.eps, panel.has_clean)
        case "share":
            axes.set_xlim(-0.02, 1.02)
            axes.xaxis.set_major_formatter(shares)
        case "frequency":
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(FREQUENCIES))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())


def _power(value: float, _: int) -> str:
    """Return a power of ten as ``10⁻³``."""
    return f"10{str(round(math.log10(value))).translate(SUPERSCRIPTS)}"


def _scale_eps(axes: Axes, grid: list[float], has_clean: bool) -> None:
    """Scale the eps axis: logarithmic above the smallest eps, linear below it, so that 0 (clean) has a tick."""
    axes.set_xscale("symlog", base=2, linthresh=grid[0], linscale=1)
    axes.xaxis.set_major_locator(FixedLocator([*([0.0] if has_clean else []), *grid]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda eps, _: "0\nclean" if eps == 0 else eps_text(eps)))
    axes.set_xlim(-grid[0] / 4 if has_clean else grid[0] / 1.15, grid[-1] * 1.15)


def shorten(name: str, limit: int = 16) -> str:
    """Return a name, cut to the limit with an ellipsis."""
    return name if len(name) <= limit else name[: limit - 1] + "…"
