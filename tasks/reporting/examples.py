"""Example images of the report: some images of each class, and one image of each class under attack."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.dataset.prepared import Prepared, as_pictures

N_PER_CLASS = 4
MAX_CLASSES = 4
"""Maximum number of classes shown; limits the size of the page."""
MAX_COLUMNS = 7
"""Maximum number of columns of a figure, so that its text stays readable."""
PERTURBATION = 2
"""Column of the perturbation in :attr:`AttackExamples.images`."""


@dataclass(frozen=True)
class ImageGrid:
    """Images in rows and columns."""

    images: np.ndarray
    """float ``(R, C, H, W)``, or ``(R, C, H, W, 3)`` for colours, in [0, 1]."""
    rows: list[str]
    """R titles."""
    columns: list[str]
    """C titles, or empty."""
    captions: list[list[str]]
    """R lists of C texts below the images, or empty."""

    def part(self, columns: Sequence[int]) -> "ImageGrid":
        """Return some of the columns."""
        chosen = list(columns)
        return ImageGrid(
            self.images[:, chosen],
            self.rows,
            [self.columns[column] for column in chosen],
            [[texts[column] for column in chosen] for texts in self.captions],
        )


@dataclass(frozen=True)
class AttackExamples:
    """One image of each class under attack, as written by the step ``analyze``."""

    attack: str
    eps: float
    """In units of 1/255."""
    images: ImageGrid
    """Clean, adversarial, amplified perturbation (mid grey: 0), then both images after each purifier."""
    maps: dict[int, np.ndarray]
    """Column of the images -> Grad-CAM heat maps, float ``(R, H, W)`` in [0, 1]."""
    differences: ImageGrid
    """Amplified differences of two images (mid grey: 0)."""


def split_into_figures(groups: Iterable[Sequence[int]]) -> list[list[int]]:
    """Return the columns of each figure: at most ``MAX_COLUMNS`` columns, with all columns of a group."""
    parts: list[list[int]] = [[]]
    for group in groups:
        if len(parts[-1]) + len(group) > MAX_COLUMNS:
            parts.append([])
        parts[-1].extend(group)
    return parts


def group_by_purifier(shown: ImageGrid, n_first: int) -> list[range]:
    """Return the first columns as one group, then the two columns of each purifier."""
    return [range(n_first), *(range(first, first + 2) for first in range(n_first, len(shown.columns), 2))]


def examples_by_class(data: Prepared) -> ImageGrid:
    """Return test images of each class, evenly spaced in the test set."""
    test = data.indices("test")
    labels = data.labels(test)
    of_class = [test[labels == label] for label in range(min(len(data.classes), MAX_CLASSES))]
    n_columns = min(N_PER_CLASS, *(len(rows) for rows in of_class))
    chosen = [rows[np.linspace(0, len(rows) - 1, n_columns).round().astype(int)] for rows in of_class]
    images = np.stack([as_pictures(data.floats(rows)) for rows in chosen])
    return ImageGrid(images, list(data.classes[:MAX_CLASSES]), columns=[], captions=[])


def read_examples(path: Path) -> AttackExamples:
    """Read the example images of the step ``analyze``, at most ``MAX_CLASSES`` classes."""
    with np.load(path, allow_pickle=False) as file:
        rows, captions = (file[name][:MAX_CLASSES].tolist() for name in ("rows", "captions"))
        images, maps, differences = (file[name][:MAX_CLASSES] for name in ("images", "maps", "differences"))
        return AttackExamples(
            attack=str(file["attack"]),
            eps=float(file["eps"]),
            images=ImageGrid(images, rows, file["columns"].tolist(), captions),
            maps={column: maps[:, number] for number, column in enumerate(file["mapped"].tolist())},
            differences=ImageGrid(differences, rows, file["difference_columns"].tolist(), captions=[]),
        )
