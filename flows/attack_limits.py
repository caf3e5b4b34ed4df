"""Largest numbers of gradients and queries that the searches for the smallest eps can take on one image."""

from collections.abc import Sequence

from tasks.attacks.effort import MAX_TARGETS, Stage


def n_losses(n_classes: int) -> int:
    """Number of losses of Auto-PGD: the margin, or the cross-entropy, DLR and one for each target class."""
    return 1 if n_classes == 2 else 2 + min(n_classes - 1, MAX_TARGETS)


def max_gradients(stages: Sequence[Stage], n_radii: int, n_classes: int) -> int:
    """Largest number of gradients that one image of a target without image transforms can take in all of these stages.

    Args:
        stages: of a level.
        n_radii: number of radii in the grid.
        n_classes: number of classes, K.
    """
    total = 0
    for stage in stages:
        if stage.sweep_steps:
            total += n_radii * (1 + (1 + stage.sweep_restarts) * (stage.sweep_steps + 1))
        total += _gradients_without_success(stage, n_classes)
    # each success of an attack in a ball is followed by another try, in a smaller ball
    longest = max(max(stage.apgd_steps, stage.feature_steps) + 1 for stage in stages)
    return total + n_radii * longest


def _gradients_without_success(stage: Stage, n_classes: int) -> int:
    """Number of gradients of a stage without its sweep for an image that no attack breaks."""
    return (
        n_losses(n_classes) * stage.apgd_restarts * (stage.apgd_steps + 1)
        + stage.feature_restarts * (stage.feature_steps + 1)
        + stage.fmn_restarts * (stage.fmn_steps + 1)
    )


def max_queries(stages: Sequence[Stage], n_radii: int) -> int:
    """Largest number of queries of black-box attacks that one image can take in all of these stages.

    Args:
        stages: of a level.
        n_radii: number of radii in the grid, each of which Square may try.
    """
    return sum(n_radii * stage.square_queries + stage.hop_skip_jump_queries for stage in stages)
