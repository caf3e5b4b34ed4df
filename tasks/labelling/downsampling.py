"""Smaller images for active learning."""

import numpy as np


def downsample(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Return images whose pixels are means of squares of pixels, uint8 ``(N, C, H // factor, W // factor)``.

    Args:
        pixels: uint8 ``(N, C, H, W)``, may be memory-mapped.
        factor: side of a square in pixels. Incomplete squares below and on the right are left out.
    """
    n, n_channels, height, width = pixels.shape
    height, width = height // factor, width // factor
    small = np.empty((n, n_channels, height, width), dtype=np.uint8)
    for row in range(n):
        whole = pixels[row, :, : height * factor, : width * factor]
        squares = whole.reshape(n_channels, height, factor, width, factor)
        small[row] = squares.mean(axis=(2, 4)).round().astype(np.uint8)
    return small
