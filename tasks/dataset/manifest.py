"""The manifest: one row for each image, with properties of its file, the hash of its pixels, and its groups."""

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tasks.dataset.images import DEFAULT_READING, ImageError, LevelImage, Reading, read_image
from tasks.dataset.readers import image_names, split_name

if TYPE_CHECKING:
    import pandas as pd

THUMBNAIL_SIDE = 32
COLUMNS = (
    *("path", "class", "label", "width", "height", "mode", "format", "file_size", "sha256"),
    *("mean", "std", "saturated_fraction", "bits", "unit", "min_value", "max_value", "possible_values"),
    *("near_duplicate_group", "group"),
)
"""Columns of the manifest.

- path: relative to ``data/acquire/images``, with slashes; ``<file>#<number>`` for one of several images of a file.
- class, label: name and number of the class.
- width, height: pixels, after the EXIF orientation.
- mode, format: of the file.
- file_size: bytes.
- sha256: hash of the 8-bit levels and of their shape; the file format does not matter.
- mean, std: of the levels in [0, 1].
- saturated_fraction: fraction of the pixels that are 0 or 255.
- bits: significant bits of a stored value; 0 for floating point.
- unit: of the stored values, ``grey level`` or ``HU``.
- min_value, max_value: of the stored values.
- possible_values: largest minus smallest value that the bits can hold; 0 for floating point.
- near_duplicate_group, group: number of the group, from 0.
"""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Manifest:
    """Readable and unreadable files in a folder of images."""

    table: "pd.DataFrame"
    """Readable images, with COLUMNS; sorted by class, then in natural order of the paths."""
    unreadable: dict[str, str]
    """Path of each rejected or unreadable file -> reason."""


def build_manifest(
    folder: Path,
    classes: tuple[str, ...],
    max_megapixels: float,
    near_duplicate_correlation: float,
    same_group_correlation: float,
    reading: Reading = DEFAULT_READING,
) -> Manifest:
    """Read every image below ``<folder>/<class>/``.

    Images with the same ``near_duplicate_group`` are connected by pairs of near-duplicates: their thumbnails correlate
    by at least ``near_duplicate_correlation``, or their pixels are equal. The images may have different classes.

    Images with the same ``group`` probably show one patient. They are connected by the same pairs, and by pairs of
    consecutive files of one folder whose thumbnails correlate by at least ``same_group_correlation``.

    Args:
        folder: of the images.
        classes: names of the classes; the position of a name is its label.
        max_megapixels: limit on the number of pixels of an image, in millions.
        near_duplicate_correlation: Pearson correlation, in [-1, 1].
        same_group_correlation: Pearson correlation, in [-1, 1].
        reading: how the files become images.
    """
    import pandas as pd

    rows, thumbnails, unreadable = [], [], {}
    files = [(label, path) for label, name in enumerate(classes) for path in image_paths(folder, (name,), reading)]
    for n_read, (label, path) in enumerate(files, start=1):
        name = path.relative_to(folder).as_posix()
        try:
            image = read_image(path, max_megapixels, reading)
        except ImageError as error:
            unreadable[name] = str(error).removeprefix(f"{path}: ")
            continue
        file_size = split_name(path)[0].stat().st_size
        identity = {"path": name, "class": classes[label], "label": label, "file_size": file_size}
        rows.append(identity | _image_properties(image))
        thumbnails.append(thumbnail(image.grey))
        if n_read % 500 == 0:
            log.info("read %d of %d images", n_read, len(files))

    table = pd.DataFrame(rows, columns=list(COLUMNS))
    vectors = np.array(thumbnails).reshape(len(rows), THUMBNAIL_SIDE**2)
    hashes = table["sha256"].factorize()[0]
    near_duplicates = np.concatenate([correlated_pairs(vectors, near_duplicate_correlation), _equal_pairs(hashes)])
    folders = [Path(path).parent for path in table["path"]]
    adjacent_slices = adjacent_slice_pairs(vectors, folders, same_group_correlation)
    table["near_duplicate_group"] = connected_component_ids(len(table), near_duplicates)
    table["group"] = connected_component_ids(len(table), np.concatenate([near_duplicates, adjacent_slices]))
    return Manifest(table, unreadable)


def natural_key(path: str) -> tuple[list[str | int], str]:
    """Sort key of the natural order: ``2.png`` is sorted before ``10.png``."""
    pieces = re.split(r"(\d+)", path)
    return [int(piece) if index % 2 else piece.casefold() for index, piece in enumerate(pieces)], path


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Normalized 32 x 32 version of an image, float64 ``(1024,)``, with mean 0 and norm 1 (norm 0 if it is blank).

    The scalar product of two thumbnails is their Pearson correlation, which does not depend on brightness and contrast.

    Args:
        pixels: uint8 ``(H, W)``.
    """
    small = Image.fromarray(pixels).resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BILINEAR)
    vector = np.asarray(small, dtype=np.float64).ravel()
    vector = vector - vector.mean()
    norm = np.linalg.norm(vector)
    return np.asarray(vector / norm if norm else vector)


def correlated_pairs(vectors: np.ndarray, threshold: float, block: int = 1024) -> np.ndarray:
    """Pairs of rows of ``(N, D)`` whose scalar product is at least ``threshold``, int64 ``(n, 2)``."""
    found = [np.empty((0, 2), dtype=np.int64)]  # so that the result has this shape if there are no pairs
    for start in range(0, len(vectors), block):
        # the rows before this block were compared with it already
        first, second = np.nonzero(vectors[start : start + block] @ vectors[start:].T >= threshold)
        pairs = np.column_stack([first, second]) + start
        found.append(pairs[pairs[:, 0] < pairs[:, 1]])
    return np.concatenate(found)


def adjacent_slice_pairs(vectors: np.ndarray, folders: list[Path], threshold: float) -> np.ndarray:
    """Pairs (i - 1, i) in the same folder whose scalar product is at least ``threshold``, int64 ``(n, 2)``.

    Args:
        vectors: float ``(N, D)``, in the order of the files.
        folders: folder of each file.
        threshold: of the scalar product.
    """
    second = np.arange(1, len(vectors))
    is_same_folder = np.array([folders[i - 1] == folders[i] for i in second], dtype=bool)
    products = np.einsum("nd,nd->n", vectors[:-1], vectors[1:])
    chosen = second[is_same_folder & (products >= threshold)]
    return np.column_stack([chosen - 1, chosen])


def connected_component_ids(n: int, pairs: np.ndarray) -> np.ndarray:
    """Number of the connected component of each of ``n`` nodes, by first appearance, int64 ``(n,)``.

    Args:
        n: number of nodes.
        pairs: connected nodes, int ``(M, 2)``.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, components = connected_components(graph, directed=False)
    _, first, inverse = np.unique(components, return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(first))[inverse], dtype=np.int64)


def _equal_pairs(values: np.ndarray) -> np.ndarray:
    """Pairs of each entry and the previous entry with the same value, int64 ``(n, 2)``."""
    order = np.argsort(values, kind="stable")
    equal = values[order][1:] == values[order][:-1]
    return np.column_stack([order[:-1][equal], order[1:][equal]])


def _image_properties(image: LevelImage) -> dict[str, str | int | float]:
    """Properties of one image by column of the manifest."""
    stored = image.stored
    height, width = stored.shape
    low, high = stored.value_range or (0.0, 0.0)
    levels = image.pixels
    return {
        "width": width,
        "height": height,
        "mode": image.mode,
        "format": image.format,
        "sha256": hashlib.sha256(f"{height} {width} ".encode() + levels.tobytes()).hexdigest(),
        "mean": float(levels.mean() / 255),
        "std": float(levels.std() / 255),
        "saturated_fraction": float(np.isin(levels, (0, 255)).mean()),
        "bits": stored.bits or 0,
        "unit": stored.unit,
        "min_value": float(stored.values.min()),
        "max_value": float(stored.values.max()),
        "possible_values": high - low,
    }


def image_paths(folder: Path, classes: tuple[str, ...], reading: Reading) -> list[Path]:
    """Images below ``<folder>/<class>/``, class by class, files in natural order.

    A file with several images has several paths; see :func:`tasks.dataset.readers.image_names`. A file that cannot be
    read has its own path.
    """
    found = []
    for name in classes:
        files = [path for path in (folder / name).rglob("*") if path.is_file()]
        for file in sorted(files, key=lambda path: natural_key(path.relative_to(folder / name).as_posix())):
            try:
                found += image_names(file, reading.volumes)
            except ImageError:
                # reading the file later gives the reason
                found.append(file)
    return found
