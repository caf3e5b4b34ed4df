"""The white-box suite: Auto-PGD and DeepFool on the images that survive the sweep.

Stock AutoAttack needs at least three logits. This suite works on two classes: Auto-PGD on the cross-entropy and on the
margin (with three or more classes also on the difference of logits ratio), and DeepFool for small norms. Balls nest, so
each attack tries only the largest ball that an image has survived so far.
"""

from functools import partial

import numpy as np
from torch import Tensor

from tasks.attacks.apgd import Loss, apgd, cross_entropy, dlr, negative_margin
from tasks.attacks.batch import AttackBatch, MinimumEps
from tasks.attacks.deepfool import deepfool


def run_suite(batch: AttackBatch, before: MinimumEps, n_steps: int) -> MinimumEps:
    """Improve an earlier result by Auto-PGD and DeepFool.

    Args:
        batch: model and images.
        before: result of the sweep.
        n_steps: gradients of each attack at each radius.
    """
    index, found_by, adversarial = before.index.copy(), before.found_by.copy(), before.adversarial.copy()

    def keep(rows: np.ndarray, images: np.ndarray, at: np.ndarray, name: str) -> None:
        index[rows], found_by[rows], adversarial[rows] = at, name, images

    losses: dict[str, Loss] = {"apgd_ce": cross_entropy, "apgd_margin": negative_margin}
    if batch.n_classes > 2:
        losses["apgd_dlr"] = dlr
    for restart, (name, loss) in enumerate(losses.items()):
        rows = np.flatnonzero(index > 0)
        while rows.size:
            found, broken = batch.run(
                rows, batch.radii[index[rows] - 1], partial(_apgd_attempt, batch, loss, n_steps, restart)
            )
            rows, found = rows[broken], found[broken]
            keep(rows, found, index[rows] - 1, name)
            rows = rows[index[rows] > 0]

    rows = np.flatnonzero(index > 0)
    found, broken = batch.run(rows, np.zeros(len(rows)), partial(_deepfool_attempt, batch, n_steps))
    at = batch.smallest_index(rows, found)
    # at the same radius of the grid, keep DeepFool's perturbation, since it minimises the norm
    same = broken & (at == index[rows])
    adversarial[rows[same]] = found[same]
    smaller = broken & (at < index[rows])
    keep(rows[smaller], found[smaller], at[smaller], "deepfool")
    return MinimumEps(index, found_by, adversarial)


def _apgd_attempt(
    batch: AttackBatch,
    loss: Loss,
    n_steps: int,
    restart: int,
    rows: np.ndarray,
    images: Tensor,
    labels: Tensor,
    radii: Tensor,
) -> tuple[Tensor, Tensor]:
    starts = batch.ball.random_starts(images, radii, batch.seed, batch.image_ids[rows], np.full(len(rows), restart))
    return apgd(batch.model, images, labels, radii, batch.ball, loss, n_steps, starts)


def _deepfool_attempt(
    batch: AttackBatch, n_steps: int, _rows: np.ndarray, images: Tensor, labels: Tensor, _radii: Tensor
) -> tuple[Tensor, Tensor]:
    return deepfool(batch.model, images, labels, batch.ball, n_steps)
