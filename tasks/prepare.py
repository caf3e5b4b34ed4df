"""Convert the raw images to one array of square images, and draw the split that every later step uses."""

import json
import logging

import numpy as np

from tasks.core.workspace import Workspace
from tasks.dataset.images import read_square
from tasks.dataset.prepared import SPLITS
from tasks.dataset.split import grouped_split, leakage, stratified_split
from tasks.params import Params
from tasks.tracking import Tracker

log = logging.getLogger(__name__)


def prepare(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    """Write the images ``pixels.npy``, the split ``split.parquet``, and facts about both in ``dataset.json``.

    Raises:
        ValueError: no split of these images has the required fractions.
    """
    import pandas as pd

    settings, classes = params.prepare, params.acquire.classes
    table = pd.read_parquet(workspace.manifest, columns=["path", "class", "label", "group", "near_duplicate_group"])
    source = json.loads(workspace.source.read_text(encoding="utf-8"))

    labels = table["label"].to_numpy()
    fractions = settings.split.test_fraction, settings.split.validation_fraction
    if settings.split.strategy == "stratified":
        table["split"] = stratified_split(labels, *fractions, params.seed)
    else:
        table["split"] = grouped_split(labels, table["group"].to_numpy(), *fractions, params.seed)
    leakage_fractions = leakage(table)
    assert settings.split.strategy == "stratified" or not any(leakage_fractions.values()), leakage_fractions

    _write_pixels(workspace, table["path"].tolist(), settings.image_size)

    n_images = {
        split: {name: int(((table["split"] == split) & (table["class"] == name)).sum()) for name in classes}
        for split in SPLITS
    }
    info = {
        "name": source["name"],
        "source": source["source"],
        "is_phantom": source["is_phantom"],
        "classes": list(classes),
        "positive_class": params.acquire.positive_class,
        "image_size": settings.image_size,
        "value_range": [0.0, 1.0],
        "strategy": settings.split.strategy,
        "n": len(table),
        "n_groups": int(table["group"].nunique()),
        "n_images": n_images,
        "leakage": leakage_fractions,
    }
    table.to_parquet(workspace.split, index=False)
    workspace.dataset_info.write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    log.info("%s split of %d images: %s; leakage: %s", settings.split.strategy, len(table), n_images, leakage_fractions)
    tracker.dataset(workspace.prepare, source["name"], "prepared")
    tracker.metrics({f"data/n_{split}": sum(n_images[split].values()) for split in SPLITS})
    tracker.metrics({f"leakage/{key}": value for key, value in leakage_fractions.items()})


def _write_pixels(workspace: Workspace, paths: list[str], side: int) -> None:
    """Write the images as one array, uint8 ``(N, 1, side, side)``, without holding all of them in memory."""
    shape = (len(paths), 1, side, side)
    pixels = np.lib.format.open_memmap(workspace.pixels, mode="w+", dtype=np.uint8, shape=shape)
    for row, path in enumerate(paths):
        pixels[row, 0] = read_square(workspace.images / path, side)
        if (row + 1) % 500 == 0:
            log.info("prepared %d of %d images", row + 1, len(paths))
    pixels.flush()


if __name__ == "__main__":
    from tasks.runner import main

    main(prepare)
