"""Area under the ROC curve (AUROC), without each group in turn."""

import numpy as np
from scipy.stats import rankdata

from tasks.statistics.groups import GroupJackknife


def auroc_without_blocks(scores: np.ndarray, positive: np.ndarray, jackknife: GroupJackknife) -> np.ndarray:
    """Return the AUROC of all images, then without each block of the jackknife, float64 ``(1 + B,)``.

    The AUROC is the fraction of pairs of a positive and a negative image in which the positive one has the higher
    score; ties count as half (Hanley and McNeil 1982, Radiology 143, 29-36). It is NaN without such pairs.

    Args:
        scores: score of each image, ``(N,)``; high scores predict the positive class.
        positive: True for positive images, bool ``(N,)``.
        jackknife: of the images.
    """
    n_ordered, n_pairs = ordered_pairs(scores, positive, jackknife)
    auroc: np.ndarray = np.divide(n_ordered, n_pairs, out=np.full(len(n_pairs), np.nan), where=n_pairs > 0)
    return auroc


def ordered_pairs(scores: np.ndarray, positive: np.ndarray, jackknife: GroupJackknife) -> tuple[np.ndarray, np.ndarray]:
    """Count pairs of a positive and a negative image, over all images and then without each block of the jackknife.

    Args:
        scores: score of each image, ``(N,)``.
        positive: True for positive images, bool ``(N,)``.
        jackknife: of the images.

    Returns:
        Number of pairs in which the positive image has the higher score, with ties as half, and number of all pairs;
        float64 ``(1 + B,)`` each.
    """
    blocks, n_blocks = jackknife.blocks, jackknife.n_blocks
    of_positive, of_negative = (np.bincount(blocks[side], minlength=n_blocks) for side in (positive, ~positive))
    ranks = rankdata(scores)
    # rank among all images minus rank among those of the same class: number of images of the other class below
    n_below = ranks.copy()
    for side in (positive, ~positive):
        n_below[side] -= rankdata(scores[side])
    n_ordered_pairs = np.where(positive, n_below, of_positive.sum() - n_below)
    total = n_ordered_pairs[positive].sum()
    in_block = np.bincount(blocks, n_ordered_pairs, n_blocks) - _ordered_within(ranks, positive, blocks, n_blocks)
    n_pairs = (of_positive.sum() - of_positive) * (of_negative.sum() - of_negative)
    return np.append(total, total - in_block), np.append(of_positive.sum() * of_negative.sum(), n_pairs).astype(float)


def _ordered_within(ranks: np.ndarray, positive: np.ndarray, blocks: np.ndarray, n_blocks: int) -> np.ndarray:
    """Ordered pairs of two images of one block, which both images count, float64 ``(B,)``."""
    sizes = np.bincount(blocks, minlength=n_blocks)
    # ranks within a block: rank among all images in the order of blocks and scores, minus the images of earlier blocks
    within = rankdata(blocks * (2.0 * len(ranks) + 1) + ranks) - (sizes.cumsum() - sizes)[blocks]
    n_positive = np.bincount(blocks[positive], minlength=n_blocks)
    return np.bincount(blocks, within * positive, n_blocks) - n_positive * (n_positive + 1) / 2
