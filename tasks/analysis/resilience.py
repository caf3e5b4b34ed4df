"""Resilience: how near images stay to the originals, and what the autoencoder removes of a perturbation."""

from functools import partial

import numpy as np
import torch

from tasks.statistics.intervals import Estimate, bootstrap, resampled_mean, resampled_ranks

WINDOW = 11
"""Side of the Gaussian window of SSIM in pixels."""
SIGMA = 1.5
"""Standard deviation of that window in pixels."""
C1, C2 = 0.01**2, 0.03**2
"""Constants of SSIM for values in [0, 1]."""


def image_quality(images: np.ndarray, originals: np.ndarray) -> dict[str, np.ndarray]:
    """``mse``, ``psnr`` and ``ssim`` of each image against its original, float64 ``(N,)`` each.

    ``mse``: mean squared error a pixel. ``psnr``: peak signal-to-noise ratio in dB for the range 1, infinite where the
    two are equal. ``ssim``: mean structural similarity, at most 1 (Wang et al. 2004, doi 10.1109/TIP.2003.819861), as
    they publish it: Gaussian window, only where it lies inside the image. It is computed in
    float32, which makes it 2e-4 inexact for flat images, and 1e-5 for others.

    Args:
        images: float32 ``(N, 1, H, W)`` in [0, 1].
        originals: the same.

    Raises:
        ValueError: the shapes differ, or a side is shorter than the window of 11 pixels.
    """
    if images.shape != originals.shape:
        raise ValueError(f"images {images.shape} and originals {originals.shape} must have one shape")
    if min(images.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM needs at least {WINDOW} x {WINDOW} pixels, not {images.shape[-2]} x {images.shape[-1]}")
    # one after the other: what they need then stays in the processor's cache
    pairs = list(zip(images, originals, strict=True))
    mse = np.array([np.square(image.astype(np.float64) - original).mean() for image, original in pairs])
    # clean images are compared with themselves
    ssim = np.array([1.0 if error == 0 else _ssim(*pair) for error, pair in zip(mse, pairs, strict=True)])
    return {"mse": mse, "psnr": _psnr(mse), "ssim": ssim}


def quality_estimates(quality: dict[str, np.ndarray], counts: np.ndarray) -> dict[str, Estimate]:
    """``mse``, ``psnr`` and ``ssim`` over all images, with 95 % intervals.

    The PSNR is that of the mean of the squared errors, since a mean of PSNRs is infinite as soon as one image equals
    its original.

    Args:
        quality: of :func:`image_quality`, ``(N,)`` each.
        counts: how often each image is drawn in each resample, ``(R, N)``.
    """
    mse, ssim = (bootstrap(partial(resampled_mean, quality[name]), counts) for name in ("mse", "ssim"))
    # the larger the error the smaller the ratio: the bounds change places
    psnr, high, low = _psnr(np.array(mse)).tolist()
    return {"mse": mse, "psnr": Estimate(psnr, low, high), "ssim": ssim}


def removed_share(perturbation_in: np.ndarray, perturbation_out: np.ndarray) -> np.ndarray:
    """Share of each perturbation's energy that a purifier removes, float64 ``(N,)``, at most 1.

    ``1 - |D(x + d) - D(x)|^2 / |d|^2`` for the purifier D, image x and perturbation d. Negative where the purifier
    amplifies the perturbation, NaN where there is none.

    Args:
        perturbation_in: d, ``(N, 1, H, W)``.
        perturbation_out: D(x + d) - D(x), ``(N, 1, H, W)``.
    """
    before, after = (
        np.array([np.square(image, dtype=np.float64).sum() for image in images])
        for images in (perturbation_in, perturbation_out)
    )
    share: np.ndarray = 1 - np.divide(after, before, out=np.full(len(before), np.nan), where=before > 0)
    return share


def recovery_correlation(mse: np.ndarray, recovered: np.ndarray, counts: np.ndarray) -> Estimate:
    """Spearman's rank correlation of reconstruction loss and recovery, in [-1, 1], with its 95 % interval.

    Negative where images that are reconstructed better are recovered more often. NaN where it is not defined: for
    fewer than 3 images, or where all losses or all recoveries are the same.

    Args:
        mse: of each image that the attack broke, against its original, ``(N,)``.
        recovered: whether it is classified correctly once denoised, bool ``(N,)``.
        counts: how often each of them is drawn in each resample, ``(R, N)``.
    """
    if len(mse) < 3:
        return Estimate(float("nan"), float("nan"), float("nan"))
    return bootstrap(partial(_rank_correlation, mse, recovered), counts)


def _rank_correlation(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    middle = (counts.sum(axis=1, keepdims=True, dtype=np.float64) + 1) / 2
    from_x, from_y = (resampled_ranks(values, counts) - middle for values in (x, y))
    spread = np.sqrt((counts * from_x**2).sum(axis=1) * (counts * from_y**2).sum(axis=1))
    joint = (counts * from_x * from_y).sum(axis=1)
    correlation: np.ndarray = np.divide(joint, spread, out=np.full(len(counts), np.nan), where=spread > 0)
    return correlation


def _psnr(mse: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        ratio: np.ndarray = -10 * np.log10(mse)
    return ratio


def _ssim(image: np.ndarray, original: np.ndarray) -> float:
    """Mean structural similarity of two images ``(1, H, W)``."""
    x, y = torch.from_numpy(image[0]), torch.from_numpy(original[0])
    mean_x, mean_y, mean_squares, mean_product = _blur(torch.stack([x, y, x * x + y * y, x * y]))
    squares, product = mean_x**2 + mean_y**2, mean_x * mean_y
    variances, covariance = mean_squares - squares, mean_product - product
    similarity = (2 * product + C1) * (2 * covariance + C2) / ((squares + C1) * (variances + C2))
    return float(similarity.mean())


def _blur(maps: torch.Tensor) -> torch.Tensor:
    """Gaussian means ``(M, H - 10, W - 10)`` of ``(M, H, W)``, first along the rows, then down the columns."""
    window = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / SIGMA) ** 2)
    for dim in (2, 1):
        size = maps.shape[dim] - WINDOW + 1
        blurred = torch.zeros_like(maps.narrow(dim, 0, size))
        for start, weight in enumerate((window / window.sum()).tolist()):
            # faster than a convolution of one channel
            blurred.add_(maps.narrow(dim, start, size), alpha=weight)
        maps = blurred
    return maps
