"""Data set: source, sizes, split, leakage, and example images."""

import pandas as pd

from tasks.dataset.prepared import SPLITS
from tasks.reporting import examples, image_figures
from tasks.reporting.drawings import IMAGES, Drawing
from tasks.reporting.headline import Headline
from tasks.reporting.results import Results
from tasks.reporting.section import Section
from tasks.reporting.tables import Table


def data_section(results: Results, _headline: Headline) -> Section:
    """Return facts about the data set, the images by class and split, and example images."""
    info, manifest, data = results.dataset_info, results.manifest, results.data
    sides = manifest[["width", "height"]].agg(["min", "max", "median"])
    height, width = data.pixels.shape[2:]
    shown = examples.examples_by_class(data)
    values = {
        "info": info,
        "formats": _counts(manifest["format"]),
        "modes": _counts(manifest["mode"]),
        "sizes": {name: f"{sides.loc[name, 'width']:g} × {sides.loc[name, 'height']:g}" for name in sides.index},
        "prepared_size": f"{width} × {height}",
        "value_range": [f"{bound:g}" for bound in data.value_range],
        "split_counts": split_counts(results),
        "shown_classes": shown.rows,
        "n_shown": shown.images.shape[1],
        "n_test": len(data.indices("test")),
    }
    return Section("data", "Data set", values, [Drawing(f"{IMAGES}classes", image_figures.image_grid(shown))])


def split_counts(results: Results) -> Table:
    """Return the number of images of each class in each split."""
    n_images, positive = results.dataset_info["n_images"], results.data.classes[results.data.positive]
    rows = []
    for name in results.dataset_info["classes"]:
        counts = [n_images[split][name] for split in SPLITS]
        head = f"{name} (positive)" if name == positive else name
        rows.append([head, *map(str, [*counts, sum(counts)])])
    return Table(["class", *SPLITS, "all"], rows)


def _counts(values: "pd.Series[str]") -> str:
    """Return values with their counts, the most frequent first: ``PNG (640), JPEG (2)``."""
    return ", ".join(f"{value} ({n})" for value, n in values.value_counts(sort=True).items())
