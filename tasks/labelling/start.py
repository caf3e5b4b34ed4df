"""Which images are labelled before the first query."""

import numpy as np

from tasks.dataset.prepared import Prepared, choose_stratified
from tasks.params import ActiveLearning


def choose_start(data: Prepared, rows: np.ndarray, settings: ActiveLearning, seed: int) -> np.ndarray:
    """Rows that are labelled at the start, rising, int64 ``(n,)``: at least two, and one of each class.

    ``stratified`` draws single images. ``grouped`` takes whole groups in a random order until the share is reached and
    every class is there.

    Args:
        data: the prepared data set.
        rows: of the training images, rising.
        settings: the share, and how it is drawn.
        seed: of the choice.
    """
    n = max(round(settings.start.share * len(rows)), len(data.classes))
    if settings.start.selection == "stratified":
        return choose_stratified(data, rows, n, seed)
    groups, labels = data.table["group"].to_numpy()[rows], data.labels(rows)
    taken = np.zeros(len(rows), dtype=bool)
    for group in np.random.default_rng(seed).permutation(np.unique(groups)):
        if taken.sum() >= n and len(np.unique(labels[taken])) == len(data.classes):
            break
        taken |= groups == group
    return rows[taken]
