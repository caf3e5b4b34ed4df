"""The report's figures by name, each with what it shows in words."""

import base64
from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from tasks.attacks.kept import kept_path
from tasks.defences import UNDEFENDED
from tasks.evaluation.records import CLEAN
from tasks.evaluation.robustness import SWEEP
from tasks.reporting import examples, figures
from tasks.reporting.findings import Curve, Headline, attack_name, attacks_of, curves_under, eps_of, eps_text
from tasks.reporting.results import Results

IMAGES = "images-"
"""How the names of figures begin that show images of the data set, whose licence they come under."""


NOTES = {SWEEP: "More steps and restarts; of each image the smallest ε that breaks it counts. "}
"""What the captions of an attack's figure add."""


@dataclass(frozen=True)
class Drawn:
    """A figure, ready for the page and as a file."""

    png: bytes
    element: Markup
    """An ``<svg>`` or, for images, ``<img>`` element that carries the picture in itself."""
    caption: str


def draw(results: Results, headline: Headline) -> dict[str, Drawn]:
    """All figures of the report, in the order of the page; names are file names without ending."""
    table, classes = results.robustness, results.data.classes
    gallery: dict[str, Drawn] = {}

    def add(name: str, figure: Figure, alt: str, caption: str) -> None:
        gallery[name] = _drawn(name, figure, alt, caption)

    shown = examples.of_classes(results.data)
    add(
        f"{IMAGES}classes",
        figures.image_grid(shown.images, shown.rows, shown.columns, shown.captions),
        f"Test images of the classes {', '.join(shown.rows)}",
        f"Test images as the classifier sees them, a row a class ({len(shown.rows)} of {len(classes)}), spread evenly "
        "over the test split.",
    )
    add(
        "classifier-loss",
        figures.loss(results.classifier_history, "classifier loss"),
        "Loss of the classifier by epoch",
        "Classifier: cross-entropy.",
    )
    add(
        "classifier-accuracy",
        figures.accuracy(results.classifier_history, "classifier accuracy"),
        "Accuracy of the classifier by epoch",
        "Classifier: accuracy. Training images are augmented, and seen by the weights before averaging.",
    )
    add(
        "autoencoder-loss",
        figures.loss(results.autoencoder_history, "autoencoder loss"),
        "Loss of the autoencoder by epoch",
        "Denoising autoencoder: reconstruction loss. It never saw adversarial images.",
    )
    for attack in attacks_of(table):
        names = "; ".join(curve.name for curve in curves_under(table, attack))
        add(
            f"robustness-{attack}",
            figures.robustness(table, attack),
            f"Accuracy against ε under {attack_name(attack)}: {names}; a table below has the numbers",
            f"{attack_name(attack)}: accuracy against ε. Bands are 95 % Wilson intervals. {NOTES.get(attack, '')}"
            f"The axis is linear up to {eps_text(eps_of(table)[0])}, then logarithmic.",
        )
    for name, (curve, eps) in confusions(headline).items():
        counts = _counts(results.confusion, curve, eps, classes)
        cells = "; ".join(
            f"{counts[i, j]} {actual} predicted {predicted}"
            for i, actual in enumerate(classes)
            for j, predicted in enumerate(classes)
        )
        caption = curve.name if eps else curve.target
        add(name, figures.confusion(counts, classes), f"Confusion matrix: {cells}", caption)
    with_entropy = table[table["mean_entropy"].notna()]
    for attack in attacks_of(with_entropy):
        add(
            f"entropy-{attack}",
            figures.entropy(with_entropy, attack),
            f"Mean entropy of the predictions against ε under {attack_name(attack)}; a table has the numbers",
            f"{attack_name(attack)}: mean entropy of the predicted probabilities.",
        )
    kept = [eps for eps in eps_of(table) if kept_path(UNDEFENDED, headline.attack, eps).is_file()]
    if kept:
        eps = min(kept, key=lambda eps: abs(eps - headline.eps))
        shown = examples.of_attack(results.data, results.records, headline.attack, eps)
        add(
            f"{IMAGES}attack",
            figures.image_grid(shown.images, shown.rows, shown.columns, shown.captions),
            f"Clean, adversarial and denoised images of the classes {', '.join(shown.rows)}",
            f"{attack_name(headline.attack)} at ε = {eps_text(eps)}/255, crafted on the classifier alone; for "
            "each class the first test image that it turns wrong (the first of all where there is none). "
            "Below each image: what the classifier makes of it.",
        )
    return gallery


def _drawn(name: str, figure: Figure, alt: str, caption: str) -> Drawn:
    png = figures.png(figure)
    if name.startswith(IMAGES):
        data = base64.b64encode(png).decode()
        element = Markup('<img src="data:image/png;base64,{}" alt="{}">').format(data, alt)
    else:
        drawing = figures.svg(figure, name).removeprefix("<svg")
        element = Markup('<svg role="img" aria-label="{}"').format(alt)
        # drawn just now by matplotlib, which escapes every text in it: escaping it again would show its source
        element += Markup(drawing)  # noqa: S704
    return Drawn(png, element, caption)


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
