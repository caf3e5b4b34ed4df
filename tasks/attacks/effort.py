"""Effort of the searches for the smallest eps: levels, and the stages that they consist of."""

from dataclasses import dataclass

MAX_TARGETS = 9
"""Largest number of target classes, as in AutoAttack."""


@dataclass(frozen=True)
class Stage:
    """Steps, restarts and queries of one stage. Each attack of a stage attacks the images that survive smaller balls.

    0 steps, restarts or queries leave an attack out.
    """

    name: str
    """It belongs to the names of random starts, so that stages have independent starts."""
    sweep_steps: int = 0
    """Steps of each start of the sweep at each radius; only in the first stage, since it begins the search."""
    sweep_restarts: int = 0
    """Further random starts of the sweep."""
    apgd_steps: int = 0
    """Steps of each start of APGD, for each of its losses."""
    apgd_restarts: int = 0
    """Random starts of APGD, for each of its losses."""
    feature_steps: int = 0
    """Steps of each start of the attack on features."""
    feature_restarts: int = 0
    """Random starts of the attack on features; each is guided by another image."""
    fmn_steps: int = 0
    """Steps of each start of FMN."""
    fmn_restarts: int = 0
    """Starts of FMN: the first at the smallest known perturbation, the others at random."""
    other_backward_passes: bool = False
    """Repeat APGD and FMN with every other backward pass of image transforms that the target has."""
    square_queries: int = 0
    """Queries of Square at each radius."""
    hop_skip_jump_queries: int = 0
    """Queries of HopSkipJump."""


STAGES = (
    Stage("first", sweep_steps=20, sweep_restarts=1, apgd_steps=10, apgd_restarts=1, fmn_steps=20, fmn_restarts=1,
          square_queries=25),
    Stage("second", apgd_steps=50, apgd_restarts=1, feature_steps=50, feature_restarts=1, fmn_steps=40, fmn_restarts=2,
          other_backward_passes=True, square_queries=1000, hop_skip_jump_queries=1000),
    Stage("third", apgd_steps=100, apgd_restarts=5, feature_steps=100, feature_restarts=5, fmn_steps=100, fmn_restarts=5,
          other_backward_passes=True, square_queries=5000, hop_skip_jump_queries=5000),
)
EFFORTS = {"quick": STAGES[:1], "standard": STAGES[:2], "exhaustive": STAGES}
