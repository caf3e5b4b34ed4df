"""Levels of effort of the searches for the smallest eps, as lists of stages.

A level includes the stages of the lower levels. Each stage continues from the result of the stage before with new
random starts. So a higher level finds everything that a lower level found.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

MAX_TARGETS = 9
"""Largest number of target classes, as in AutoAttack."""


@dataclass(frozen=True)
class Stage:
    """Steps, restarts and queries of the attacks of one stage; 0 leaves an attack out.

    Every attack tries each image in the largest ball that the image has survived so far, and continues in smaller balls
    while it succeeds.
    """

    name: str
    """Part of the names of random starts, so that stages have independent starts."""
    sweep_steps: int = 0
    """Steps of each start of the sweep. It begins the first stage; in a later stage it repeats in the largest ball that
    each image has survived."""
    sweep_restarts: int = 0
    """Further random starts of the sweep, for images that survive the first start."""
    sweep_tries_smaller: bool = False
    """If an image survives the first radius of the sweep, try each smaller radius once."""
    apgd_steps: int = 0
    """Steps of each start of Auto-PGD."""
    apgd_restarts: int = 0
    """Random starts of Auto-PGD, for each loss and target class."""
    feature_steps: int = 0
    """Steps of each start of the attack on features."""
    feature_restarts: int = 0
    """Random starts of the attack on features, each guided by another image."""
    fmn_steps: int = 0
    """Steps of each start of FMN."""
    fmn_restarts: int = 0
    """Starts of FMN: the first at the smallest known perturbation, the others at random."""
    other_backward_passes: bool = False
    """Repeat one start of Auto-PGD with each loss and one of FMN with each other backward pass of the image transforms
    of a target."""
    square_queries: int = 0
    """Queries of Square at each radius."""
    hop_skip_jump_queries: int = 0
    """Queries of HopSkipJump."""


STAGES = (
    Stage(
        "first",
        sweep_steps=20,
        sweep_restarts=1,
        sweep_tries_smaller=True,
        apgd_steps=10,
        apgd_restarts=1,
        fmn_steps=20,
        fmn_restarts=1,
        square_queries=25,
    ),
    Stage(
        "second",
        apgd_steps=50,
        apgd_restarts=1,
        feature_steps=30,
        feature_restarts=1,
        fmn_steps=40,
        fmn_restarts=2,
        other_backward_passes=True,
        square_queries=1000,
        hop_skip_jump_queries=1000,
    ),
    Stage(
        "third",
        apgd_steps=100,
        apgd_restarts=5,
        feature_steps=100,
        feature_restarts=5,
        fmn_steps=100,
        fmn_restarts=6,
        other_backward_passes=True,
        square_queries=5000,
        hop_skip_jump_queries=5000,
    ),
)
EFFORTS = {"quick": STAGES[:1], "standard": STAGES[:2], "exhaustive": STAGES}
"""Stages of each level of effort."""


def doubled(stages: Sequence[Stage]) -> Stage:
    """Return one stage with twice the steps and starts of the reported attack, with its own starts and no queries.

    It doubles the sweep of the first stage, and the other white-box attacks of the last.

    Args:
        stages: of a level.
    """
    first, last = stages[0], stages[-1]
    white_box = (field for field in asdict(last) if field.endswith(("_steps", "_restarts")))
    twice = {field: 2 * getattr(last, field) for field in white_box}
    # the first start of the sweep is no restart
    sweep = {"sweep_steps": 2 * first.sweep_steps, "sweep_restarts": 2 * first.sweep_restarts + 1}
    name = f"{last.name}, doubled"
    return replace(last, **(twice | sweep), name=name, square_queries=0, hop_skip_jump_queries=0)


def one_start(stage: Stage) -> Stage:
    """Return the part of a stage that is repeated with other backward passes."""
    apgd, fmn = min(stage.apgd_restarts, 1), min(stage.fmn_restarts, 1)
    return Stage(
        stage.name, apgd_steps=stage.apgd_steps, apgd_restarts=apgd, fmn_steps=stage.fmn_steps, fmn_restarts=fmn
    )
