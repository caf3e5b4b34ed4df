"""Grey levels and spatial frequencies of images and perturbations.

Shapes: N images, B bins of grey levels, F rings of spatial frequencies.
"""

import numpy as np
import pandas as pd
import torch

from tasks.statistics.groups import GroupJackknife
from tasks.statistics.intervals import POSITIVE, RATE

BINS_PER_LEVEL = 4
"""Bins of a histogram for each grey level of 1/255."""
N_RINGS = 16
"""Rings of spatial frequencies of a spectrum."""


def histograms(images: np.ndarray) -> np.ndarray:
    """Histogram of the values of each image, all channels together, int32 ``(N, B)``, B = 255 * BINS_PER_LEVEL + 1.

    The centre of bin j is at j / BINS_PER_LEVEL grey levels. So the levels of an 8-bit image are at centres of bins,
    and rounding errors move no pixel to another bin. The first and the last bin have half the width. A pixel differs
    from the centre of its bin by at most half a bin, which is 0.125 grey levels.

    Args:
        images: float32 ``(N, C, H, W)`` in [0, 1].

    Raises:
        ValueError: a pixel is outside [0, 1] by more than half a bin, or NaN.
    """
    last = 255 * BINS_PER_LEVEL
    counts = np.empty((len(images), last + 1), dtype=np.int32)
    for row, image in enumerate(images):
        scaled = image.ravel() * np.float32(last) + np.float32(0.5)
        if not (scaled.min() >= 0 and scaled.max() < last + 1):
            raise ValueError(
                f"pixels of image {row} of a batch are in [{image.min():g}, {image.max():g}]. "
                "[0, 1] is allowed. Check the output of the purifiers"
            )
        counts[row] = np.bincount(scaled.astype(np.int64), minlength=last + 1)
    return counts


def level_fractions(counts: np.ndarray) -> np.ndarray:
    """Fraction of the pixels of all images at each of the 256 grey levels, float64 ``(256,)``; the sum is 1.

    A bin halfway between two levels counts half for each.

    Args:
        counts: of :func:`histograms`, at least one image, ``(N, B)``.
    """
    pooled = counts.sum(axis=0, dtype=np.float64)
    twice = 2 * np.arange(len(pooled)) + BINS_PER_LEVEL
    down, up = (twice - 1) // (2 * BINS_PER_LEVEL), twice // (2 * BINS_PER_LEVEL)
    fractions: np.ndarray = (np.bincount(down, pooled, 256) + np.bincount(up, pooled, 256)) / (2 * pooled.sum())
    return fractions


def histogram_table(counts: np.ndarray, labels: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """Histograms over all images and over the images of each class: class, grey_level, pixel_fraction.

    Classes without images have no rows.

    Args:
        counts: of :func:`histograms`, ``(N, B)``.
        labels: true classes, int ``(N,)``.
        classes: class names in the order of the labels.
    """
    members = {"all": np.full(len(labels), True)} | {name: labels == label for label, name in enumerate(classes)}
    parts = [
        pd.DataFrame({"class": name, "grey_level": range(256), "pixel_fraction": level_fractions(counts[chosen])})
        for name, chosen in members.items()
        if chosen.any()
    ]
    return pd.concat(parts, ignore_index=True)


def intensity_distances(
    clean: np.ndarray, changed: np.ndarray, labels: np.ndarray, classes: list[str], jackknife: GroupJackknife
) -> pd.DataFrame:
    """Distances between the grey-level distributions of clean images and of changed versions of them.

    A distribution is over the pixels of all images. Rows: class (``all``, then each of ``classes``), metric, value,
    low, high. Metrics: ``wasserstein_distance``, the Wasserstein-1 distance in grey levels of 1/255 (area between the
    distribution functions); ``ks_statistic``, the Kolmogorov-Smirnov statistic in [0, 1] (their largest difference).
    ``low`` and ``high`` are the 95 % interval by group; both versions of an image belong to its group. For a class
    without images all three are NaN. The interval never contains 0, since a distance is positive.

    Args:
        clean: histograms, ``(N, B)``.
        changed: histograms of the same number of pixels, ``(N, B)``.
        labels: true classes, int ``(N,)``.
        classes: class names in the order of the labels.
        jackknife: of the images.
    """
    assert (clean.sum(axis=1) == changed.sum(axis=1)).all(), "both versions of an image have the same size"
    weights = jackknife.counts
    gaps = (changed - clean).cumsum(axis=1).astype(np.float32)
    n_pixels = clean.sum(axis=1).astype(np.float32)
    members = [labels == k for k in range(len(classes))]
    sums = [(weights[:, of] @ gaps[of], weights[:, of] @ n_pixels[of]) for of in members]
    # the sums over all images are the sums of those over the classes
    total = (sum(gap for gap, _ in sums), sum(pixels for _, pixels in sums))
    bin_width = 255 / (gaps.shape[1] - 1)
    rows = []
    sides: list[list[np.ndarray]] = [[], *([of] for of in members)]
    for name, (gap, pixels), side in zip(["all", *classes], [total, *sums], sides, strict=True):
        differences = np.abs(gap) / np.where(pixels > 0, pixels, np.nan)[:, None]
        metrics = {"wasserstein_distance": differences.sum(axis=1) * bin_width, "ks_statistic": differences.max(axis=1)}
        for metric, values in metrics.items():
            low, high = jackknife.interval(values, RATE if metric == "ks_statistic" else POSITIVE, side)
            rows.append({"class": name, "metric": metric, "value": values[0], "low": low, "high": high})
    return pd.DataFrame(rows).astype({"value": float, "low": float, "high": float})


def ring_frequencies() -> np.ndarray:
    """Centre of each ring of :func:`radial_power` in cycles per pixel, float64 ``(F,)``."""
    frequencies: np.ndarray = (np.arange(N_RINGS) + 0.5) * 0.5 / N_RINGS
    return frequencies


def spectrum_table(power: np.ndarray) -> pd.DataFrame:
    """Mean spectrum of N images: frequency (cycles per pixel), power.

    Args:
        power: of :func:`radial_power`, ``(N, F)``.
    """
    return pd.DataFrame({"frequency": ring_frequencies(), "power": power.mean(axis=0)})


def radial_power(images: np.ndarray) -> np.ndarray:
    """Mean power spectral density in ``N_RINGS`` rings of spatial frequency, float64 ``(N, F)``.

    The density is the squared magnitude of the discrete Fourier transform divided by the number of pixels. Its mean
    over all frequencies is the mean square of the pixels (Parseval), and for white noise it is the variance at every
    frequency. The rings have equal widths from 0 to 0.5 cycles per pixel, the highest frequency along an axis; higher
    frequencies along the diagonals are left out. The mean of the image, frequency 0, belongs to the first ring.

    Args:
        images: images or perturbations, float32 ``(N, C, H, W)``; their spectrum is the mean over the channels.
    """
    n, n_channels, height, width = images.shape
    assert min(height, width) >= 2 * N_RINGS, "a ring would contain no frequency; prepare.image_size is at least 32"
    weights = torch.from_numpy(_ring_weights(height, width))
    parts = []
    for start in range(0, n, 16):
        spectrum = torch.fft.rfft2(torch.from_numpy(images[start : start + 16]).flatten(0, 1), norm="ortho")
        parts.append(torch.view_as_real(spectrum).square().sum(dim=-1).flatten(1) @ weights)
    power = torch.cat(parts).numpy().astype(np.float64)
    return np.asarray(power.reshape(n, n_channels, N_RINGS).mean(axis=1))


def _ring_weights(height: int, width: int) -> np.ndarray:
    """Weights of the frequencies of a real transform in the mean of each ring, float32 ``(H * (W // 2 + 1), F)``."""
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)).ravel()
    # rounding errors must not move a frequency to the next ring
    ring = np.floor(radius * 2 * N_RINGS + 1e-9).astype(np.int64)
    ring[np.isclose(radius, 0.5)] = N_RINGS - 1
    # a real transform omits the mirrored half of the spectrum; the first column and, for an even width, the last one
    # are their own mirror images
    is_own_mirror = (np.arange(width // 2 + 1) * 2) % width == 0
    multiplicity = np.tile(np.where(is_own_mirror, 1, 2), height)
    weights = multiplicity[:, None] * (ring[:, None] == np.arange(N_RINGS))
    means: np.ndarray = (weights / weights.sum(axis=0)).astype(np.float32)
    return means
