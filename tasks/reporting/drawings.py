"""Figures with a name, and their rendering as PNG files and as elements of the page."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from tasks.reporting import figures, interactive
from tasks.reporting.panels import Panel

IMAGES = "images-"
"""Prefix of the names of figures that show images of the data set; the data set's licence applies to them."""
MIN_WIDE = 6.0
"""Width in inches from which a figure takes the whole width of the page and scrolls on a narrow screen."""


@dataclass(frozen=True)
class Drawing:
    """A figure with a name."""

    name: str
    """File name without suffix."""
    figure: Figure
    plot: dict[str, Any] | None = None
    """Traces and layout of an interactive version for plotly.js."""


@dataclass(frozen=True)
class RenderedFigure:
    """A figure as PNG and as an element of the page."""

    png: bytes
    content: Markup
    """The ``<svg>`` element, or the ``data:`` address of a JPEG."""
    style: str
    plot: dict[str, Any] | None
    is_wide: bool
    is_image: bool

    def element(self, alt: str) -> Markup:
        """Return the ``<svg>`` or ``<img>`` element with this alternative text."""
        if self.is_image:
            return Markup('<img src="{}" alt="{}" style="{}">').format(self.content, alt, self.style)
        start = Markup('<svg role="img" aria-label="{}" style="{}"').format(alt, self.style)
        return start + self.content.removeprefix("<svg")


def lines_drawing(name: str, panels: Sequence[Panel], is_interactive: bool = False, n_columns: int = 3) -> Drawing:
    """Return panels of lines as one drawing; an interactive drawing has a single panel."""
    plot = interactive.line_plot(*panels) if is_interactive else None
    return Drawing(name, figures.lines(panels, n_columns), plot)


def image_drawings(name: str, parts: Sequence[Figure]) -> list[Drawing]:
    """Return one drawing for each part of a series of images: ``images-<name>``, ``images-<name>-1``, ..."""
    return [Drawing(f"{IMAGES}{name}-{i}" if i else f"{IMAGES}{name}", figure) for i, figure in enumerate(parts)]


def render(drawing: Drawing) -> RenderedFigure:
    """Render a drawing."""
    png = figures.png(drawing.figure)
    width = drawing.figure.get_figwidth()
    is_wide = width > MIN_WIDE
    # the text of a figure stays near the font size of the page; wide figures scroll instead of shrinking
    style = f"max-width: {6.6 * width:.4g}rem" + (f"; min-width: {4.2 * width:.4g}rem" if is_wide else "")
    is_image = drawing.name.startswith(IMAGES)
    if is_image:
        content = Markup("data:image/jpeg;base64,{}").format(base64.b64encode(figures.jpeg(png)).decode())
    else:
        # matplotlib has escaped every text of the drawing
        content = Markup(figures.svg(drawing.figure, drawing.name))  # noqa: S704  # nosec B704
    return RenderedFigure(png, content, style, drawing.plot, is_wide, is_image)
