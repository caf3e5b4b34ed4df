"""Scores of the images that a search found: after rounding to 8 bits, and on fresh samples of a random target.

A search ends near the decision boundary. There rounding may undo the success, and up to half of the predictions of a
random target are still correct. So each image that was found is scored. Then its perturbation is scaled up to the
border of its ball and of larger balls of the grid, until the image stays misclassified.
"""

from collections.abc import Callable

import numpy as np

from tasks.attacks.batch import AttackBatch, MinimumEps
from tasks.attacks.predictions import predict, predict_attacked, round_to_8_bits
from tasks.defences.randomness import AveragedPredictions
from tasks.records.expected import EXPECTED, FRESH_8BIT, SELECTION, fraction_correct

Settle = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""``(rows (n,), index of a radius (n,), images (n, C, H, W)) -> whether no larger ball is needed (n,)``."""


def rounded_index(batch: AttackBatch, found: MinimumEps) -> np.ndarray:
    """Index of the smallest radius at which each image that was found stays misclassified after rounding to 8 bits.

    int64 ``(N,)``; -1 for images that are misclassified unchanged; R where none does.

    Args:
        batch: images, and a deterministic model.
        found: result of a search on the batch.
    """
    index = np.where(found.index < 0, -1, len(batch.radii))

    def settle(rows: np.ndarray, at: np.ndarray, images: np.ndarray) -> np.ndarray:
        logits = predict(batch.model, round_to_8_bits(images)).logits
        broken: np.ndarray = logits.argmax(axis=1) != batch.labels[rows]
        index[rows[broken]] = at[broken]
        return broken

    _for_each_found(batch, found, settle)
    return index


def expected_scores(batch: AttackBatch, found: MinimumEps) -> dict[str, np.ndarray]:
    """Fractions of the predictions of a random target that are correct at each radius, float64 ``(N, R)`` by column.

    NaN where no image was scored.

    Args:
        batch: images, and a random target as attacks use it.
        found: result of a search on the batch.
    """
    assert isinstance(batch.model, AveragedPredictions)
    target = batch.model.target
    scores = {name: np.full((len(found.index), len(batch.radii)), np.nan) for name in EXPECTED}
    no_bias = np.zeros(batch.n_classes)

    def settle(rows: np.ndarray, at: np.ndarray, images: np.ndarray) -> np.ndarray:
        predictions, rounded = predict_attacked(target, images)
        samples = predictions.selection, predictions.fresh, rounded.fresh
        fractions = {
            name: fraction_correct(of, batch.labels[rows], no_bias)
            for name, of in zip(EXPECTED, samples, strict=True)
            if of is not None
        }
        # the image that was found and its extension share a ball: the one with fewer correct selection samples counts
        better = ~(fractions[SELECTION] > scores[SELECTION][rows, at])
        for name, values in fractions.items():
            scores[name][rows[better], at[better]] = values[better]
        settled: np.ndarray = fractions[SELECTION] == 0
        return settled

    _for_each_found(batch, found, settle)
    return scores


def rounded_index_of(found: MinimumEps, scores: dict[str, np.ndarray]) -> np.ndarray:
    """Return what :func:`rounded_index` returns, from the scores of a random target.

    An image counts as misclassified if more than half of its predictions are wrong.
    """
    is_broken = scores[FRESH_8BIT] < 0.5
    n_radii = is_broken.shape[1]
    return np.where(found.index < 0, -1, np.where(is_broken.any(axis=1), is_broken.argmax(axis=1), n_radii))


def better_scores(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """For each image and radius the scores with fewer correct predictions on the selection samples."""
    is_second = np.isnan(first[SELECTION]) | (second[SELECTION] < first[SELECTION])
    return {name: np.where(is_second, second[name], first[name]) for name in first}


def _for_each_found(batch: AttackBatch, found: MinimumEps, settle: Settle) -> None:
    """Score the images that were found, then their extensions to rising radii, until each needs no larger ball."""

    def settle_all(rows: np.ndarray, at: np.ndarray, images: np.ndarray) -> np.ndarray:
        settled = np.zeros(len(rows), dtype=bool)
        for start in range(0, len(rows), batch.batch_size):
            part = slice(start, start + batch.batch_size)
            settled[part] = settle(rows[part], at[part], images[part])
        return settled

    is_kept = (found.adversarial != batch.images).any(axis=(1, 2, 3))
    rows = np.flatnonzero((found.index >= 0) & (found.index < len(batch.radii)) & is_kept)
    at = found.index[rows]
    settled = settle_all(rows, at, found.adversarial[rows])
    rows, at = rows[~settled], at[~settled]
    while rows.size:
        settled = settle_all(rows, at, batch.extended(rows, found.adversarial[rows], batch.radii[at]))
        is_next = ~settled & (at + 1 < len(batch.radii))
        rows, at = rows[is_next], at[is_next] + 1
