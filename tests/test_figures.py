"""Figures draw the given numbers, and the same figure has the same bytes."""

import re
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from tasks.reporting import figures, image_figures
from tasks.reporting.examples import ImageGrid, group_by_purifier, split_into_figures
from tasks.reporting.panels import PALETTE, Line, Panel, over_eps
from tasks.reporting.sections.accuracy import robustness_panel
from tasks.reporting.sections.entropy import entropy_panel

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
        surrogate=table["threat_model"].map(lambda name: "undefended" if name == "transfer" else ""),
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


STYLES = {"undefended": 0, "autoencoder": 1}


def robustness(table: pd.DataFrame, attack: str = "pgd") -> Figure:
    return figures.lines([robustness_panel(table, attack, STYLES)])


def lines_of(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[0].lines}


def test_loss_figure_has_both_losses_and_marks_the_best_epoch(history: pd.DataFrame) -> None:
    figure = figures.training(history, "loss", "classifier")
    assert lines_of(figure) == {
        "training": ([1, 2, 3], [0.9, 0.5, 0.3]),
        "validation": ([1, 2, 3], [0.8, 0.4, 0.6]),
        "best epoch": ([2], [0.4]),
    }
    assert (figure.axes[0].get_title(), figure.axes[0].get_ylabel()) == ("classifier", "loss")


def test_accuracy_figure_is_in_per_cent(history: pd.DataFrame) -> None:
    lines = lines_of(figures.training(history, "accuracy", "classifier"))
    assert lines["training"] == ([1, 2, 3], [50, 75, 87.5])
    assert lines["best epoch"] == ([2], [90])


def test_robustness_curves_start_at_the_clean_accuracy(table: pd.DataFrame) -> None:
    lines = lines_of(robustness(table))
    assert list(lines) == ["undefended", "autoencoder, transfer from undefended", "autoencoder, adaptive"]
    for (eps, accuracy), expected in zip(lines.values(), ACCURACY.values(), strict=True):
        assert eps == [0, *EPS]
        assert accuracy == pytest.approx([0.9, *expected])


def test_curves_of_transfer_name_the_surrogate_and_have_another_dash_for_independent_ones(table: pd.DataFrame) -> None:
    added = [
        table[(table["target"] == "undefended") & (table["attack"] == "pgd")].assign(
            threat_model="transfer", surrogate=name
        )
        for name in ("cnn-1", "resnet18-2")
    ]
    lines = {line.name: line.dash for line in robustness_panel(pd.concat([table, *added]), "pgd", STYLES).lines}
    assert lines == {
        "undefended": "solid",
        "autoencoder, transfer from undefended": "dashed",
        "autoencoder, adaptive": "solid",
        "undefended, transfer from cnn-1": "dashdot",
        "undefended, transfer from resnet18-2": "dashdot",
    }


def test_bands_of_robustness_curves_are_the_intervals(table: pd.DataFrame) -> None:
    band = robustness(table).axes[0].collections[0].get_paths()[0].vertices
    for eps, accuracy in zip(EPS, ACCURACY["undefended", "adaptive"], strict=True):
        edges = np.asarray(band)[np.asarray(band)[:, 0] == eps, 1]
        assert edges.min() == pytest.approx(0.9 * accuracy)
        assert edges.max() == pytest.approx(1.1 * accuracy)


def test_eps_axis_is_logarithmic_with_a_tick_for_clean_images_on_the_left(table: pd.DataFrame) -> None:
    axes = robustness(table).axes[0]
    assert list(axes.get_xticks()) == [0, *EPS]
    places = axes.transData.transform([(eps, 0.0) for eps in (0, *EPS)])[:, 0]
    steps = [right - left for left, right in pairwise(places)]
    assert steps[1] == pytest.approx(steps[2])
    assert 0.3 < steps[0] / steps[1] < 1.5


def test_targets_differ_in_colour_and_marker_and_threat_models_in_dash_and_fill(table: pd.DataFrame) -> None:
    lines = robustness(table).axes[0].lines
    assert [to_hex(line.get_color()).upper() for line in lines] == [PALETTE[0], PALETTE[1], PALETTE[1]]
    assert [line.get_marker() for line in lines] == ["o", "s", "s"]
    assert [line.get_linestyle() for line in lines] == ["-", "--", "-"]
    assert [line.get_markerfacecolor() == "white" for line in lines] == [False, True, False]


def test_twenty_targets_have_different_styles() -> None:
    lines = [Line(f"{style}", np.zeros(1), np.zeros(1), style) for style in range(20)]
    drawn = figures.lines([Panel("x", "y", lines)]).axes[0].lines
    assert len({(line.get_color(), line.get_marker()) for line in drawn}) == 20


def test_legends_stay_within_the_figure_and_do_not_shrink_the_axes() -> None:
    def axes_height(n_lines: int) -> float:
        lines = [Line(f"a defence with a long name, number {n}", np.zeros(1), np.zeros(1), n) for n in range(n_lines)]
        figure = figures.lines([Panel("x", "y", lines)])
        legend = figure.legends[0].get_window_extent()
        assert 0 <= legend.x0 < legend.x1 <= figure.bbox.x1
        return figure.axes[0].get_window_extent().height

    assert axes_height(17) > 0.9 * axes_height(4)


def test_entropy_figure_has_the_mean_entropy(table: pd.DataFrame) -> None:
    lines = lines_of(figures.lines([entropy_panel(table, "pgd", STYLES)]))
    assert lines["autoencoder, adaptive"] == ([0, *EPS], pytest.approx([0.45, 0.35, 0.125, 0.05]))


def test_confusion_matrix_has_counts_and_shares_of_the_actual_class() -> None:
    axes = figures.confusion(np.array([[3, 1], [0, 8]]), ["healthy", "$ill$"]).axes[0]
    assert [text.get_text() for text in axes.texts] == ["3\n75.0 %", "1\n25.0 %", "0\n0.0 %", "8\n100.0 %"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["healthy", "$ill$"]
    np.testing.assert_allclose(axes.collections[0].get_array(), [[0.75, 0.25], [0, 1]])
    assert axes.yaxis_inverted()


def test_confusion_matrix_of_a_class_without_images_has_zeros() -> None:
    axes = figures.confusion(np.array([[2, 0], [0, 0]]), ["a", "b"]).axes[0]
    assert [text.get_text() for text in axes.texts][2:] == ["0\n0.0 %", "0\n0.0 %"]


def test_image_grid_shows_the_pixels_on_one_grey_scale() -> None:
    images = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
    shown = ImageGrid(images, ["a", "b"], ["x", "y", "z"], [["1", "2", "3"], ["4", "5", "6"]])
    figure = image_figures.image_grid(shown)
    assert len(figure.axes) == 6
    for axes, image in zip(figure.axes, images.reshape(6, 8, 8), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), image)
        assert axes.images[0].get_clim() == (0, 1)
    assert [axes.get_xlabel() for axes in figure.axes] == ["1", "2", "3", "4", "5", "6"]
    assert [axes.get_title() for axes in figure.axes[:3]] == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("n_purifiers", "expected"),
    [(0, ["abc"]), (1, ["abcde"]), (2, ["abcdefg"]), (3, ["abcdefg", "hi"]), (6, ["abcdefg", "hijklm", "no"])],
)
def test_columns_are_split_into_figures_and_columns_of_a_purifier_stay_together(
    n_purifiers: int, expected: list[str]
) -> None:
    shown = ImageGrid(
        np.zeros((1, 3 + 2 * n_purifiers, 2, 2)), ["row"], list("abcdefghijklmno"[: 3 + 2 * n_purifiers]), []
    )
    parts = [shown.part(columns) for columns in split_into_figures(group_by_purifier(shown, n_first=3))]
    assert ["".join(part.columns) for part in parts] == expected


def test_the_same_figure_gives_the_same_bytes(table: pd.DataFrame) -> None:
    first, second = (robustness(table) for _ in range(2))
    assert figures.png(first) == figures.png(second)
    assert figures.svg(first, "a") == figures.svg(second, "a")
    assert b"Software" not in figures.png(first)


def test_svg_has_no_external_references_and_unique_ids() -> None:
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
    swept = table[(table["attack"] == "pgd") & (table["threat_model"] == "adaptive")].assign(attack="suite")
    both = pd.concat([table, swept], ignore_index=True)

    def styles(attack: str) -> dict[str, tuple[object, object]]:
        lines = robustness(both, attack).axes[0].lines
        return {str(line.get_label()): (line.get_color(), line.get_marker()) for line in lines}

    assert styles("suite").items() < styles("pgd").items()


def test_eps_axis_has_no_tick_for_clean_images_if_no_line_has_them() -> None:
    line = Line("a", np.array(EPS), np.array([1.0, 2, 3]))
    axes = figures.lines([over_eps("distance", [line])]).axes[0]
    assert list(axes.get_xticks()) == EPS
    assert axes.get_xlim()[0] > 0


def test_panels_have_one_common_legend() -> None:
    line = Line("only", np.array([0.0, 1]), np.array([0.0, 1]))
    panels = [Panel("x", "y", [line, Line("other", line.x, line.y, style=1)]) for _ in range(4)]
    figure = figures.lines(panels, n_columns=3)
    assert len(figure.axes) == 4
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["only", "other"]


def test_logarithmic_axes_are_labelled_without_tex() -> None:
    line = Line("power", np.array([0.02, 0.5]), np.array([1e-6, 1e-1]))
    figure = figures.lines([Panel("frequency", "power", [line], x_scale="frequency", y_scale="log", drawn="lines")])
    drawing = figures.svg(figure, "spectrum")
    assert ">10⁻³<" in drawing
    assert ">0.05<" in drawing
    assert "mathdefault" not in drawing


def test_heat_maps_cover_their_images_and_are_transparent_at_zero() -> None:
    images = np.full((1, 4, 8, 8), 0.5, dtype=np.float16)
    maps = np.zeros((1, 4, 4), dtype=np.float16)
    maps[0, 1, 2] = 1
    shown = ImageGrid(images, ["a"], ["x", "y", "perturbation × 9", "z"], [["1", "2", "", "3"]])
    *grid, bar = image_figures.image_grid(shown, {0: maps, 1: maps, 3: maps}).axes
    assert [len(axes.images) for axes in grid] == [2, 2, 1, 2]
    opacity = np.asarray(grid[0].images[1].get_alpha())
    assert opacity[1, 2] == pytest.approx(image_figures.MAX_OPACITY)
    assert opacity.sum() == pytest.approx(image_figures.MAX_OPACITY)
    assert grid[0].images[1].get_extent() == [-0.5, 7.5, 7.5, -0.5]
    assert bar.get_ylabel() == "Grad-CAM for the predicted class,\nrelative to the maximum"


def test_embeddings_have_one_row_for_each_method_and_one_column_for_each_eps() -> None:
    points = [
        (method, eps, kind, label)
        for method in ("pca", "tsne")
        for eps in (1.0, 4.0)
        for kind in ("clean", "adversarial")
        for label in (0, 1)
    ]
    table = pd.DataFrame(points, columns=["method", "eps", "image_kind", "label"]).assign(x=1.0, y=2.0)
    figure = image_figures.embeddings(table, ["<a>", "b"])
    assert [axes.get_title() for axes in figure.axes] == ["ε = 1/255", "ε = 4/255", "", ""]
    assert [axes.get_ylabel() for axes in figure.axes] == ["PCA", "", "t-SNE", ""]
    clean, attacked = figure.axes[0].collections[:2]
    assert (clean.get_label(), attacked.get_label()) == ("<a>, clean", "<a>, adversarial")
    assert len(clean.get_facecolor()) == 0
    assert to_hex(attacked.get_facecolor()[0]) == PALETTE[1].lower()
    assert figures.svg(figure, "a") == figures.svg(figure, "a")
