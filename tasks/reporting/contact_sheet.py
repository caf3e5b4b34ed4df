"""A contact sheet: many small images in one image file."""

from pathlib import Path

import numpy as np
from PIL import Image

GAP = 2
"""Pixels between images."""


def write_contact_sheet(rows: list[np.ndarray], path: Path) -> None:
    """Write rows of images as one PNG with a white background.

    Args:
        rows: each uint8 ``(n, H, W)`` or ``(n, H, W, 3)``; n may differ between rows.
        path: of the PNG file.
    """
    height, width = rows[0].shape[1] + GAP, rows[0].shape[2] + GAP
    shape = (GAP + height * len(rows), GAP + width * max(map(len, rows)), *rows[0].shape[3:])
    sheet = np.full(shape, 255, dtype=np.uint8)
    for y, images in enumerate(rows):
        for x, image in enumerate(images):
            top, left = GAP + y * height, GAP + x * width
            sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    Image.fromarray(sheet).save(path)
