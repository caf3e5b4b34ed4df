"""Figures show the numbers that they are given, and the same figure gives the same bytes."""

import re
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from tasks.reporting import figures

EPS = [0.25, 1.0, 4.0]
ACCURACY = {
    ("undefended", "adaptive"): [0.75, 0.5, 0.0],
    ("autoencoder", "transfer"): [0.75, 0.7, 0.5],
    ("autoencoder", "adaptive"): [0.7, 0.25, 0.1],
}


@pytest.fixture
def table() -> pd.DataFrame:
    points = [(target, "none", "clean", 0.0, 0.9) for target in ("undefended", "autoencoder")]
    points += [
        (target, threat_model, "pgd", eps, accuracy)
        for (target, threat_model), accuracies in ACCURACY.items()
        for eps, accuracy in zip(EPS, accuracies, strict=True)
    ]
    table = pd.DataFrame(points, columns=["target", "threat_model", "attack", "eps", "accuracy"])
    return table.assign(
        n=60,
        accuracy_low=table["accuracy"] * 0.9,
        accuracy_high=table["accuracy"] * 1.1,
        mean_entropy=table["accuracy"] / 2,
    )


@pytest.fixture
def history() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "epoch": [1, 2, 3],
            "train_loss": [0.9, 0.5, 0.3],
            "validation_loss": [0.8, 0.4, 0.6],
            "train_accuracy": [0.5, 0.75, 0.875],
            "validation_accuracy": [0.5, 0.9, 0.8],
            "best": [0, 1, 0],
        }
    )


def lines_of(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[0].lines}


def test_loss_draws_both_losses_and_marks_the_kept_epoch(history: pd.DataFrame) -> None:
    figure = figures.loss(history, "classifier loss")
    assert lines_of(figure) == {
        "training": ([1, 2, 3], [0.9, 0.5, 0.3]),
        "validation": ([1, 2, 3], [0.8, 0.4, 0.6]),
        "kept epoch": ([2], [0.4]),
    }
    assert figure.axes[0].get_ylabel() == "classifier loss"


def test_accuracy_is_drawn_in_per_cent(history: pd.DataFrame) -> None:
    lines = lines_of(figures.accuracy(history, "classifier accuracy"))
    assert lines["training"] == ([1, 2, 3], [50, 75, 87.5])
    assert lines["kept epoch"] == ([2], [90])


def test_robustness_draws_every_curve_from_its_clean_accuracy_on(table: pd.DataFrame) -> None:
    lines = lines_of(figures.robustness(table, "pgd"))
    assert list(lines) == ["undefended", "autoencoder, transfer", "autoencoder, adaptive"]
    for (eps, accuracy), expected in zip(lines.values(), ACCURACY.values(), strict=True):
        assert eps == [0, *EPS]
        assert accuracy == pytest.approx([90, *(100 * value for value in expected)])


def test_robustness_bands_are_the_intervals(table: pd.DataFrame) -> None:
    band = figures.robustness(table, "pgd").axes[0].collections[0].get_paths()[0].vertices
    for eps, accuracy in zip(EPS, ACCURACY["undefended", "adaptive"], strict=True):
        edges = np.asarray(band)[np.asarray(band)[:, 0] == eps, 1]
        assert edges.min() == pytest.approx(90 * accuracy)
        assert edges.max() == pytest.approx(110 * accuracy)


def test_clean_has_its_own_place_left_of_a_logarithmic_axis(table: pd.DataFrame) -> None:
    axes = figures.robustness(table, "pgd").axes[0]
    assert list(axes.get_xticks()) == [0, *EPS]
    places = axes.transData.transform([(eps, 0.0) for eps in (0, *EPS)])[:, 0]
    steps = [right - left for left, right in pairwise(places)]
    assert steps[1] == pytest.approx(steps[2])
    assert 0.3 < steps[0] / steps[1] < 1.5


def test_curves_differ_in_colour_and_marker_and_threat_models_in_line_style(table: pd.DataFrame) -> None:
    lines = figures.robustness(table, "pgd").axes[0].lines
    assert len({to_hex(line.get_color()) for line in lines}) == 3
    assert len({line.get_marker() for line in lines}) == 3
    assert [line.get_linestyle() for line in lines] == ["-", "--", "-"]


def test_entropy_draws_mean_entropy(table: pd.DataFrame) -> None:
    lines = lines_of(figures.entropy(table, "pgd"))
    assert lines["autoencoder, adaptive"] == ([0, *EPS], pytest.approx([0.45, 0.35, 0.125, 0.05]))


def test_confusion_writes_counts_and_shares_of_the_actual_class() -> None:
    axes = figures.confusion(np.array([[3, 1], [0, 8]]), ["healthy", "$ill$"]).axes[0]
    assert [text.get_text() for text in axes.texts] == ["3\n75.0 %", "1\n25.0 %", "0\n0.0 %", "8\n100.0 %"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["healthy", "$ill$"]
    np.testing.assert_allclose(axes.collections[0].get_array(), [[0.75, 0.25], [0, 1]])
    assert axes.yaxis_inverted()


def test_confusion_of_a_class_without_images_has_empty_rows() -> None:
    axes = figures.confusion(np.array([[2, 0], [0, 0]]), ["a", "b"]).axes[0]
    assert [text.get_text() for text in axes.texts][2:] == ["0\n0.0 %", "0\n0.0 %"]


def test_image_grid_shows_the_pixels_on_one_grey_scale() -> None:
    images = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
    figure = figures.image_grid(images, ["a", "b"], ["x", "y", "z"], [["1", "2", "3"], ["4", "5", "6"]])
    assert len(figure.axes) == 6
    for axes, image in zip(figure.axes, images.reshape(6, 8, 8), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), image)
        assert axes.images[0].get_clim() == (0, 1)
    assert [axes.get_xlabel() for axes in figure.axes] == ["1", "2", "3", "4", "5", "6"]
    assert [axes.get_title() for axes in figure.axes[:3]] == ["x", "y", "z"]


def test_the_same_figure_gives_the_same_bytes(table: pd.DataFrame) -> None:
    first, second = (figures.robustness(table, "pgd") for _ in range(2))
    assert figures.png(first) == figures.png(second)
    assert figures.svg(first, "a") == figures.svg(second, "a")
    assert b"Software" not in figures.png(first)


def test_svg_refers_to_nothing_outside_and_keeps_its_ids_to_itself() -> None:
    drawing = figures.svg(figures.confusion(np.eye(2, dtype=int), ["<script>", "a & b --> $\\frac"]), "matrix")
    assert drawing.startswith("<svg viewBox=")
    assert "http" not in drawing
    assert "&lt;script&gt;" in drawing
    assert "<script>" not in drawing
    ids = re.findall(r' id="([^"]*)"', drawing)
    assert ids
    assert all(name.startswith("matrix-") for name in ids)
    assert set(re.findall(r"url\(#([^)]*)\)", drawing) + re.findall(r'href="#([^"]*)"', drawing)) <= set(ids)


def test_a_curve_has_the_same_style_in_every_figure(table: pd.DataFrame) -> None:
    swept = table[(table["attack"] == "pgd") & (table["threat_model"] == "adaptive")].assign(attack="sweep")
    both = pd.concat([table, swept], ignore_index=True)

    def styles(attack: str) -> dict[str, tuple[object, object]]:
        lines = figures.robustness(both, attack).axes[0].lines
        return {str(line.get_label()): (line.get_color(), line.get_marker()) for line in lines}

    assert styles("sweep").items() < styles("pgd").items()
