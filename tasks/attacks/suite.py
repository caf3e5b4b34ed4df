"""The white-box attacks of a stage: the sweep, Auto-PGD, an attack on features, and FMN.

AutoAttack needs at least three logits; this suite also works on two classes. With two classes, cross-entropy and margin
have the same gradient direction, so Auto-PGD has one loss, the margin. With more classes it has the losses of
AutoAttack: the cross-entropy, the difference of logits ratio, and a targeted loss towards each of the most likely other
classes.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tasks.attacks.apgd import apgd
from tasks.attacks.batch import AttackBatch, MinimumEps, bisect_to_boundary, improve, keep_smaller
from tasks.attacks.effort import MAX_TARGETS, Stage, one_start
from tasks.attacks.feature_loss import FeatureTargets
from tasks.attacks.fmn import fmn
from tasks.attacks.objectives import (
    Loss,
    Objective,
    TargetedLoss,
    cross_entropy,
    dlr,
    negative_margin,
    other_class,
    targeted,
    targeted_dlr,
    targeted_negative_margin,
    untargeted,
)
from tasks.attacks.sweep import repeat_sweep, run_sweep
from tasks.defences.backward_pass import other_backward_passes, with_backward_pass
from tasks.defences.randomness import AveragedPredictions, with_fixed_draws
from tasks.params import Precision

BuildObjective = Callable[[np.ndarray, Tensor, Tensor], Objective]
"""``(rows (n,), images (n, C, H, W), labels (n,)) -> objective`` of an attack on some images of an AttackBatch."""


def run_stage(
    batch: AttackBatch,
    before: MinimumEps | None,
    stage: Stage,
    relative_step_size: float,
    precision: Precision = "float32",
) -> MinimumEps:
    """Run the white-box attacks of a stage; the result includes that of the stages before.

    Args:
        batch: model and images.
        before: result of the stages before; None for the first stage, which begins with the sweep. A later stage that
            has steps of the sweep repeats it on the survivors.
        stage: its numbers of steps and restarts.
        relative_step_size: step size of the sweep divided by the radius.
        precision: of the gradients of the sweep.
    """
    effort = stage.sweep_steps, relative_step_size, stage.sweep_restarts
    if before is None:
        before = run_sweep(batch, *effort, precision, stage.sweep_tries_smaller)
    elif stage.sweep_steps:
        before = repeat_sweep(batch, before, f"{stage.name} sweep", *effort, precision)
    found = _run_attacks(batch, before, stage)
    for name in other_backward_passes(batch.model) if stage.other_backward_passes else ():
        changed = replace(batch, model=with_backward_pass(batch.model, name))
        found = _run_attacks(changed, found, one_start(stage), f"_{name}")
    if stage.other_backward_passes and isinstance(batch.model, AveragedPredictions):
        changed = replace(batch, model=with_fixed_draws(batch.model))
        found = _run_attacks(changed, found, one_start(stage), "_fixed_draws")
    return found


def _run_attacks(batch: AttackBatch, found: MinimumEps, stage: Stage, suffix: str = "") -> MinimumEps:
    """Improve a result by Auto-PGD with each loss, the attack on features and FMN; their names end in the suffix."""
    for restart in range(stage.apgd_restarts):
        for name, build in _losses(batch):
            attempt = partial(_apgd, batch, build, stage.apgd_steps, f"{stage.name} {name}{suffix}", restart)
            found = improve(batch, found, name + suffix, attempt)
    guides = FeatureTargets.of(batch) if stage.feature_restarts else None
    for restart in range(stage.feature_restarts if guides else 0):
        assert guides
        build = partial(_towards_guide, guides, restart)
        attempt = partial(_apgd, batch, build, stage.feature_steps, f"{stage.name} feature_loss{suffix}", restart)
        found = improve(batch, found, "feature_loss" + suffix, attempt)
    for restart in range(stage.fmn_restarts):
        found = _minimise_norm(batch, found, stage, "fmn" + suffix, restart)
    return found


def _losses(batch: AttackBatch) -> Iterator[tuple[str, BuildObjective]]:
    """Name and objective of each loss of Auto-PGD."""

    def without_target(loss: Loss, _rows: np.ndarray, _images: Tensor, labels: Tensor) -> Objective:
        return untargeted(batch.model, labels, loss)

    def with_target(loss: TargetedLoss, rank: int, _rows: np.ndarray, images: Tensor, labels: Tensor) -> Objective:
        return targeted(batch.model, labels, other_class(batch.model, images, labels, rank), loss)

    if batch.n_classes == 2:
        yield "apgd_margin", partial(without_target, negative_margin)
        return
    yield "apgd_ce", partial(without_target, cross_entropy)
    yield "apgd_dlr", partial(without_target, dlr)
    loss = targeted_dlr if batch.n_classes > 3 else targeted_negative_margin
    for rank in range(min(batch.n_classes - 1, MAX_TARGETS)):
        yield f"apgd_targeted_{rank}", partial(with_target, loss, rank)


def _towards_guide(guides: FeatureTargets, rank: int, rows: np.ndarray, _images: Tensor, _labels: Tensor) -> Objective:
    return guides.objective(rows, rank)


def _apgd(
    batch: AttackBatch,
    build: BuildObjective,
    n_steps: int,
    name: str,
    restart: int,
    rows: np.ndarray,
    images: Tensor,
    labels: Tensor,
    radii: Tensor,
) -> tuple[Tensor, Tensor]:
    """Attempt by Auto-PGD from a random start."""
    starts = _random_starts(batch, name, restart, rows, images, radii)
    objective = build(rows, images, labels)
    return apgd(batch.model, objective, images, labels, radii, batch.ball, n_steps, starts)


def _minimise_norm(batch: AttackBatch, found: MinimumEps, stage: Stage, name: str, restart: int) -> MinimumEps:
    """Improve a result by FMN, which tries no fixed radius.

    It searches within the smallest known perturbation of each image. The first start is this perturbation, and the
    objective the margin; the others are random, each towards one of the most likely other classes.
    """
    model, ball = batch.model, batch.ball

    def attempt(part: np.ndarray, images: Tensor, labels: Tensor, radii: Tensor) -> tuple[Tensor, Tensor]:
        known = torch.from_numpy(found.adversarial[part]).to(images.device)
        if restart == 0:
            known = bisect_to_boundary(model, images, labels, known).clone()
        norms = ball.size(known - images)[:, None, None, None]
        # a perturbation that was not kept is 0
        radii = torch.where(norms > 0, torch.minimum(norms, radii), radii)
        if restart == 0:
            objective = untargeted(model, labels, negative_margin)
            return fmn(model, objective, images, labels, radii, ball, stage.fmn_steps, known)
        classes = other_class(model, images, labels, (restart - 1) % min(batch.n_classes - 1, MAX_TARGETS))
        objective = targeted(model, labels, classes, targeted_negative_margin)
        starts = _random_starts(batch, f"{stage.name} {name}", restart, part, images, radii)
        return fmn(model, objective, images, labels, radii, ball, stage.fmn_steps, starts)

    rows = np.flatnonzero(found.index >= 0)
    largest = batch.radii[found.index[rows].clip(max=len(batch.radii) - 1)]
    nearest, broken = batch.run(rows, largest, attempt)
    return keep_smaller(batch, found, name, rows[broken], nearest[broken])


def _random_starts(
    batch: AttackBatch, name: str, restart: int, rows: np.ndarray, images: Tensor, radii: Tensor
) -> Tensor:
    restarts = np.full(len(rows), restart)
    return batch.ball.random_starts(images, radii, batch.seed, name, batch.image_ids[rows], restarts)
