"""The manifest: one row an image with what its file says, its pixels' hash, and which images belong together."""

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tasks.dataset.images import ImageError, read_image

if TYPE_CHECKING:
    import pandas as pd

THUMBNAIL_SIDE = 32
COLUMNS = (
    *("path", "class", "label", "width", "height", "mode", "format", "bytes", "sha256"),
    *("mean", "std", "saturated", "near_duplicate_group", "group"),
)
"""path: below ``data/acquire/images``, with slashes; width, height: pixels, after EXIF's orientation;
mode, format: of the file; bytes: its size; sha256: of the grey pixels and their shape, whatever the file's
format; mean, std: of grey in [0, 1]; saturated: share of pixels that are 0 or 255; groups: numbers from 0."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Manifest:
    """What was found in a folder of images."""

    table: "pd.DataFrame"
    """The images that decode, with COLUMNS; by class, then in natural order of their paths."""
    unreadable: dict[str, str]
    """Path and reason of each file that doesn't, or was not even taken."""


def build_manifest(
    folder: Path,
    classes: tuple[str, ...],
    max_megapixels: float,
    near_duplicate_correlation: float,
    neighbour_correlation: float,
) -> Manifest:
    """Read every image below ``<folder>/<class>/``.

    ``near_duplicate_group`` joins images, of any class, whose thumbnails correlate by at least
    ``near_duplicate_correlation``, and images that such images join. ``group``, which stands for one
    patient, joins in addition files that follow each other in natural order in one folder, where each
    correlates with the one before by at least ``neighbour_correlation``.
    """
    import pandas as pd

    files = [(label, path) for label, name in enumerate(classes) for path in _image_paths(folder / name)]
    rows, thumbnails, unreadable = [], [], {}
    for count, (label, path) in enumerate(files, start=1):
        name = path.relative_to(folder).as_posix()
        try:
            image = read_image(path, max_megapixels)
        except ImageError as error:
            unreadable[name] = str(error).removeprefix(f"{path}: ")
            continue
        height, width = image.pixels.shape
        rows.append(
            {
                "path": name,
                "class": classes[label],
                "label": label,
                "width": width,
                "height": height,
                "mode": image.mode,
                "format": image.format,
                "bytes": path.stat().st_size,
                "sha256": hashlib.sha256(f"{height} {width} ".encode() + image.pixels.tobytes()).hexdigest(),
                "mean": float(image.pixels.mean() / 255),
                "std": float(image.pixels.std() / 255),
                "saturated": float(np.isin(image.pixels, (0, 255)).mean()),
            }
        )
        thumbnails.append(thumbnail(image.pixels))
        if count % 500 == 0:
            log.info("read %d of %d images", count, len(files))

    table = pd.DataFrame(rows, columns=list(COLUMNS))
    vectors = np.array(thumbnails).reshape(len(rows), THUMBNAIL_SIDE**2)
    hashes = table["sha256"].factorize()[0]
    pairs = np.concatenate([correlated_pairs(vectors, near_duplicate_correlation), _equal_pairs(hashes)])
    places = [Path(path).parent for path in table["path"]]
    neighbours = neighbour_pairs(vectors, places, neighbour_correlation)
    table["near_duplicate_group"] = join(len(table), pairs)
    table["group"] = join(len(table), np.concatenate([pairs, neighbours]))
    return Manifest(table, unreadable)


def natural_key(path: str) -> tuple[list[str | int], str]:
    """Sort key that puts ``2.png`` before ``10.png``."""
    pieces = re.split(r"(\d+)", path)
    return [int(piece) if index % 2 else piece.casefold() for index, piece in enumerate(pieces)], path


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Mean-free 32 x 32 version of uint8 ``(H, W)`` with unit norm (zero if blank), float64 ``(1024,)``.

    The scalar product of two is their Pearson correlation, which ignores brightness and contrast.
    """
    small = Image.fromarray(pixels).resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BILINEAR)
    vector = np.asarray(small, dtype=np.float64).ravel()
    vector = vector - vector.mean()
    norm = np.linalg.norm(vector)
    return np.asarray(vector / norm if norm else vector)


def correlated_pairs(vectors: np.ndarray, threshold: float, block: int = 1024) -> np.ndarray:
    """Pairs of rows of ``(N, D)`` whose scalar product is at least ``threshold``, int64 ``(n, 2)``."""
    found = [np.empty((0, 2), dtype=np.int64)]
    for start in range(0, len(vectors), block):
        # each pair once: only rows from this block on
        first, second = np.nonzero(vectors[start : start + block] @ vectors[start:].T >= threshold)
        pairs = np.column_stack([first, second]) + start
        found.append(pairs[pairs[:, 0] < pairs[:, 1]])
    return np.concatenate(found)


def neighbour_pairs(vectors: np.ndarray, places: list[Path], threshold: float) -> np.ndarray:
    """Pairs (i - 1, i) of one place whose scalar product is at least ``threshold``, int64 ``(n, 2)``."""
    following = np.arange(1, len(vectors))
    same_place = np.array([places[i - 1] == places[i] for i in following], dtype=bool)
    products = np.einsum("nd,nd->n", vectors[:-1], vectors[1:])
    chosen = following[same_place & (products >= threshold)]
    return np.column_stack([chosen - 1, chosen])


def join(n: int, pairs: np.ndarray) -> np.ndarray:
    """Connected components of ``n`` nodes, numbered by first appearance, int64 ``(n,)``."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, components = connected_components(graph, directed=False)
    _, first, inverse = np.unique(components, return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(first))[inverse], dtype=np.int64)


def _equal_pairs(values: np.ndarray) -> np.ndarray:
    """Pairs that link each entry to the one before of equal value, int64 ``(n, 2)``."""
    order = np.argsort(values, kind="stable")
    equal = values[order][1:] == values[order][:-1]
    return np.column_stack([order[:-1][equal], order[1:][equal]])


def _image_paths(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(files, key=lambda path: natural_key(path.relative_to(folder).as_posix()))
