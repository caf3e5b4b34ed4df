"""The report's figures by name, each with what it shows in words."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from tasks.records.vocabulary import CLEAN, SQUARE, SUITE, SWEEP, spoken
from tasks.reporting import examples, figures, pictures
from tasks.reporting.examples import PERTURBATION, UnderAttack, by_purifier, shared_out
from tasks.reporting.findings import Curve, Headline, attack_name, attacks_of, curves_under, eps_of
from tasks.reporting.panels import Line, Panel, dash_of, line_over_eps, over_eps
from tasks.reporting.results import Results
from tasks.reporting.sections.section import IMAGES as IMAGES
from tasks.reporting.sections.section import Drawing, Section, lines_drawing, picture_drawings
from tasks.statistics.formatting import eps_text

NOTES = {
    SWEEP: "More steps and restarts; of each image the smallest ε that breaks it counts. ",
    SUITE: "The sweep, then Auto-PGD on two losses and DeepFool on what it left. ",
    SQUARE: "Asks for scores alone, without a look at gradients. ",
}
"""What the captions of an attack's figure add."""


WIDE = 6.0
"""Inches from which a figure scrolls on a narrow screen."""


@dataclass(frozen=True)
class Drawn:
    """A figure, ready for the page and as a file."""

    png: bytes
    element: Markup
    """An ``<svg>`` or, for images, ``<img>`` element that carries the picture in itself."""
    caption: str
    plot: dict[str, Any] | None
    """The same for plotly.js, if readers want values."""
    is_wide: bool
    """Whether it takes the page's whole width."""


def draw(results: Results, headline: Headline, sections: Sequence[Section]) -> dict[str, Drawn]:
    """All figures of the report; names are file names without ending."""
    drawings = [*_drawings(results, headline), *(drawing for section in sections for drawing in section.drawings)]
    return {drawing.name: _drawn(drawing) for drawing in drawings}


def _drawings(results: Results, headline: Headline) -> list[Drawing]:
    table, classes = results.robustness, results.data.classes
    drawings: list[Drawing] = []

    def add(name: str, figure: Figure, alt: str, caption: str) -> None:
        drawings.append(Drawing(name, figure, alt, caption))

    shown = examples.of_classes(results.data)
    add(
        f"{IMAGES}classes",
        pictures.image_grid(shown),
        f"Test images of the classes {', '.join(shown.rows)}",
        f"Test images as the classifier sees them, a row a class ({len(shown.rows)} of {len(classes)}), spread evenly "
        "over the test split.",
    )
    for name, training in trainings(results).items():
        add(
            f"{name}-loss",
            figures.loss(training.history, training.of),
            f"Loss of the {training.of} by epoch",
            f"{training.of[0].upper()}{training.of[1:]}: {training.loss}",
        )
        if "validation_accuracy" in training.history:
            add(
                f"{name}-accuracy",
                figures.accuracy(training.history, training.of),
                f"Accuracy of the {training.of} by epoch",
                f"{training.of[0].upper()}{training.of[1:]}: accuracy. Training images are augmented, and seen by the "
                "weights before averaging.",
            )
    for attack in attacks_of(table):
        names = "; ".join(curve.name for curve in curves_under(table, attack))
        drawings.append(
            lines_drawing(
                f"robustness-{attack}",
                [robustness_panel(table, attack, headline.styles)],
                f"Accuracy against ε under {attack_name(attack)}: {names}; a table below has the numbers",
                f"{attack_name(attack)}: accuracy against ε. Bands are 95 % Wilson intervals. {NOTES.get(attack, '')}"
                f"The axis is linear up to {eps_text(eps_of(table)[0])}, then logarithmic.",
                is_interactive=True,
            )
        )
    for name, (curve, eps) in confusions(headline).items():
        counts = _counts(results.confusion, curve, eps, classes)
        cells = "; ".join(
            f"{counts[i, j]} {actual} predicted {predicted}"
            for i, actual in enumerate(classes)
            for j, predicted in enumerate(classes)
        )
        caption = curve.name if eps else spoken(curve.target)
        add(name, figures.confusion(counts, classes), f"Confusion matrix: {cells}", caption)
    with_entropy = table[table["mean_entropy"].notna()]
    drawings.extend(
        lines_drawing(
            f"entropy-{attack}",
            [entropy_panel(with_entropy, attack, headline.styles)],
            f"Mean entropy of the predictions against ε under {attack_name(attack)}; a table has the numbers",
            f"{attack_name(attack)}: mean entropy of the predicted probabilities.",
        )
        for attack in attacks_of(with_entropy)
    )
    return drawings + _under_attack(results.analysis.examples)


def _under_attack(shown: UnderAttack) -> list[Drawing]:
    parts = shared_out(by_purifier(shown.pictures, n_first=PERTURBATION + 1))
    return picture_drawings(
        "attack",
        [pictures.image_grid(shown.pictures.part(columns)) for columns in parts],
        f"Clean, adversarial and denoised images of the classes {', '.join(shown.pictures.rows)}",
        f"{attack_name(shown.attack)} at ε = {eps_text(shown.eps)}/255, crafted on the classifier alone; for each "
        "class the first test image that it turns wrong (the first of all where there is none). Below each image: "
        "what the classifier makes of it.",
    )


@dataclass(frozen=True)
class Training:
    """What was trained, and how it went."""

    of: str
    history: pd.DataFrame
    loss: str
    """What is minimised."""


def trainings(results: Results) -> dict[str, Training]:
    """Classifier, autoencoder, and the defences that were trained, by what their figures' names begin with."""
    first = {
        "classifier": Training("classifier", results.classifier_history, "cross-entropy."),
        "autoencoder": Training(
            "denoising autoencoder",
            results.autoencoder_history,
            "reconstruction loss. It never saw adversarial images.",
        ),
    }
    return first | {
        f"defence-{name}": Training(spoken(name), history, f"loss; defences.{name} among the parameters says of what.")
        for name, history in results.defence_histories.items()
    }


def robustness_panel(table: pd.DataFrame, attack: str, styles: dict[str, int]) -> Panel:
    """Accuracy against ε under one attack, a curve with its 95 % band for each target and threat model.

    Args:
        table: robustness table (see :mod:`tasks.reporting.findings`).
        attack: ``fgsm``, ``pgd``, ...
        styles: by target.
    """
    lines = _lines(table, attack, "accuracy", styles)
    label = f"accuracy under {attack_name(attack)}"
    return over_eps(label, lines, y_scale="share", y_range=(-0.02, 1.02))


def entropy_panel(table: pd.DataFrame, attack: str, styles: dict[str, int]) -> Panel:
    """Mean entropy of the predicted probabilities in nats; arguments as of :func:`robustness_panel`."""
    lines = _lines(table, attack, "mean_entropy", styles)
    return over_eps(f"mean entropy under {attack_name(attack)} (nats)", lines, y_range=(0, None))


def _lines(table: pd.DataFrame, attack: str, quantity: str, styles: dict[str, int]) -> list[Line]:
    return [
        line_over_eps(curve.name, curve.rows, quantity, styles[curve.target], dash_of(curve.threat_model))
        for curve in curves_under(table, attack)
    ]


def _drawn(drawing: Drawing) -> Drawn:
    png = figures.png(drawing.figure)
    width = drawing.figure.get_figwidth()
    is_wide = width > WIDE
    # as wide as letters stay near the page's own; wide ones scroll rather than shrink
    style = f"max-width: {6.6 * width:.4g}rem" + (f"; min-width: {4.2 * width:.4g}rem" if is_wide else "")
    if drawing.name.startswith(IMAGES):
        data = base64.b64encode(figures.jpeg(png)).decode()
        element = Markup('<img src="data:image/jpeg;base64,{}" alt="{}" style="{}">').format(data, drawing.alt, style)
    else:
        svg = figures.svg(drawing.figure, drawing.name).removeprefix("<svg")
        element = Markup('<svg role="img" aria-label="{}" style="{}"').format(drawing.alt, style)
        # drawn just now by matplotlib, which escapes every text in it: escaping it again would show its source
        element += Markup(svg)  # noqa: S704  drawn by matplotlib  # nosec B704
    return Drawn(png, element, drawing.caption, drawing.plot, is_wide)


def confusions(headline: Headline) -> dict[str, tuple[Curve, float]]:
    """Curve and ε of each confusion matrix by its figure's name: clean, then under the headline's attack."""
    curves = [headline.undefended, *(curve for by_threat in headline.defences.values() for curve in by_threat.values())]
    clean = {f"confusion-clean-{curve.target}": (curve, 0.0) for curve in curves}
    attacked = {
        f"confusion-{curve.attack}-{curve.target}-{curve.threat_model}": (curve, headline.eps) for curve in curves
    }
    return clean | attacked


def _counts(confusion: pd.DataFrame, curve: Curve, eps: float, classes: tuple[str, ...]) -> np.ndarray:
    """Images by actual and predicted class, int64 ``(K, K)``."""
    threat_model, attack = (curve.threat_model, curve.attack) if eps else ("none", CLEAN)
    cells = confusion[
        (confusion["target"] == curve.target)
        & (confusion["threat_model"] == threat_model)
        & (confusion["attack"] == attack)
        & (confusion["eps"] == eps)
    ]
    by_class = cells.pivot(index="actual", columns="predicted", values="n")
    return by_class.reindex(index=list(classes), columns=list(classes)).to_numpy(dtype=np.int64)
