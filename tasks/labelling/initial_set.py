"""The initial labelled set of active learning."""

import numpy as np

from tasks.dataset.prepared import Prepared, choose_stratified
from tasks.params import ActiveLearning


def choose_initial_set(data: Prepared, rows: np.ndarray, settings: ActiveLearning, seed: int) -> np.ndarray:
    """Return the rows that are labelled before the first query, ascending, int64 ``(n,)``; every class is among them.

    ``stratified`` draws single images. ``grouped`` adds whole groups until the fraction is reached and every class is
    present. The next group is the first, in a random order, with an image of the class that lacks most of its share.

    Args:
        data: the prepared data set.
        rows: of the training images, ascending.
        settings: the section ``active_learning``, with ``initial_set``.
        seed: of the choice.
    """
    n = max(round(settings.initial_set.fraction * len(rows)), len(data.classes))
    if settings.initial_set.strategy == "stratified":
        return choose_stratified(data, rows, n, seed, over_groups=False)
    groups, labels = data.table["group"].to_numpy()[rows], data.labels(rows)
    is_chosen = np.zeros(len(rows), dtype=bool)
    order = np.random.default_rng(seed).permutation(len(np.unique(groups)))
    place = order[np.unique(groups, return_inverse=True)[1]]
    of_class = labels == np.unique(labels)[:, None]
    while not is_chosen.all() and (is_chosen.sum() < n or not (is_chosen & of_class).any(axis=1).all()):
        chosen_share = (is_chosen & of_class).sum(axis=1) / of_class.sum(axis=1)
        first = place[of_class[chosen_share.argmin()] & ~is_chosen].min()
        is_chosen |= place == first
    return rows[is_chosen]
