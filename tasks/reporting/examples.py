"""Images that the report shows: some of each class, and one of each class under attack."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.dataset.prepared import Prepared

N_PER_CLASS = 4
MAX_CLASSES = 4
"""Classes shown at most, so that the page stays small."""
MAX_COLUMNS = 7
"""Columns of a figure at most, so that its letters can be read."""
PERTURBATION = 2
"""Column of the perturbation among the pictures of :class:`UnderAttack`."""


@dataclass(frozen=True)
class Pictures:
    """Grey images in rows and columns."""

    images: np.ndarray
    """float ``(R, C, H, W)`` in [0, 1]."""
    rows: list[str]
    columns: list[str]
    """C titles, or none."""
    captions: list[list[str]]
    """R lists of C texts to stand below the images, or none."""

    def part(self, columns: Sequence[int]) -> "Pictures":
        """Some of the columns."""
        chosen = list(columns)
        return Pictures(
            self.images[:, chosen],
            self.rows,
            [self.columns[column] for column in chosen],
            [[texts[column] for column in chosen] for texts in self.captions],
        )


@dataclass(frozen=True)
class UnderAttack:
    """An image of each class under attack, as the step ``analyze`` keeps them."""

    attack: str
    eps: float
    """In 1/255."""
    pictures: Pictures
    """Clean, adversarial, the perturbation amplified about mid grey, and both images as each purifier makes them."""
    maps: dict[int, np.ndarray]
    """Column of the pictures -> their Grad-CAM, float ``(R, H, W)`` in [0, 1]."""
    differences: Pictures
    """What differs between two pictures, amplified about mid grey."""


def shared_out(groups: Iterable[Sequence[int]]) -> list[list[int]]:
    """Columns of each figure: groups of them stay together, and fill figures of at most ``MAX_COLUMNS``."""
    parts: list[list[int]] = [[]]
    for group in groups:
        if len(parts[-1]) + len(group) > MAX_COLUMNS:
            parts.append([])
        parts[-1].extend(group)
    return parts


def by_purifier(shown: Pictures, n_first: int) -> list[range]:
    """Columns that come first, then the two of each purifier."""
    return [range(n_first), *(range(first, first + 2) for first in range(n_first, len(shown.columns), 2))]


def of_classes(data: Prepared) -> Pictures:
    """Test images of each class, spread evenly over its rows."""
    test = data.indices("test")
    labels = data.labels(test)
    of_class = [test[labels == label] for label in range(min(len(data.classes), MAX_CLASSES))]
    n_columns = min(N_PER_CLASS, *(len(rows) for rows in of_class))
    chosen = [rows[np.linspace(0, len(rows) - 1, n_columns).round().astype(int)] for rows in of_class]
    images = np.stack([data.floats(rows)[:, 0] for rows in chosen])
    return Pictures(images, list(data.classes[:MAX_CLASSES]), columns=[], captions=[])


def read_examples(path: Path) -> UnderAttack:
    """Read what the step ``analyze`` keeps, of so many classes as are shown."""
    with np.load(path, allow_pickle=False) as file:
        rows, captions = (file[name][:MAX_CLASSES].tolist() for name in ("rows", "captions"))
        images, maps, differences = (file[name][:MAX_CLASSES] for name in ("images", "maps", "differences"))
        return UnderAttack(
            attack=str(file["attack"]),
            eps=float(file["eps"]),
            pictures=Pictures(images, rows, file["columns"].tolist(), captions),
            maps={column: maps[:, number] for number, column in enumerate(file["mapped"].tolist())},
            differences=Pictures(differences, rows, file["difference_columns"].tolist(), captions=[]),
        )
