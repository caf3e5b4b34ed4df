"""Display names of targets, attacks and curves."""

from tasks.params import UNDEFENDED
from tasks.records.vocabulary import HOP_SKIP_JUMP, SQUARE, SUITE, SUITE_DOUBLED, display_name

ATTACK_NAMES = {
    "fgsm": "FGSM",
    "pgd": "PGD",
    SUITE: "white-box suite",
    SUITE_DOUBLED: "white-box suite with twice the steps and restarts",
    SQUARE: "Square attack",
    HOP_SKIP_JUMP: "HopSkipJump",
}
EMBEDDING_NAMES = {"pca": "PCA", "tsne": "t-SNE"}
DETECTOR_AWARE = " and detector"
"""Suffix of the names of attacks that also evade the detector."""


def attack_name(attack: str) -> str:
    """Display name of an attack: ``PGD``; ``PGD, detector-aware``."""
    base = attack.removesuffix(DETECTOR_AWARE)
    return ATTACK_NAMES.get(base, base) + (", detector-aware" if attack != base else "")


def curve_name(target: str, threat_model: str) -> str:
    """Display name of a curve: ``undefended``; ``autoencoder, transfer``."""
    is_target_alone = target == UNDEFENDED or threat_model == "none"
    return display_name(target) if is_target_alone else f"{display_name(target)}, {display_name(threat_model)}"
