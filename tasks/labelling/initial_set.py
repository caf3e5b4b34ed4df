"""The initial labelled set of active learning."""

import numpy as np

from tasks.dataset.prepared import Prepared, choose_stratified
from tasks.params import ActiveLearning


def choose_initial_set(data: Prepared, rows: np.ndarray, settings: ActiveLearning, seed: int) -> np.ndarray:
    """Return the rows that are labelled before the first query, ascending, int64 ``(n,)``; every class is among them.

    ``stratified`` draws single images. ``grouped`` adds whole groups in a random order until the share is reached and
    every class is present.

    Args:
        data: the prepared data set.
        rows: of the training images, ascending.
        settings: the section ``active_learning``, with the share and the selection.
        seed: of the choice.
    """
    n = max(round(settings.initial_set.fraction * len(rows)), len(data.classes))
    if settings.initial_set.strategy == "stratified":
        return choose_stratified(data, rows, n, seed)
    groups, labels = data.table["group"].to_numpy()[rows], data.labels(rows)
    is_chosen = np.zeros(len(rows), dtype=bool)
    for group in np.random.default_rng(seed).permutation(np.unique(groups)):
        if is_chosen.sum() >= n and len(np.unique(labels[is_chosen])) == len(data.classes):
            break
        is_chosen |= groups == group
    return rows[is_chosen]
