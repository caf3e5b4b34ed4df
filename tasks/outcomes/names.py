"""Names in tables that are computed from records: columns, attacks and detectors of the analyses, display names."""

from collections.abc import Mapping
from typing import Any

from tasks.params import UNDEFENDED

ONE_STEP_ATTACKS = ("fgsm", "art_fgsm", "art_FastGradientMethod")
"""Attacks with one gradient step: ours, ART's reference, and a row ``{art: FastGradientMethod}``."""

CURVE = ["target", "threat_model", "attack", "surrogate"]
"""Columns that identify a curve of accuracy against eps; ``surrogate`` is empty if nothing was transferred."""
POINT = [*CURVE, "norm", "eps"]
"""Columns that identify a point of a curve."""

DETECTOR_EVASION, JOINT_DETECTOR_EVASION = "detector_evasion", "joint_detector_evasion"
"""Adaptive attacks on the undefended classifier together with one detector, and with all detectors at once."""
DETECTOR_ATTACKS = (DETECTOR_EVASION, JOINT_DETECTOR_EVASION)
ALL_DETECTORS, BEST_DETECTOR = "all detectors", "best detector"
"""Names of the combination of all detectors, and of the detector that is chosen on other groups, in tables."""

WORST_CASE = "worst_case"
"""Name of the strongest attack on each image, in metrics and curves."""
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
