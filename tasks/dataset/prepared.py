"""The prepared data set, as every later step reads it."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tasks.core.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Prepared:
    """Grey images with their labels and split."""

    pixels: np.ndarray
    """uint8 ``(N, 1, H, W)``, memory-mapped and read-only."""
    table: "pd.DataFrame"
    """A row an image in the order of ``pixels``: path, class, label, group, near_duplicate_group, split."""
    classes: tuple[str, ...]
    """Class names; the position of a name is its label."""
    positive: int
    """Label of the positive class."""
    value_range: tuple[float, float]
    """Lowest and highest value of :meth:`floats`, which models and attacks see."""
    is_phantom: bool
    """Whether the images are drawn phantoms instead of patients' scans."""

    def indices(self, split: str) -> np.ndarray:
        """Rows of ``train``, ``validation`` or ``test``, rising, int64 ``(n,)``."""
        assert split in SPLITS, split
        return np.flatnonzero(self.table["split"].to_numpy() == split).astype(np.int64)

    def floats(self, indices: np.ndarray) -> np.ndarray:
        """Images of these rows as models see them, float32 ``(n, 1, H, W)`` in [0, 1]."""
        return as_floats(self.pixels[indices])

    def labels(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Labels of these rows (all without ``indices``), int64 ``(n,)``."""
        labels = self.table["label"].to_numpy(dtype=np.int64)
        return labels if indices is None else labels[indices]

    def paths(self, indices: np.ndarray) -> np.ndarray:
        """Paths of the images of these rows, str ``(n,)``."""
        image_paths: np.ndarray = self.table["path"].to_numpy(dtype=object)[indices]
        return image_paths

    def nearest_path(self, indices: np.ndarray, image: np.ndarray) -> str:
        """Path of the one of these rows' images that an image ``(1, H, W)`` in [0, 1] is nearest to."""
        distances = np.square(self.floats(indices) - image).sum(axis=(1, 2, 3))
        return str(self.paths(indices)[distances.argmin()])


def as_floats(pixels: np.ndarray) -> np.ndarray:
    """Images as models see them, float32 in [0, 1].

    Args:
        pixels: uint8 ``(N, 1, H, W)``.
    """
    return np.asarray(pixels, dtype=np.float32) / np.float32(255)


def load_prepared(workspace: Workspace) -> Prepared:
    """The output of the step ``prepare`` in this workspace.

    Raises:
        FileNotFoundError: the step has not run.
        ValueError: the pixels are no array of numbers.
    """
    import pandas as pd

    if missing := [path for path in (workspace.pixels, workspace.split, workspace.dataset_info) if not path.is_file()]:
        raise FileNotFoundError(f"{missing[0]} not found: run the step prepare first (dvc repro prepare)")
    info = json.loads(workspace.dataset_info.read_text(encoding="utf-8"))
    try:
        pixels = np.load(workspace.pixels, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{workspace.pixels} holds no array of pixels: run the step prepare again") from error
    table = pd.read_parquet(workspace.split)
    assert len(pixels) == len(table)
    low, high = info["value_range"]
    return Prepared(
        pixels=pixels,
        table=table,
        classes=tuple(info["classes"]),
        positive=info["classes"].index(info["positive_class"]),
        value_range=(low, high),
        is_phantom=info["is_phantom"],
    )


def choose_stratified(data: Prepared, rows: np.ndarray, n_images: int, seed: int) -> np.ndarray:
    """Some of these rows in the classes' proportions, rising, int64 ``(n_images,)``; 0: all of them.

    With the same seed, fewer images are a part of more.

    Args:
        data: the prepared data set.
        rows: to choose from, rising, ``(n,)``.
        n_images: at least as many as there are classes, or 0.
        seed: of the choice.
    """
    if n_images == 0 or n_images >= len(rows):
        return rows
    rows = np.random.default_rng(seed).permutation(rows)
    labels = data.labels(rows)
    # how far along its class an image is, in [0, 1): the first of all classes come before any second
    progress = np.empty(len(rows))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        progress[members] = np.arange(len(members)) / len(members)
    return np.sort(rows[np.argsort(progress, kind="stable")[:n_images]])
