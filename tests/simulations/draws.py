"""Random groups of images, and outcomes of classifiers on them.

Shapes: R repetitions, G groups.
"""

from collections.abc import Callable, Mapping

import numpy as np
from scipy.special import betaincinv, ndtr, ndtri

SIZES: Mapping[int, int] = {
    **{1: 20, 2: 10, 3: 5, 4: 7, 5: 6, 6: 2, 7: 3, 8: 7, 9: 9, 10: 5, 11: 6, 12: 1, 13: 1, 14: 2, 15: 2, 16: 4},
    **{17: 3, 18: 3, 19: 5, 20: 2, 21: 2, 22: 3, 23: 1, 24: 2, 25: 5, 26: 1, 27: 2, 28: 3, 29: 3, 30: 2, 32: 1},
    **{34: 1, 35: 1, 39: 1, 40: 1, 41: 1, 44: 1, 45: 2, 46: 1, 47: 1, 49: 1, 50: 1, 54: 1, 58: 1, 61: 1, 64: 1},
    **{66: 1, 67: 1, 74: 1, 89: 1},
}
"""Images in a group -> number of groups: the 148 inferred groups of the SARS-CoV-2 CT-scan data set."""
PATIENT_SIZES: Mapping[int, int] = {1: 229, 2: 73, 3: 29, 4: 25, 5: 12, 6: 7, 8: 6, 9: 2, 16: 1}
"""Images of a patient -> number of patients: the 384 patients of the COVID-CT data set."""

SHARED = 0.7
"""Correlation of the effects of a group on two classifiers, and the fraction of images with shared randomness."""
LARGE_GROUP = 10
"""Images from which a group is large."""


def draw_sizes(rng: np.random.Generator, shape: tuple[int, ...], sizes: Mapping[int, int] = SIZES) -> np.ndarray:
    """Draw numbers of images of groups, int64 of the given shape, with replacement from real sizes."""
    return rng.choice(np.repeat(list(sizes), list(sizes.values())), size=shape)


def draw_successes(rng: np.random.Generator, sizes: np.ndarray, rate: np.ndarray | float, icc: float) -> np.ndarray:
    """Draw beta-binomial numbers of successes, int64 of the shape of ``sizes``.

    Args:
        rng: source of randomness.
        sizes: images of each group.
        rate: expected rate, in (0, 1); broadcast against ``sizes``.
        icc: intra-group correlation of two images, in [0, 1).
    """
    rates = rate
    if icc:
        precision = (1 - icc) / icc
        rates = rng.beta(np.broadcast_to(rate, sizes.shape) * precision, (1 - rate) * precision)
    return rng.binomial(sizes, rates)


def draw_scores(
    rng: np.random.Generator, groups: np.ndarray, positive: np.ndarray, auroc: float, icc: float
) -> np.ndarray:
    """Draw normal scores of images, float64 ``(N,)``, with a given AUROC of images of different groups.

    Args:
        rng: source of randomness.
        groups: group of each image, int ``(N,)`` in [0, G).
        positive: True for positive images, bool ``(N,)``; a group has one class.
        auroc: in (0, 1).
        icc: intra-group correlation of two images of a class, in [0, 1].
    """
    of_groups = rng.normal(size=groups.max() + 1)[groups]
    shift = np.sqrt(2) * ndtri(auroc)
    scores: np.ndarray = shift * positive + np.sqrt(icc) * of_groups + np.sqrt(1 - icc) * rng.normal(size=len(groups))
    return scores


def draw_pairs(
    rng: np.random.Generator, sizes: np.ndarray, first: float, second: float, icc: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the images that only one of two correlated classifiers classifies correctly, int64 ``(R, G)`` each.

    Both classifiers have beta-binomial numbers of correct images. The accuracies of a group have a Gaussian copula.

    Args:
        rng: source of randomness.
        sizes: images of each group, ``(R, G)``.
        first: accuracy of the first classifier, in (0, 1).
        second: accuracy of the second classifier.
        icc: intra-group correlation, in [0, 1).
    """
    common = np.sqrt(SHARED) * rng.normal(size=sizes.shape)
    accuracies = [
        _beta_of_normal(accuracy, icc)(common + np.sqrt(1 - SHARED) * rng.normal(size=sizes.shape))
        for accuracy in (first, second)
    ]
    return _draw_discordant(rng, sizes, accuracies[0], accuracies[1])


def draw_restored(
    rng: np.random.Generator, sizes: np.ndarray, clean: float, attacked: float, defended: float, icc: float
) -> np.ndarray:
    """Draw the images that a defence restores, breaks, and does not restore or breaks, int64 ``(3, R, G)``.

    Images that are correct under attack, with or without the defence, are correct without attack.

    Args:
        rng: source of randomness.
        sizes: images of each group, ``(R, G)``.
        clean: accuracy without attack, in (0, 1).
        attacked: accuracy under attack, at most ``clean``.
        defended: accuracy under attack with the defence, at most ``clean``.
        icc: intra-group correlation, in [0, 1).
    """
    n_clean = draw_successes(rng, sizes, clean, icc)
    common = np.sqrt(SHARED) * rng.normal(size=sizes.shape)
    still_correct, defended_correct = (
        _beta_of_normal(rate / clean, icc)(common + np.sqrt(1 - SHARED) * rng.normal(size=sizes.shape))
        for rate in (attacked, defended)
    )
    n_attacked = rng.binomial(n_clean, still_correct)
    n_broken = rng.binomial(n_attacked, 1 - defended_correct)
    n_restored = rng.binomial(n_clean - n_attacked, defended_correct)
    return np.stack([n_restored, n_broken, n_clean - n_attacked - n_restored + n_broken])


def draw_asymmetric_pairs(rng: np.random.Generator, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw pairs as :func:`draw_pairs` of classifiers with the same accuracy and an asymmetric difference.

    The first classifier is 40 points worse in a tenth of the groups, and 4.4 points better in the others.
    """
    is_worse = rng.random(sizes.shape) < 0.1
    return _draw_discordant(rng, sizes, np.where(is_worse, 0.45, 0.85 + 0.4 / 9), np.full(sizes.shape, 0.85))


def _draw_discordant(
    rng: np.random.Generator, sizes: np.ndarray, first: np.ndarray, second: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    # a fraction of the images has one uniform number for both classifiers, the others have independent ones
    only_first = SHARED * np.maximum(first - second, 0) + (1 - SHARED) * first * (1 - second)
    only_second = SHARED * np.maximum(second - first, 0) + (1 - SHARED) * second * (1 - first)
    gains = rng.binomial(sizes, only_first)
    return gains, rng.binomial(sizes - gains, np.clip(only_second / np.maximum(1 - only_first, 1e-12), 0, 1))


def _beta_of_normal(mean: float, icc: float) -> Callable[[np.ndarray], np.ndarray]:
    """Function from standard normal numbers to numbers with a beta distribution, by interpolation."""
    if not icc:
        return lambda normal: np.full(normal.shape, mean)
    precision, grid = (1 - icc) / icc, np.linspace(-7, 7, 4001)
    quantiles = betaincinv(mean * precision, (1 - mean) * precision, ndtr(grid))
    return lambda normal: np.interp(normal, grid, quantiles)
