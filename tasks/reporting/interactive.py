"""Data of the interactive figures: panels for plotly.js, the explorer of embeddings, and JSON that is safe in HTML."""

import base64
import hashlib
import io
import json
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from tasks.dataset.prepared import Prepared, as_pictures
from tasks.records.vocabulary import CLEAN
from tasks.reporting.names import EMBEDDING_NAMES, attack_name, curve_name
from tasks.reporting.panels import PALETTE, Line, Panel
from tasks.statistics.formatting import TOO_FEW_GROUPS, eps_text

SCRIPT = Path(__file__).with_name("interactive.js")
SYMBOLS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "triangle-left"]
"""Plotly's names of the markers, in the order of the static figures."""
PLOTLY_DASHES = {"solid": "solid", "dashed": "dash", "dotted": "dot", "dashdot": "dashdot"}
THUMBNAIL = 64
"""Side of a thumbnail in pixels."""
AXIS = {"gridcolor": "#e4e4e4", "linecolor": "#555555", "showline": True, "ticks": "outside", "zeroline": False}


def line_plot(panel: Panel) -> dict[str, Any]:
    """Return traces and layout of a panel for plotly.js; names are escaped because Plotly reads some HTML in texts."""
    positions = _positions(panel) if panel.x_scale == "eps" else {}
    traces: list[dict[str, Any]] = []
    for line in panel.lines:
        x = [positions[float(value)] for value in line.x] if positions else numbers(line.x)
        name = str(escape(line.name))
        group = {"legendgroup": name, "x": x}
        if line.low is not None and line.high is not None:
            edge = {**group, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
            traces.append({**edge, "y": numbers(line.low)})
            traces.append({**edge, "y": numbers(line.high), "fill": "tonexty", "fillcolor": f"{line.color}29"})
        symbol = SYMBOLS[line.style % len(SYMBOLS)] + "-open" * line.is_hollow
        marks = {"symbol": symbol, "size": 8} if panel.drawn == "markers" else {}
        traces.append(
            {
                **group,
                "y": numbers(line.y),
                "name": name,
                "mode": "lines+markers" if marks else "lines",
                "marker": marks,
                "line": {"color": line.color, "dash": PLOTLY_DASHES[line.dash], "width": 2},
                **_hover(panel, line),
            }
        )
    x_axis: dict[str, Any] = {**AXIS, "title": _title(panel.x_label)}
    y_axis: dict[str, Any] = {**AXIS, "title": _title(panel.y_label), "range": list(panel.y_range)}
    if positions:
        texts = [f"{eps_text(eps)}{'<br>clean' if eps == 0 else ''}" for eps in positions]
        x_axis |= {"tickmode": "array", "tickvals": list(positions.values()), "ticktext": texts}
    if panel.x_scale == "share":
        x_axis |= {"tickformat": ".0%", "range": [-0.02, 1.02]}
    if panel.y_scale == "share":
        y_axis |= {"tickformat": ".0%"}
    guides = [_guide(x0=0, x1=1, y0=0, y1=1)] if panel.diagonal else []
    if panel.level is not None:
        guides.append(_guide(x0=0, x1=1, y0=panel.level, y1=panel.level, xref="paper"))
    hover = "x unified" if positions else "closest"
    return {"data": traces, "layout": {"xaxis": x_axis, "yaxis": y_axis, "hovermode": hover, "shapes": guides}}


def _positions(panel: Panel) -> dict[float, float]:
    """Return the position of each eps on the axis: its binary logarithm; 0 (clean) is one unit left of the smallest."""
    clean = {0.0: math.log2(panel.eps[0]) - 1} if panel.has_clean else {}
    return clean | {eps: math.log2(eps) for eps in panel.eps}


def _hover(panel: Panel, line: Line) -> dict[str, Any]:
    """Return the hover text of a line: the value, with its interval if there is one."""
    form = ".1%" if panel.y_scale == "share" else ".3~g"
    if line.low is None or line.high is None:
        x = "" if panel.x_scale == "eps" else "%{x:.1%}: " if panel.x_scale == "share" else "%{x}: "
        return {"hovertemplate": f"{x}%{{y:{form}}}"}
    texts = [
        TOO_FEW_GROUPS
        if math.isnan(low) or math.isnan(high)
        else f"[{_axis_text(panel, low)}, {_axis_text(panel, high)}]"
        for low, high in zip(line.low, line.high, strict=True)
    ]
    return {"customdata": texts, "hovertemplate": f"%{{y:{form}}} %{{customdata}}"}


def _axis_text(panel: Panel, value: float) -> str:
    """Return a value of the y axis, as the hover text shows it."""
    return f"{100 * value:.1f}%" if panel.y_scale == "share" else f"{value:.3g}"


def _title(text: str) -> dict[str, Any]:
    return {"text": text, "font": {"size": 13}}


def _guide(**ends: Any) -> dict[str, Any]:
    return {"type": "line", "layer": "below", "line": {"color": "#888888", "width": 1}, **ends}


def explorer(
    embeddings: pd.DataFrame,
    records: pd.DataFrame,
    data: Prepared,
    spaces: dict[str, str],
    first: tuple[str, float],
    has_thumbnails: bool = True,
) -> dict[str, Any]:
    """Return all embeddings with image, class and prediction of each point; the page shows one embedding at a time.

    Args:
        embeddings: as written by the step ``analyze``.
        records: records of all targets, for the predictions.
        data: prepared data set, for thumbnails and paths.
        spaces: feature space -> its display name.
        first: attack and eps that are shown first.
        has_thumbnails: add an image of each point.
    """
    rows = np.unique(embeddings["image"].to_numpy(np.int64))
    position = {int(row): position for position, row in enumerate(rows)}
    point = ["target", "threat_model", "attack", "eps", "image"]
    predictions = records.set_index(point)["prediction"].to_dict()
    views = []
    members: list[list[list[int]]] = []
    keys = ["feature_space", "target", "threat_model", "attack", "method", "eps"]
    for values, points in embeddings.groupby(keys, sort=False):
        space, target, threat_model, attack, method, eps = cast("tuple[str, str, str, str, str, float]", values)
        seen = [
            (target, "none", CLEAN, 0.0, image) if kind == CLEAN else (target, threat_model, attack, eps, image)
            for image, kind in zip(points["image"], points["image_kind"], strict=True)
        ]
        pair = [
            [position[int(image)] for image in points["image"]],
            [int(each != CLEAN) for each in points["image_kind"]],
        ]
        # most views show the same images
        if pair not in members:
            members.append(pair)
        views.append(
            {
                "features": f"{spaces.get(space, space)}: {curve_name(target, threat_model)}",
                "attack": attack_name(attack),
                "method": EMBEDDING_NAMES.get(method, method),
                "eps": eps_text(eps),
                "members": members.index(pair),
                "prediction": [predictions.get(key, -1) for key in seen],
                "x": _thousandths(points["x"].to_numpy(float)),
                "y": _thousandths(points["y"].to_numpy(float)),
            }
        )
    shown = {"attack": attack_name(first[0]), "eps": eps_text(first[1])}
    choices = [{key: view[key] for key in ("features", "attack", "method", "eps")} for view in views]
    return {
        "first": next(choice for choice in choices if shown.items() <= choice.items()),
        "classes": list(data.classes),
        "colors": PALETTE[1:],
        "symbols": SYMBOLS,
        "paths": [str(path) for path in data.table["path"].iloc[rows]],
        "labels": data.labels(rows).tolist(),
        "sprite": sprite(as_pictures(data.pixels[rows])) if has_thumbnails else None,
        "side": THUMBNAIL,
        "columns": _sheet_columns(len(rows)),
        "members": [{"image": image, "adversarial": adversarial} for image, adversarial in members],
        "views": views,
    }


def _thousandths(values: np.ndarray) -> list[int]:
    """Scale values to integers from 0 to 1000; embeddings have no unit."""
    low, high = float(values.min()), float(values.max())
    scaled: np.ndarray = np.round(1000 * (values - low) / (high - low or 1.0)).astype(int)
    return [int(value) for value in scaled]


def sprite(images: np.ndarray) -> str:
    """Return the ``data:`` address of a JPEG with all images as thumbnails, row by row.

    Args:
        images: uint8 ``(N, H, W)`` or ``(N, H, W, 3)``. A side that is shorter gets black borders.
    """
    from PIL import Image

    columns = _sheet_columns(len(images))
    longest = max(images.shape[1:3])
    height, width = (max(round(side * THUMBNAIL / longest), 1) for side in images.shape[1:3])
    mode = "L" if images.ndim == 3 else "RGB"
    sheet = Image.new(mode, (columns * THUMBNAIL, -(-len(images) // columns) * THUMBNAIL))
    for position, image in enumerate(images):
        row, column = divmod(position, columns)
        thumbnail = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
        left, top = (THUMBNAIL - width) // 2, (THUMBNAIL - height) // 2
        sheet.paste(thumbnail, (column * THUMBNAIL + left, row * THUMBNAIL + top))
    buffer = io.BytesIO()
    sheet.save(buffer, format="JPEG", quality=75)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _sheet_columns(n_images: int) -> int:
    return math.isqrt(max(n_images - 1, 0)) + 1


def numbers(values: np.ndarray | Sequence[float]) -> list[float | None]:
    """Round numbers to five significant digits; None (null in JSON) for numbers that are not finite."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in map(float, values)]


def as_json(value: Any) -> Markup:
    """Return JSON that is safe in a ``<script>`` element: no text in it can end the element or start another."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704  escaped just above  # nosec B704


def scripts() -> list[Markup]:
    """Return plotly.js and the script of the page, for ``<script>`` elements."""
    plotly = files("plotly") / "package_data" / "plotly.min.js"
    texts = [source.read_text(encoding="utf-8") for source in (plotly, SCRIPT)]
    assert not any("</script" in text or "<!--" in text or "\r" in text for text in texts)
    return [Markup(text) for text in texts]  # noqa: S704  installed files, not input  # nosec B704


def digest(script: str) -> str:
    """Return the name of a script in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
