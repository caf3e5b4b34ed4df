"""Resilience: distance of images from their originals, and the fraction of a perturbation that a purifier removes."""

from functools import partial

import numpy as np
import torch

from tasks.statistics.groups import GroupJackknife
from tasks.statistics.intervals import CORRELATION, POSITIVE, UNDEFINED, Estimate
from tasks.statistics.resampled import resampled_mean, resampled_ranks

WINDOW = 11
"""Side of the Gaussian window of SSIM in pixels."""
SIGMA = 1.5
"""Standard deviation of the window in pixels."""
C1, C2 = 0.01**2, 0.03**2
"""Constants of SSIM for values in [0, 1]."""


def image_quality(images: np.ndarray, originals: np.ndarray) -> dict[str, np.ndarray]:
    """``mse`` and ``ssim`` of each image with respect to its original, float64 ``(N,)`` each.

    ``mse``: mean squared error of a pixel. ``ssim``: mean structural similarity, at most 1 (Wang et al. 2004, doi
    10.1109/TIP.2003.819861), with their Gaussian window and without padding. SSIM is computed in float32. Its error is
    up to 2e-4 for constant images and up to 1e-5 for others.

    Args:
        images: float32 ``(N, C, H, W)`` in [0, 1].
        originals: the same.

    Raises:
        ValueError: the shapes differ, or a side is shorter than the window of 11 pixels.
    """
    if images.shape != originals.shape:
        raise ValueError(
            f"images and originals have the shapes {images.shape} and {originals.shape}. They must be equal"
        )
    if min(images.shape[-2:]) < WINDOW:
        raise ValueError(
            f"images are too small for SSIM: {images.shape[-2]} x {images.shape[-1]} pixels. "
            f"At least {WINDOW} x {WINDOW} are needed. Raise prepare.image_size"
        )
    # one pair at a time fits into the cache of the processor
    pairs = list(zip(images, originals, strict=True))
    mse = np.array([np.square(image.astype(np.float64) - original).mean() for image, original in pairs])
    # exactly 1 for equal images, such as the clean ones
    ssim = np.array([1.0 if error == 0 else _ssim(*pair) for error, pair in zip(mse, pairs, strict=True)])
    return {"mse": mse, "ssim": ssim}


def quality_estimates(mse: np.ndarray, ssim: np.ndarray, jackknife: GroupJackknife) -> dict[str, Estimate]:
    """``mse``, ``psnr`` and ``ssim`` over all images, with 95 % intervals.

    ``psnr`` is the peak signal-to-noise ratio in dB of the mean of the squared errors, for the range 1. A mean of the
    ratios of the images would be infinite if one image equals its original.

    Args:
        mse: of :func:`image_quality`, ``(N,)``.
        ssim: of :func:`image_quality`, ``(N,)``.
        jackknife: of the images.
    """
    error = jackknife.estimate(partial(resampled_mean, mse), POSITIVE)
    similarity = jackknife.estimate(partial(resampled_mean, ssim), CORRELATION)
    with np.errstate(divide="ignore"):
        # a larger error is a smaller ratio, so the bounds change places
        psnr, high, low = (-10 * np.log10(np.array(error))).tolist()
    return {"mse": error, "psnr": Estimate(psnr, low, high), "ssim": similarity}


def removed_energy_fraction(perturbation_in: np.ndarray, perturbation_out: np.ndarray) -> np.ndarray:
    """Fraction of the energy of each perturbation that a purifier removes, float64 ``(N,)``, at most 1.

    ``1 - |D(x + d) - D(x)|^2 / |d|^2`` for the purifier D, image x and perturbation d. Negative if the purifier
    amplifies the perturbation, NaN if there is none.

    Args:
        perturbation_in: d, ``(N, C, H, W)``.
        perturbation_out: D(x + d) - D(x), ``(N, C, H, W)``.
    """
    before, after = (
        np.array([np.square(image, dtype=np.float64).sum() for image in images])
        for images in (perturbation_in, perturbation_out)
    )
    fraction: np.ndarray = 1 - np.divide(after, before, out=np.full(len(before), np.nan), where=before > 0)
    return fraction


def recovery_correlation(losses: np.ndarray, recovered: np.ndarray, jackknife: GroupJackknife) -> Estimate:
    """Spearman's rank correlation of reconstruction loss and recovery, in [-1, 1], with its 95 % interval.

    It is negative if images with a smaller loss are recovered more often. It is NaN for fewer than 3 images, and if all
    losses or all recoveries are equal.

    Args:
        losses: reconstruction loss of each image that the attack broke, ``(N,)``.
        recovered: whether the image is classified correctly after the purifier, bool ``(N,)``.
        jackknife: of the images.
    """
    if len(losses) < 3:
        return UNDEFINED
    return jackknife.estimate(partial(_rank_correlation, losses, recovered), CORRELATION)


def _rank_correlation(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    middle = (counts.sum(axis=1, keepdims=True, dtype=np.float64) + 1) / 2
    from_x, from_y = (resampled_ranks(values, counts) - middle for values in (x, y))
    spread = np.sqrt((counts * from_x**2).sum(axis=1) * (counts * from_y**2).sum(axis=1))
    joint = (counts * from_x * from_y).sum(axis=1)
    correlation: np.ndarray = np.divide(joint, spread, out=np.full(len(counts), np.nan), where=spread > 0)
    return correlation


def _ssim(image: np.ndarray, original: np.ndarray) -> float:
    """Mean structural similarity of two images ``(C, H, W)``, over positions and channels."""
    return float(np.mean([_ssim_of_channel(*pair) for pair in zip(image, original, strict=True)]))


def _ssim_of_channel(image: np.ndarray, original: np.ndarray) -> float:
    """Mean structural similarity of two images ``(H, W)``."""
    x, y = torch.from_numpy(image), torch.from_numpy(original)
    mean_x, mean_y, mean_squares, mean_product = _blur(torch.stack([x, y, x * x + y * y, x * y]))
    squares, product = mean_x**2 + mean_y**2, mean_x * mean_y
    variances, covariance = mean_squares - squares, mean_product - product
    similarity = (2 * product + C1) * (2 * covariance + C2) / ((squares + C1) * (variances + C2))
    return float(similarity.mean())


def _blur(maps: torch.Tensor) -> torch.Tensor:
    """Gaussian means ``(M, H - 10, W - 10)`` of ``(M, H, W)``, first along the rows, then along the columns."""
    window = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / SIGMA) ** 2)
    for dim in (2, 1):
        size = maps.shape[dim] - WINDOW + 1
        blurred = torch.zeros_like(maps.narrow(dim, 0, size))
        for start, weight in enumerate((window / window.sum()).tolist()):
            # faster than a convolution with one channel
            blurred.add_(maps.narrow(dim, start, size), alpha=weight)
        maps = blurred
    return maps
