"""Old names of parameters: a file that uses one gets an error with the new name."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

REMOVED = "removed"

RENAMED = {
    "benchmark": "selected_defences",
    "acquire.phantom.n_slices": "n_slices_per_patient",
    "validate.max_imbalance": "max_imbalance_ratio",
    "validate.max_exact_duplicates": "max_exact_duplicate_fraction",
    "validate.neighbour_correlation": "same_group_correlation",
    "train_classifier.augmentation.flip": "horizontal_flip_probability",
    "train_autoencoder.noises": "noise_types, with max_strength in place of strength",
    "train_autoencoder.clean_share": "clean_fraction",
    "defences.*.adversary.eps": "eps_range",
    "defences.*.adversarial_share": "adversarial_fraction",
    "defences.*.ramp": "eps_warmup_fraction",
    "defences.*.guide": "guidance_layer",
    "defences.*.certification.failure": "alpha",
    "defences.*.n_draws": "n_eot_samples",
    "defences.*.before": "applied_before",
    "defences.*.steps": "transforms, with kind in place of method",
    "attack.mode": REMOVED,
    "attack.keep_eps": "saved_eps",
    "attack.sweep": "attack.effort",
    "attack.suite": "attack.effort",
    "attack.square": "attack.effort",
    "attack.hop_skip_jump": "attack.effort, with attack.max_black_box_images",
    "analyze.evasion": "detector_evasion",
    "analyze.n_resamples": REMOVED,
    "active_learning.acquisition": "acquisition_functions",
    "active_learning.shrink": "downsampling_factor",
    "active_learning.start": "initial_set, with strategy and fraction in place of selection and share",
    "active_learning.query": "query_fraction",
    "active_learning.n_passes": "n_dropout_samples",
    "active_learning.adversarial_copies": "adversarial_augmentation",
    "active_learning.max_images": "max_attacked_images",
    "*.schedule": "learning_rate_schedule",
    "*.early_stopping": "early_stopping_patience",
    "*.pgd.relative_step": "relative_step_size",
    "*.pgd.n_restarts": "n_random_starts",
}
"""Old dotted key (``*``: any text) -> last part of the new key, or the whole key where the section changed."""

_PATTERNS = {re.compile(re.escape(old).replace(r"\*", ".*")): new for old, new in RENAMED.items()}


def renamed_keys(values: Mapping[str, Any]) -> Iterator[str]:
    """Describe every old key in nested values of params.yaml, one sentence each."""
    for key in _dotted_keys(values):
        for pattern, new in _PATTERNS.items():
            if pattern.fullmatch(key):
                yield f"{key}: this key was removed. Delete it" if new == REMOVED else f"{key}: this key is now {new}"


def _dotted_keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _dotted_keys(value, f"{prefix}{name}.")
