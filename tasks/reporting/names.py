"""Display names of targets, attacks and curves."""

from tasks.outcomes.names import DETECTOR_EVASION, JOINT_DETECTOR_EVASION, display_name
from tasks.params import UNDEFENDED
from tasks.records.vocabulary import (
    HOP_SKIP_JUMP,
    PGD_8_BIT,
    PGD_FIXED_DRAWS,
    SQUARE,
    SQUARE_ON_SURVIVORS,
    SUITE,
    SUITE_DOUBLED,
)

ATTACK_NAMES = {
    "fgsm": "FGSM",
    "pgd": "PGD",
    PGD_8_BIT: "PGD on 8-bit values",
    PGD_FIXED_DRAWS: "PGD with fixed draws",
    SUITE: "white-box suite",
    SUITE_DOUBLED: "white-box suite with twice the steps and restarts",
    SQUARE: "Square attack",
    SQUARE_ON_SURVIVORS: "Square attack on survivors",
    HOP_SKIP_JUMP: "HopSkipJump",
    DETECTOR_EVASION: "adaptive attack on the detector",
    JOINT_DETECTOR_EVASION: "joint attack on all detectors",
}
EMBEDDING_NAMES = {"pca": "PCA", "tsne": "t-SNE"}


def attack_name(attack: str) -> str:
    """Display name of an attack: ``PGD``."""
    return ATTACK_NAMES.get(attack, attack)


def curve_name(target: str, threat_model: str, surrogate: str = UNDEFENDED) -> str:
    """Display name of a curve: ``undefended``; ``autoencoder, transfer from undefended``.

    Args:
        target: its name.
        threat_model: of the attack.
        surrogate: of a transfer attack; the undefended classifier by default.
    """
    if threat_model == "transfer":
        return f"{display_name(target)}, transfer from {display_name(surrogate)}"
    is_target_alone = target == UNDEFENDED or threat_model == "none"
    return display_name(target) if is_target_alone else f"{display_name(target)}, {display_name(threat_model)}"
