"""Data set: source, sizes, split, leakage, and example images."""

from typing import Any

import pandas as pd

from tasks.dataset.intensity import IntensityRange
from tasks.dataset.prepared import SPLITS
from tasks.params import Resize
from tasks.reporting import examples, image_figures
from tasks.reporting.drawings import IMAGES, Drawing
from tasks.reporting.formats import estimate
from tasks.reporting.headline import Headline
from tasks.reporting.results import Results
from tasks.reporting.section import Section
from tasks.reporting.tables import Table
from tasks.statistics.formatting import percent

RESIZED: dict[Resize, str] = {
    "stretch": "",
    "pad": ", padded with 0 to keep the aspect ratio",
    "crop": ", cropped to keep the aspect ratio",
}
"""Description of ``prepare.resize``; empty for the default."""


def data_section(results: Results, _headline: Headline) -> Section:
    """Return facts about the data set, the images by class and split, and example images."""
    info, manifest, data = results.dataset_info, results.manifest, results.data
    sides = manifest[["width", "height"]].agg(["min", "max", "median"])
    height, width = data.pixels.shape[2:]
    leaked = results.leakage["estimate"]
    shown = examples.examples_by_class(data) if results.params.report.include_images else None
    values = {
        "info": info,
        "formats": _counts(manifest["format"]),
        "modes": _counts(manifest["mode"]),
        "sizes": {name: f"{sides.loc[name, 'width']:g} × {sides.loc[name, 'height']:g}" for name in sides.index},
        "prepared_size": f"{width} × {height}",
        "colour": "grey" if data.pixels.shape[1] == 1 else "red, green and blue",
        "resize": RESIZED[info.get("resize", "stretch")],
        "is_resized": not (manifest["width"].eq(width) & manifest["height"].eq(height)).all(),
        "value_range": [f"{bound:g}" for bound in data.value_range],
        "leakage_estimate": None if leaked["value"] is None else estimate(leaked, percent),
        "inferred": _inferred_groups(results.leakage.get("inferred_groups")),
        "intensity": info.get("intensity"),
        "per_eps": IntensityRange(**info.get("intensity", {})).per_eps,
        "leakage_sweep": _sweep_table(results.leakage["sweep"]),
        "shortcut": {name: percent(info["shortcut_baseline"][name]) for name in ("accuracy", "balanced_accuracy")},
        "split_counts": split_counts(results),
        "shown_classes": shown.rows if shown else [],
        "n_shown": shown.images.shape[1] if shown else 0,
        "n_test": len(data.indices("test")),
    }
    drawings = [Drawing(f"{IMAGES}classes", image_figures.image_grid(shown))] if shown else []
    return Section("data", "Data set", values, drawings)


def _inferred_groups(comparison: dict[str, Any] | None) -> dict[str, str] | None:
    """Return how well the inferred groups match the patients; None without patient ids."""
    if comparison is None:
        return None
    shares = {
        name: "none (no such pairs)" if comparison[name] is None else percent(comparison[name])
        for name in ("precision", "recall")
    }
    return shares | {"n": str(comparison["n_inferred"])}


def _sweep_table(sweep: list[dict[str, Any]]) -> Table:
    """Return the leakage by group for several thresholds at which groups are inferred."""
    rows = [
        [f"{row['same_group_correlation']:g}", str(row["n_groups"]), percent(row["group_in_train"])] for row in sweep
    ]
    return Table(["same_group_correlation", "groups", "test images with an image of their group in training"], rows)


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
