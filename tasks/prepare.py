"""Convert the raw images to one array of images of one size, and draw the split that every later step uses."""

import json
import logging

import numpy as np

from tasks.core.files import write_json
from tasks.core.made_with import check_made_with
from tasks.core.workspace import Workspace
from tasks.dataset.description import describe_dataset
from tasks.dataset.images import Reading, read_prepared, reading_of, with_percentiles
from tasks.dataset.leakage import measure_leakage
from tasks.dataset.prepared import SPLITS
from tasks.dataset.shortcut import SHORTCUTS, predict_from_shortcuts, score_predictions
from tasks.dataset.split import draw_split, split_strategy
from tasks.dataset.table import join_table
from tasks.params import Params
from tasks.tracking import Tracker

log = logging.getLogger(__name__)


def prepare(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    """Write the images, the split, its leakage, and the predictions of the shortcut baseline.

    The files are ``pixels.npy``, ``split.parquet``, ``leakage.json``, ``shortcut_predictions.csv``, and
    ``dataset.json`` with facts about all of them.

    Raises:
        ValueError: no split of these images has the required fractions.
    """
    import pandas as pd

    settings, classes = params.prepare, params.acquire.classes
    manifest = pd.read_parquet(workspace.manifest)
    columns = ["path", "class", "label", "group", "near_duplicate_group", "patient"]
    # without patient ids there is no such column
    names = manifest.drop_duplicates("class").sort_values("label")["class"].tolist()
    check_made_with(workspace.manifest, "validate", {"classes": names}, workspace.params_file, {"classes": [*classes]})
    table = manifest[[column for column in columns if column in manifest]]
    if workspace.image_table.exists():
        table = join_table(table, pd.read_parquet(workspace.image_table))
    source = json.loads(workspace.source.read_text(encoding="utf-8"))

    strategy = split_strategy(settings.split.strategy, source["source"], table)
    table = table.assign(split=draw_split(strategy, table, settings.split, params.seed))

    reading = reading_of(params.acquire, settings)
    train = [workspace.images / path for path in table["path"][table["split"] == "train"]]
    reading = with_percentiles(reading, settings.intensity, train)
    pixels = _write_pixels(workspace, table["path"].tolist(), settings.image_size, reading)
    leakage = measure_leakage(table, pixels)
    assert strategy != "grouped" or not leakage["fractions"]["group_in_train"], leakage["fractions"]
    shortcut_predictions = predict_from_shortcuts(table.assign(**manifest[list(SHORTCUTS)]))
    shortcut_scores = score_predictions(shortcut_predictions)

    info = describe_dataset(params, source, table, strategy, leakage["fractions"], shortcut_scores, reading.intensity)
    table.to_parquet(workspace.split, index=False)
    shortcut_predictions.to_csv(workspace.shortcut_predictions, index=False)
    write_json(info, workspace.dataset_info)
    write_json(leakage, workspace.leakage)

    n_images = info["n_images"]
    log.info("%s split of %d images: %s", strategy, len(table), n_images)
    log.info("leakage: %s; %s, estimate: %s", leakage["fractions"], leakage["outcome"], leakage["estimate"])
    tracker.dataset(workspace.prepare, source["name"], "prepared")
    tracker.metrics({f"data/n_{split}": sum(n_images[split].values()) for split in SPLITS})
    tracker.metrics({f"leakage/{key}": value for key, value in leakage["fractions"].items()})
    tracker.metrics({f"leakage/estimate_{key}": leakage["estimate"][key] for key in ("value", "low", "high")})
    tracker.metrics({f"shortcut_baseline/{key}": value for key, value in shortcut_scores.items()})


def _write_pixels(workspace: Workspace, paths: list[str], size: tuple[int, int], reading: Reading) -> np.ndarray:
    """Write and return the images as one array, uint8 ``(N, C, H, W)``, without holding all of them in memory."""
    shape = (len(paths), reading.channels, *size)
    pixels = np.lib.format.open_memmap(workspace.pixels, mode="w+", dtype=np.uint8, shape=shape)
    for row, path in enumerate(paths):
        pixels[row] = read_prepared(workspace.images / path, size, reading=reading)
        if (row + 1) % 500 == 0:
            log.info("prepared %d of %d images", row + 1, len(paths))
    pixels.flush()
    return pixels


if __name__ == "__main__":
    from tasks.runner import main

    main(prepare)
