"""Facts about the prepared images, as in ``dataset.json``."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tasks.core.workspace import SCHEMA_VERSION
from tasks.dataset.intensity import FULL_RANGE, IntensityRange
from tasks.dataset.prepared import SPLITS
from tasks.params import Params, size_as_given

if TYPE_CHECKING:
    import pandas as pd


def describe_dataset(
    params: Params,
    source: Mapping[str, Any],
    table: "pd.DataFrame",
    strategy: str,
    leakage: Mapping[str, float],
    shortcut_scores: Mapping[str, float],
    intensity: IntensityRange,
) -> dict[str, Any]:
    """Return the content of ``dataset.json``.

    Args:
        params: all parameters; the sections ``acquire`` and ``prepare`` are read.
        source: content of ``source.json``.
        table: ``class``, ``group`` and ``split`` of every image.
        strategy: by which the split was drawn.
        leakage: fractions of the test images, from :func:`tasks.dataset.leakage.measure_leakage`.
        shortcut_scores: of :func:`tasks.dataset.shortcut.score_predictions`.
        intensity: with which the images were read.
    """
    settings, classes = params.prepare, params.acquire.classes
    n_images = {
        split: {name: int(((table["split"] == split) & (table["class"] == name)).sum()) for name in classes}
        for split in SPLITS
    }
    info = {
        "schema_version": SCHEMA_VERSION,
        "name": source["name"],
        "source": source["source"],
        "is_phantom": source["is_phantom"],
        "classes": list(classes),
        "positive_class": params.acquire.positive_class,
        "image_size": size_as_given(settings.image_size),
        **({"channels": 3} if settings.channels == 3 else {}),
        **({"resize": settings.resize} if settings.resize != "stretch" else {}),
        "value_range": [0.0, 1.0],
        "strategy": strategy,
        **({"n_folds": settings.split.n_folds, "fold": settings.split.fold} if settings.split.n_folds else {}),
        "n": len(table),
        "n_groups": int(table["group"].nunique()),
        "n_images": n_images,
        "leakage": leakage,
        "shortcut_baseline": shortcut_scores,
    }
    if intensity != FULL_RANGE:
        info["intensity"] = asdict(intensity)
    return info
