"""Pixel intensities and spatial frequencies of images and of perturbations.

Shapes: N images, B bins of intensity, F rings of spatial frequency, R resamples.
"""

import numpy as np
import pandas as pd
import torch

from tasks.statistics.intervals import percentile_interval


def histograms(images: np.ndarray, bins_per_level: int = 4) -> np.ndarray:
    """Histogram of each image, int32 ``(N, B)`` counts of pixels, B = 255 * bins_per_level + 1.

    Bin j is centred at j / bins_per_level grey levels, so that the levels of an 8-bit image lie in the middle of bins
    and rounding moves no pixel over an edge; the first and the last bin are half as wide. A pixel is binned at most
    half a bin, 0.125 grey levels by default, from where it is.

    Args:
        images: float32 ``(N, 1, H, W)`` in [0, 1].
        bins_per_level: bins a grey level of 1/255.

    Raises:
        ValueError: a pixel lies outside [0, 1] by more than half a bin, or is NaN.
    """
    last = 255 * bins_per_level
    counts = np.empty((len(images), last + 1), dtype=np.int32)
    for row, image in enumerate(images):
        scaled = image.ravel() * np.float32(last) + np.float32(0.5)
        if not (scaled.min() >= 0 and scaled.max() < last + 1):
            raise ValueError(f"pixels must lie in [0, 1], but image {row} spans [{image.min():g}, {image.max():g}]")
        counts[row] = np.bincount(scaled.astype(np.int64), minlength=last + 1)
    return counts


def level_shares(counts: np.ndarray) -> np.ndarray:
    """Share of the pixels of all images at each of the 256 grey levels, float64 ``(256,)``; sums to 1.

    A bin half-way between two levels counts half for each.

    Args:
        counts: of :func:`histograms`, at least one image, ``(N, B)``.
    """
    pooled = counts.sum(axis=0, dtype=np.float64)
    bins_per_level = (len(pooled) - 1) // 255
    twice = 2 * np.arange(len(pooled)) + bins_per_level
    down, up = (twice - 1) // (2 * bins_per_level), twice // (2 * bins_per_level)
    shares: np.ndarray = (np.bincount(down, pooled, 256) + np.bincount(up, pooled, 256)) / (2 * pooled.sum())
    return shares


def intensity_distances(
    clean: np.ndarray, changed: np.ndarray, labels: np.ndarray, classes: list[str], counts: np.ndarray
) -> pd.DataFrame:
    """Distances of the pixel distribution of changed images from that of the same images clean.

    The distributions are of all pixels of the images together. Rows: class (``all``, then each of ``classes``), metric,
    value, low, high. Metrics: ``wasserstein``, the Wasserstein-1 distance in grey levels of 1/255 (area between the
    distribution functions); ``ks``, the Kolmogorov-Smirnov statistic in [0, 1] (their largest gap). ``low`` and
    ``high`` bound the 95 % percentile interval of a bootstrap over images, in which an image is drawn clean and changed
    together. Of a class without images all three are NaN.

    Chance lifts the distance of every resample, so the interval reaches 0 only where nothing differs at all, and can
    lie above the value where hardly anything does.

    Args:
        clean: histograms, ``(N, B)``.
        changed: histograms of as many pixels, ``(N, B)``.
        labels: true classes, int ``(N,)``.
        classes: their names in the order of the labels.
        counts: how often each image is drawn in each resample, ``(R, N)``.
    """
    assert (clean.sum(axis=1) == changed.sum(axis=1)).all(), "an image and its changed version have as many pixels"
    # first row: every image once, which gives the value itself
    weights = np.concatenate([np.ones_like(counts[:1]), counts])
    gaps = (changed - clean).cumsum(axis=1).astype(np.float32)
    n_pixels = clean.sum(axis=1).astype(np.float32)
    members = [labels == k for k in range(len(classes))]
    sums = [(weights[:, of] @ gaps[of], weights[:, of] @ n_pixels[of]) for of in members]
    # they are sums over images, so those of the classes add up to those of all
    total = (sum(gap for gap, _ in sums), sum(pixels for _, pixels in sums))
    bin_width = 255 / (gaps.shape[1] - 1)
    rows = []
    for name, (gap, pixels) in zip(["all", *classes], [total, *sums], strict=True):
        apart = np.abs(gap) / np.where(pixels > 0, pixels, np.nan)[:, None]
        metrics = {"wasserstein": apart.sum(axis=1) * bin_width, "ks": apart.max(axis=1)}
        for metric, values in metrics.items():
            low, high = percentile_interval(values[1:])
            rows.append({"class": name, "metric": metric, "value": values[0], "low": low, "high": high})
    return pd.DataFrame(rows).astype({"value": float, "low": float, "high": float})


def ring_frequencies(n_rings: int = 16) -> np.ndarray:
    """Middle of each ring of :func:`radial_power` in cycles per pixel, float64 ``(F,)``."""
    frequencies: np.ndarray = (np.arange(n_rings) + 0.5) * 0.5 / n_rings
    return frequencies


def radial_power(images: np.ndarray, n_rings: int = 16) -> np.ndarray:
    """Mean power spectral density in rings of spatial frequency, float64 ``(N, F)``.

    The density is the squared magnitude of the discrete Fourier transform over the number of pixels: its mean over all
    frequencies is the mean square of the pixels (Parseval), and white noise has its variance everywhere. The rings are
    of equal width from 0 to 0.5 cycles per pixel, the highest frequency along an axis; the corners beyond are left out.
    The mean of the image is the frequency 0, in the first ring.

    Args:
        images: or perturbations, float32 ``(N, 1, H, W)``.
        n_rings: F.

    Raises:
        ValueError: more rings than half the shorter side, some of which would hold no frequency.
    """
    height, width = images.shape[-2:]
    if not 1 <= n_rings <= min(height, width) // 2:
        raise ValueError(f"n_rings must lie between 1 and {min(height, width) // 2} for {height} x {width} pixels")
    weights = torch.from_numpy(_ring_weights(height, width, n_rings))
    parts = []
    for start in range(0, len(images), 16):
        spectrum = torch.fft.rfft2(torch.from_numpy(images[start : start + 16, 0]), norm="ortho")
        parts.append(torch.view_as_real(spectrum).square().sum(dim=-1).flatten(1) @ weights)
    power: np.ndarray = torch.cat(parts).numpy().astype(np.float64)
    return power


def _ring_weights(height: int, width: int, n_rings: int) -> np.ndarray:
    """Weight of each frequency of a real transform in the mean of each ring, float32 ``(H * (W // 2 + 1), F)``."""
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)).ravel()
    # rounding must not move a frequency over the edge of its ring
    ring = np.floor(radius * 2 * n_rings + 1e-9).astype(np.int64)
    ring[np.isclose(radius, 0.5)] = n_rings - 1
    # a real transform leaves out the mirror images of all columns but the first and, of an even width, the last
    is_own_mirror = (np.arange(width // 2 + 1) * 2) % width == 0
    multiplicity = np.tile(np.where(is_own_mirror, 1, 2), height)
    weights = multiplicity[:, None] * (ring[:, None] == np.arange(n_rings))
    means: np.ndarray = (weights / weights.sum(axis=0)).astype(np.float32)
    return means
