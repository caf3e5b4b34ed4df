"""The prepared data set: the input of every later step."""

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
    """Images with their labels and split."""

    pixels: np.ndarray
    """uint8 ``(N, C, H, W)``, memory-mapped and read-only; C is 1 (grey) or 3 (red, green, blue)."""
    table: "pd.DataFrame"
    """One row for each image, in the order of ``pixels``: path, class, label, group, near_duplicate_group, split."""
    classes: tuple[str, ...]
    """Class names; the position of a name is its label."""
    positive: int
    """Label of the positive class."""
    value_range: tuple[float, float]
    """Minimum and maximum of the values that models and attacks receive."""
    is_phantom: bool
    """True if the images are computer-drawn phantoms, False if they are scans of patients."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        height, width = self.pixels.shape[2:]
        return height, width

    @property
    def channel_argument(self) -> dict[str, int]:
        """Argument of the builders of networks: none for grey images, which are their default."""
        n_channels = self.pixels.shape[1]
        return {} if n_channels == 1 else {"n_channels": n_channels}

    def indices(self, split: str) -> np.ndarray:
        """Rows of the images of ``train``, ``validation`` or ``test``, ascending, int64 ``(n,)``."""
        assert split in SPLITS, split
        return np.flatnonzero(self.table["split"].to_numpy() == split).astype(np.int64)

    def floats(self, rows: np.ndarray) -> np.ndarray:
        """Images in these rows as input of a model, float32 ``(n, C, H, W)`` in [0, 1]."""
        return as_floats(self.pixels[rows])

    def labels(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Labels of the images in these rows, or of all images, int64 ``(n,)``."""
        labels = self.table["label"].to_numpy(dtype=np.int64)
        return labels if rows is None else labels[rows]

    def paths(self, rows: np.ndarray) -> np.ndarray:
        """Paths of the images in these rows, str ``(n,)``."""
        image_paths: np.ndarray = self.table["path"].to_numpy(dtype=object)[rows]
        return image_paths

    def identity(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Row number, path, label and group of the images in these rows, as columns of a table of records."""
        groups = self.table["group"].to_numpy(dtype=np.int64)[rows]
        return {"image": rows, "path": self.paths(rows), "label": self.labels(rows), "group": groups}

    def nearest_path(self, rows: np.ndarray, image: np.ndarray) -> str:
        """Path of the nearest image, in L2 distance, among the images in these rows.

        Args:
            rows: of the candidates.
            image: ``(C, H, W)`` in [0, 1].
        """
        distances = np.square(self.floats(rows) - image).sum(axis=(1, 2, 3))
        return str(self.paths(rows)[distances.argmin()])


def as_floats(pixels: np.ndarray) -> np.ndarray:
    """Images as input of a model, float32 in [0, 1].

    Args:
        pixels: uint8 ``(N, C, H, W)``.
    """
    return np.asarray(pixels, dtype=np.float32) / np.float32(255)


def as_pictures(images: np.ndarray) -> np.ndarray:
    """Images as files and figures have them: ``(N, C, H, W)`` to ``(N, H, W)``, or ``(N, H, W, 3)`` for colours."""
    return images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)


def load_prepared(workspace: Workspace) -> Prepared:
    """Read the output of the step ``prepare``.

    Raises:
        FileNotFoundError: the step has not run.
        ValueError: the file of the pixels is not a NumPy array, or it contains pickled objects.
    """
    import pandas as pd

    if missing := [path for path in (workspace.pixels, workspace.split, workspace.dataset_info) if not path.is_file()]:
        raise FileNotFoundError(f"{missing[0]} not found. Run the step prepare first: dvc repro prepare")
    info = json.loads(workspace.dataset_info.read_text(encoding="utf-8"))
    try:
        pixels = np.load(workspace.pixels, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{workspace.pixels} holds no array of pixels: run the step prepare again (dvc repro --force prepare)."
        ) from error
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


def signature_images(data: Prepared) -> np.ndarray:
    """Two images of the prepared size with random pixels: the example that is saved with a model shows no patient.

    Returns:
        float32 ``(2, C, H, W)`` in [0, 1].
    """
    return np.random.default_rng(0).random((2, *data.pixels.shape[1:]), dtype=np.float32)


def choose_stratified(
    data: Prepared, rows: np.ndarray, n_images: int, seed: int, over_groups: bool = True
) -> np.ndarray:
    """Random sample of rows, stratified by class and spread over groups, ascending, int64 ``(n_images,)``.

    Within a class, one image of every group comes before a second one of any group. So intervals by group have as many
    and as equal groups as possible. Images of large groups are rarer in the sample than in the population: a mean over
    the sample counts groups more equally than a mean over all images. If every image is a group of its own, this is a
    stratified random sample of images. With the same seed, a smaller sample is a subset of a larger one.

    Args:
        data: the prepared data set.
        rows: population of the sample, ascending, ``(n,)``.
        n_images: size of the sample, at least the number of classes; 0: all rows.
        seed: of the sample, of the order of the groups and of that of the images of a group.
        over_groups: False ignores the groups: a class is a random sample of its images.
    """
    import pandas as pd

    if n_images == 0 or n_images >= len(rows):
        return rows
    rng = np.random.default_rng(seed)
    rows = rng.permutation(rows)
    table = pd.DataFrame({"row": rows, "label": data.labels(rows)})
    if over_groups:
        names, group = np.unique(data.table["group"].to_numpy()[rows], return_inverse=True)
        table["place"] = rng.permutation(len(names))[group]
        table["turn"] = table.groupby(["label", "place"]).cumcount()
        table = table.sort_values(["turn", "place"], kind="stable")
    # position of an image within its class, in [0, 1); the first image of each class comes before all others
    of_class = table.groupby("label")["row"]
    position = (of_class.cumcount() / of_class.transform("size")).to_numpy()
    return np.sort(table["row"].to_numpy()[np.argsort(position, kind="stable")[:n_images]])
