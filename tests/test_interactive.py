"""Data of the interactive figures: numbers of the panels, points of the embeddings, and safe JSON."""

import base64
import io
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tasks.dataset.prepared import Prepared
from tasks.reporting import interactive
from tasks.reporting.panels import Line, Panel, line_over_eps, over_eps

CLASSES = ("<script>", "b")


@pytest.fixture
def data() -> Prepared:
    table = pd.DataFrame({"path": [f"{name}.png" for name in "abcd"], "label": [0, 1, 0, 1]})
    pixels = np.repeat(np.array([0, 80, 160, 240], dtype=np.uint8), 32 * 32).reshape(4, 1, 32, 32)
    return Prepared(pixels, table, CLASSES, 0, (0.0, 1.0), is_phantom=True)


def test_a_line_has_its_numbers_its_band_and_its_escaped_name() -> None:
    line = Line("<b> & co", np.array([0, 0.5, 1]), np.array([0.9, np.nan, 0.123456]), low=np.zeros(3), high=np.ones(3))
    low, high, shown = interactive.line_plot(over_eps("accuracy", [line], y_scale="share"))["data"]
    assert shown["name"] == "&lt;b&gt; &amp; co"
    assert shown["y"] == [0.9, None, 0.12346]
    assert shown["x"] == [-2, -1, 0]
    assert shown["customdata"] == ["[0.0%, 100.0%]"] * 3
    assert shown["hovertemplate"] == "%{y:.1%} %{customdata}"
    assert (low["y"], high["y"]) == ([0, 0, 0], [1, 1, 1])
    assert low["hoverinfo"] == high["hoverinfo"] == "skip"


def test_a_point_with_too_few_groups_says_so() -> None:
    bounds = np.array([0.25, np.nan])
    line = Line("a", np.array([1, 2]), np.array([0.5, 0.5]), low=bounds, high=bounds + 0.5)
    *_, shown = interactive.line_plot(over_eps("loss", [line]))["data"]
    assert shown["customdata"] == ["[0.25, 0.75]", "[too few groups]"]


def test_a_line_without_any_interval_has_no_band() -> None:
    rows = pd.DataFrame({"eps": [1.0, 2.0], "value": [0.5, 0.4], "low": np.nan, "high": np.nan})
    line = line_over_eps("a", rows)
    assert (line.low, line.high) == (None, None)
    assert line_over_eps("a", rows.assign(low=[0.1, np.nan])).low is not None


def test_dashed_lines_have_hollow_markers() -> None:
    lines = [Line(name, np.ones(1), np.ones(1), 1, dash) for name, dash in (("a", "solid"), ("b", "dashed"))]
    traces = interactive.line_plot(over_eps("accuracy", lines))["data"]
    assert [trace["marker"]["symbol"] for trace in traces] == ["square", "square-open"]
    assert traces[0]["line"]["color"] == traces[1]["line"]["color"]


def test_eps_axis_has_the_values_as_labels_at_their_logarithms() -> None:
    line = Line("a", np.array([0, 0.25, 4]), np.zeros(3))
    axis = interactive.line_plot(over_eps("accuracy", [line]))["layout"]["xaxis"]
    assert dict(zip(axis["ticktext"], axis["tickvals"], strict=True)) == {"0<br>clean": -3, "0.25": -2, "4": 2}


def test_chance_level_and_diagonal_are_shapes_below_the_lines() -> None:
    line = Line("a", np.zeros(1), np.zeros(1))
    panel = Panel("x", "y", [line], x_scale="share", diagonal=True, level=0.5)
    diagonal, level = interactive.line_plot(panel)["layout"]["shapes"]
    assert (diagonal["x1"], diagonal["y1"]) == (1, 1)
    assert (level["y0"], level["y1"], level["xref"]) == (0.5, 0.5, "paper")


def explored(data: Prepared) -> dict[str, Any]:
    curve = {"target": "undefended", "threat_model": "adaptive", "attack": "pgd"}
    parts = [
        {
            "feature_space": "classifier",
            **curve,
            "eps": eps,
            "method": "pca",
            "image": image,
            "image_kind": kind,
            "label": image % 2,
        }
        for eps in (1.0, 4.0)
        for kind in ("clean", "adversarial")
        for image in (1, 3)
    ]
    embeddings = pd.DataFrame(parts).assign(x=[2.0, 4, 3, 2.5] * 2, y=1.0)
    records = [{**curve, "eps": eps, "image": image, "prediction": 0} for eps in (1.0, 4.0) for image in (1, 3)]
    records += [
        {**curve, "threat_model": "none", "attack": "clean", "eps": 0.0, "image": image, "prediction": 1}
        for image in (1, 3)
    ]
    return interactive.explorer(embeddings, pd.DataFrame(records), data, {"classifier": "last layer"}, ("pgd", 4.0))


def test_every_point_of_an_embedding_has_its_image_and_prediction(data: Prepared) -> None:
    found = explored(data)
    assert found["paths"] == ["b.png", "d.png"]
    assert found["labels"] == [1, 1]
    # both views show the same images
    assert found["members"] == [{"image": [0, 1, 0, 1], "adversarial": [0, 0, 1, 1]}]
    view = found["views"][1]
    assert view["prediction"] == [1, 1, 0, 0]
    assert view["x"] == [0, 1000, 500, 250]
    assert view["y"] == [0, 0, 0, 0]
    assert found["first"] == {"features": "last layer: undefended", "attack": "PGD", "method": "PCA", "eps": "4"}


def test_the_sprite_has_each_image_at_its_position(data: Prepared) -> None:
    kind, _, content = explored(data)["sprite"].partition(",")
    assert kind == "data:image/jpeg;base64"
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    assert sheet.shape == (64, 128)
    assert np.abs(sheet[:, :64].astype(int) - 80).max() < 4
    assert np.abs(sheet[:, 64:].astype(int) - 240).max() < 4


def test_json_cannot_end_its_script_element() -> None:
    value = {"<!--": "</script><script>alert(1)</script>", "&": [1.5, None]}
    text = interactive.as_json(value)
    assert not set("<>&") & set(text)
    assert json.loads(text) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        interactive.as_json(math.nan)


def test_scripts_cannot_end_their_element() -> None:
    plotly, ours = interactive.scripts()
    assert "plotly.js v" in plotly[:200]
    assert "</script" not in plotly + ours
    assert interactive.digest("") == "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
