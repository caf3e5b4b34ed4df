"""Adversarial images: one example of each class."""

from tasks.reporting import image_figures
from tasks.reporting.drawings import image_drawings
from tasks.reporting.examples import PERTURBATION, group_by_purifier, split_into_figures
from tasks.reporting.headline import Headline
from tasks.reporting.results import Results
from tasks.reporting.section import Point, Section


def adversarial_images_section(results: Results, _headline: Headline) -> Section:
    """Return a clean, an adversarial and the purified images of each class."""
    shown = results.examples
    assert shown is not None
    parts = split_into_figures(group_by_purifier(shown.images, n_first=PERTURBATION + 1))
    drawings = image_drawings("attack", [image_figures.image_grid(shown.images.part(columns)) for columns in parts])
    values = {
        "names": [drawing.name for drawing in drawings],
        "classes": shown.images.rows,
        "point": Point(shown.attack, shown.eps),
    }
    return Section("adversarial-images", "Adversarial images", values, drawings)
