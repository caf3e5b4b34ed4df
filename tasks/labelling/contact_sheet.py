"""Images side by side in one file."""

from pathlib import Path

import numpy as np
from PIL import Image

GAP = 2
"""Pixels between images."""


def write_contact_sheet(rows: list[np.ndarray], path: Path) -> None:
    """Write grey images in rows as PNG, on white.

    Args:
        rows: each uint8 ``(n, H, W)``; n may differ, H and W not.
        path: of the file.
    """
    side = rows[0].shape[1] + GAP, rows[0].shape[2] + GAP
    sheet = np.full((GAP + side[0] * len(rows), GAP + side[1] * max(map(len, rows))), 255, dtype=np.uint8)
    for y, images in enumerate(rows):
        for x, image in enumerate(images):
            top, left = GAP + y * side[0], GAP + x * side[1]
            sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    Image.fromarray(sheet).save(path)
