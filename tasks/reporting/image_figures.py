"""Figures of images, with heat maps over them, and of embedded features; see :mod:`tasks.reporting.figures`."""

import textwrap
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from tasks.records.vocabulary import CLEAN
from tasks.reporting.examples import ImageGrid
from tasks.reporting.figures import MARKERS, STYLE, laid_out, shorten
from tasks.reporting.names import EMBEDDING_NAMES
from tasks.reporting.panels import PALETTE
from tasks.statistics.formatting import eps_text

HEAT = "inferno"
"""Colour map: perceptually uniform, colour-blind safe, readable in grey."""
MAX_OPACITY = 0.75
"""Opacity of a heat map at its maximum."""
SIDE = 2.0
"""Width of an image in inches."""
MAX_HEIGHT = 2 * SIDE
"""Largest height of an image in inches."""


def image_grid(shown: ImageGrid, maps: dict[int, np.ndarray] | None = None) -> Figure:
    """Draw images in a labelled grid, some with a heat map over them.

    Args:
        shown: images with their titles and captions.
        maps: column -> its heat maps, float ``(R, h, w)`` in [0, 1]; the opacity rises with the value.
    """
    n_rows, n_columns = shown.images.shape[:2]
    titles = ["\n".join(textwrap.wrap(title, 27)) for title in shown.columns]
    n_lines = max((title.count("\n") + 1 for title in titles), default=0)
    n_lines_of_pixels, n_pixels_of_line = shown.images.shape[2:4]
    cell_height = min(SIDE * n_lines_of_pixels / n_pixels_of_line, MAX_HEIGHT)
    width, height = SIDE * n_columns + (0.9 if maps else 0.3), cell_height + 0.25 * bool(shown.captions)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height * n_rows + 0.18 * n_lines))
        grid = figure.subplots(n_rows, n_columns, squeeze=False)
        for (row, column), axes in np.ndenumerate(grid):
            image = shown.images[row, column].astype(np.float32)
            axes.imshow(image, cmap="gray", vmin=0, vmax=1)
            if maps and column in maps:
                heat = maps[column][row].astype(np.float32)
                height, width = image.shape[:2]
                extent = (-0.5, width - 0.5, height - 0.5, -0.5)
                axes.imshow(heat, cmap=HEAT, vmin=0, vmax=1, alpha=MAX_OPACITY * heat, extent=extent)
            if shown.captions:
                axes.set_xlabel(shorten(shown.captions[row][column], 28), fontsize=8.5)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        for axes, label in zip(grid[:, 0], shown.rows, strict=True):
            axes.set_ylabel(shorten(label, 24))
        for axes, title in zip(grid[0], titles, strict=False):
            axes.set_title(title)
        if maps:
            bar = figure.colorbar(ScalarMappable(Normalize(0, 1), HEAT), ax=grid, fraction=0.02, pad=0.01)
            bar.set_ticks([0, 0.5, 1])
            bar.set_label("Grad-CAM for the predicted class,\nrelative to the maximum")
            bar.outline.set_visible(False)
    return laid_out(figure)


def embeddings(table: pd.DataFrame, classes: Sequence[str]) -> Figure:
    """Draw two-dimensional embeddings: one row for each method, one column for each eps.

    Colour and shape are the class. Hollow markers are clean images, filled markers are adversarial images.

    Args:
        table: rows of one feature space, target, threat model and attack, with ``method``, ``eps``, ``image_kind``,
            ``label``, ``x`` and ``y``.
        classes: name of each label.
    """
    methods = [method for method in EMBEDDING_NAMES if method in set(table["method"])]
    grid_eps = sorted(table["eps"].unique())
    labels = sorted(table["label"].unique())
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(1.75 * len(grid_eps), 3.6) + 0.3, 1.85 * len(methods) + 0.6))
        grid = figure.subplots(len(methods), len(grid_eps), squeeze=False)
        for (row, column), axes in np.ndenumerate(grid):
            shown = table[(table["method"] == methods[row]) & (table["eps"] == grid_eps[column])]
            for label in labels:
                # the first colour of the palette is not used for classes
                color, marker = PALETTE[1:][label % (len(PALETTE) - 1)], MARKERS[label % len(MARKERS)]
                for is_clean in (True, False):
                    points = shown[(shown["label"] == label) & ((shown["image_kind"] == CLEAN) == is_clean)]
                    name = f"{shorten(classes[label], 24)}, {'clean' if is_clean else 'adversarial'}"
                    axes.scatter(
                        *(points["x"], points["y"]),
                        s=9,
                        marker=marker,
                        facecolors="none" if is_clean else color,
                        edgecolors=color,
                        linewidths=0.6,
                        alpha=0.75,
                        label=name,
                    )
            # thousands of points as paths would take megabytes: the points of a panel become one bitmap
            axes.set_rasterization_zorder(2)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(True)
            axes.grid(visible=False)
            if row == 0:
                axes.set_title(f"ε = {eps_text(grid_eps[column])}/255")
            if column == 0:
                axes.set_ylabel(EMBEDDING_NAMES[methods[row]])
        handles, names = grid[0, 0].get_legend_handles_labels()
        n_columns = max(1, min(len(names), int(figure.get_figwidth() / 2.8)))
        figure.legend(handles, names, loc="outside upper left", ncols=n_columns, markerscale=1.6, borderaxespad=0.2)
    return laid_out(figure)
