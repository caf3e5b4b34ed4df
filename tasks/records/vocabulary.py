"""Vocabulary of the records: names of attacks, threat models and columns."""

from collections.abc import Mapping
from typing import Any

from tasks.params import UNDEFENDED

CLEAN = "clean"
"""Attack of the rows of unchanged images: one row for each image and target, eps 0, threat model ``none``."""

ART_REFERENCE = {"art_fgsm": "fgsm", "art_pgd": "pgd"}
"""Attacks of ART on a part of the images that a check compares with ours -> ours. They have no curves."""
ONE_STEP_ATTACKS = ("fgsm", "art_fgsm", "art_FastGradientMethod")
"""Attacks with one gradient step: ours, ART's reference, and a row ``{art: FastGradientMethod}``."""

PGD_8_BIT = "pgd_8_bit"
"""PGD in steps of whole grey levels, whose images have 8 bits."""
PGD_FIXED_DRAWS = "pgd_fixed_draws"
"""PGD on a random target with the same draws at every step."""

CURVE = ["target", "threat_model", "attack", "surrogate"]
"""Columns that identify a curve of accuracy against eps; ``surrogate`` is empty if nothing was transferred."""
POINT = [*CURVE, "norm", "eps"]
"""Columns that identify a point of a curve."""

SUITE, SQUARE, HOP_SKIP_JUMP = "suite", "square", "hop_skip_jump"
VALIDATION_SWEEP = "sweep"
"""The sweep alone, on validation images, for the choice among targets."""
SUITE_DOUBLED = "suite_doubled"
"""The white-box suite with one more stage of twice the effort, which a check compares with the suite."""
SQUARE_ON_SURVIVORS = "square_on_survivors"
"""Square on the images that survive the suite, in the largest ball that each survives."""
SEARCHES = (SUITE, SUITE_DOUBLED, SQUARE_ON_SURVIVORS, SQUARE)
"""Attacks that search for the smallest eps that breaks each image, and have a curve of their own."""
DETECTOR_EVASION, JOINT_DETECTOR_EVASION = "detector_evasion", "joint_detector_evasion"
"""Adaptive attacks on the undefended classifier together with one detector, and with all detectors at once."""
DETECTOR_ATTACKS = (DETECTOR_EVASION, JOINT_DETECTOR_EVASION)
ALL_DETECTORS, BEST_DETECTOR = "all detectors", "best detector"
"""Names of the combination of all detectors, and of the detector that is chosen on other groups, in tables."""
WORST_CASE = "worst_case"
"""Name of the strongest attack on each image, in metrics and curves."""

AS_TRAINED, RECALIBRATED, FIXED_SENSITIVITY = "as_trained", "recalibrated", "fixed_sensitivity"
"""Operating points: no bias on the logits; biases with the highest balanced accuracy on validation images; a bias with
a given sensitivity there."""

AS_GIVEN = ""
"""Name of the purifier in tables where images were not purified."""


def display_name(name: str) -> str:
    """Display name of a target, threat model, operating point or acquisition function: ``retrained autoencoder``."""
    return name.replace("_", " ")


def attack_label(attack: str, surrogate: str) -> str:
    """Name of an attack in metrics, plots and runs; an independent surrogate is part of it: ``pgd_from_cnn-1``."""
    return f"{attack}_from_{surrogate}" if is_independent(surrogate) else attack


def is_independent(surrogate: str) -> bool:
    """Return whether a surrogate was trained by the step train_surrogates."""
    return surrogate not in ("", UNDEFENDED)


def unit_of(dataset_info: Mapping[str, Any]) -> str:
    """Name of the unit that every interval and test treats as independent.

    ``patient`` with patient ids, ``image`` if every image is a group of its own, otherwise ``inferred group``.

    Args:
        dataset_info: content of ``dataset.json``.
    """
    if "patient_in_train" in dataset_info["leakage"]:
        return "patient"
    return "image" if dataset_info["n_groups"] == dataset_info["n"] else "inferred group"
