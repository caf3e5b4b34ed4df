"""All parameters of ``params.yaml``, and those that each step reads."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tasks.params.active_learning import ActiveLearning, NoisyOracle
from tasks.params.analyze import Analyze
from tasks.params.attack import Attack
from tasks.params.classifier import Classifier
from tasks.params.defences import UNDEFENDED, Autoencoder, Defence
from tasks.params.images import Acquire, Prepare, Validate
from tasks.params.section import Precision, Section
from tasks.params.training import Surrogate, TrainAutoencoder, TrainClassifier

DefenceName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
"""Name of a defence, which is part of paths and commands."""


class Compute(Section):
    """Device, threads and precision."""

    threads: Annotated[int, Field(ge=1, le=256)]
    """CPU threads of a step. Floating-point sums depend on the number, so it is part of the experiment."""
    device: Literal["auto", "cpu", "cuda", "mps"]
    """Device of the networks; ``auto``: cuda if available, otherwise mps, otherwise cpu."""
    precision: Precision
    """Precision of convolutions and matrix products in training steps and in the gradients of the sweep. Weights,
    losses, validation and the success of attacks are always in float32."""


class Report(Section):
    """The report, and the files with images that other steps write."""

    include_images: bool
    """``false`` keeps all images of the data set out of the report, its figures, the example files of other steps,
    the tracking server and the model registry. See ``docs/how-to/data-on-a-remote.md``."""


_TRAINING_DATA = ("train_classifier.augmentation", "train_autoencoder.noise_types", "train_autoencoder.clean_fraction")
_LEARNER = ("train_classifier.architecture", "train_classifier.pretrained", "train_classifier.augmentation")
STEP_PARAMS: dict[str, tuple[str, ...]] = {
    "check_params": (
        *("seed", "compute", "acquire", "validate", "prepare", "classifier", "train_classifier", "train_surrogates"),
        *("train_autoencoder", "selected_defences", "defences", "attack", "analyze", "active_learning"),
        "report",
    ),
    "acquire": ("seed", "acquire"),
    "validate": ("acquire", "validate", "prepare.channels", "prepare.intensity"),
    "prepare": ("seed", "acquire", "prepare"),
    "train_classifier": ("seed", "compute", "classifier", "train_classifier"),
    "train_surrogates": ("seed", "compute", "train_classifier", "train_surrogates"),
    "train_autoencoder": ("seed", "compute", "train_autoencoder"),
    "train_defence": ("seed", "compute", *_TRAINING_DATA, "defences.${item.defence}"),
    "attack": ("seed", "compute", "attack"),
    "attack_defence": ("seed", "compute", "attack"),
    "evaluate": ("seed", "classifier", "train_classifier", "train_autoencoder", "selected_defences", "analyze.eps"),
    "analyze": ("seed", "compute", "selected_defences", "attack", "analyze", "report"),
    "simulate_labelling": (
        *("seed", "compute", *_LEARNER, "attack.norm", "attack.pgd", "attack.batch_size", "active_learning"),
    ),
    "active_learning": ("active_learning.acquisition_functions", "active_learning.downsampling_factor", "report"),
    "report": (
        *("seed", "compute", "acquire", "validate", "prepare", "classifier", "train_classifier", "train_surrogates"),
        *("train_autoencoder", "selected_defences", "attack", "analyze", "active_learning", "report"),
    ),
}
"""The parameters that each step reads, as in dvc.yaml (``tests/test_contracts.py`` compares the two)."""


class Params(Section):
    """All parameters of the pipeline; sections are named after the steps."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Seed of all random numbers."""
    compute: Compute
    acquire: Acquire
    validate_: Annotated[Validate, Field(alias="validate")]
    prepare: Prepare
    classifier: Classifier
    train_classifier: TrainClassifier
    train_surrogates: tuple[Surrogate, ...]
    """Classifiers that are trained independently of ``train_classifier``, each with its own seed: initial weights,
    order of the images and augmentation differ. Attacks on them are transferred to every target. Use at least two with
    different architectures; an empty list: no such attacks."""
    train_autoencoder: TrainAutoencoder
    selected_defences: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of the ``defences`` that are trained, attacked and analysed."""
    defences: dict[DefenceName, Defence]
    """Name of a defence -> its settings."""
    attack: Attack
    analyze: Analyze
    active_learning: ActiveLearning
    report: Report

    @model_validator(mode="after")
    def _defences_are_known(self) -> Self:
        if UNDEFENDED in self.defences:
            raise ValueError(
                f"defences.{UNDEFENDED}: this name is reserved for the undefended classifier. Choose another name"
            )
        names = self.selected_defences
        if unknown := [name for name in names if name not in self.defences]:
            raise ValueError(f"selected_defences: {unknown} must be among the names in defences, {list(self.defences)}")
        if len(set(names)) < len(names):
            raise ValueError(f"selected_defences {list(names)} must not repeat a name")
        if not any(isinstance(self.defences[name], Autoencoder) for name in names):
            raise ValueError(
                f"selected_defences: one of {list(names)} must be of the kind 'autoencoder', the defence of the study. "
                "The other defences are compared with it, and the detectors use it"
            )
        return self

    @model_validator(mode="after")
    def _given_split_has_no_folds(self) -> Self:
        if self.acquire.table.split and self.prepare.split.n_folds:
            raise ValueError(
                f"prepare.split.n_folds {self.prepare.split.n_folds}: the split of acquire.table.split is kept, so no "
                "folds are drawn. Set n_folds to 0, or leave acquire.table.split empty"
            )
        return self

    @model_validator(mode="after")
    def _analysed_images_are_saved(self) -> Self:
        saved = self.attack.analysed_eps
        allowed = f"must be among the saved eps {list(saved)}. See attack.saved_eps"
        if self.analyze.eps not in saved:
            raise ValueError(f"analyze.eps {self.analyze.eps:g} {allowed}")
        if unknown := sorted(set(self.analyze.detector_evasion.eps) - set(saved)):
            raise ValueError(f"analyze.detector_evasion.eps {unknown} {allowed}")
        return self

    @model_validator(mode="after")
    def _every_class_is_attacked(self) -> Self:
        n_classes = len(self.acquire.classes)
        limits = {
            "attack.max_images": self.attack.max_images,
            "attack.max_art_reference_images": self.attack.max_art_reference_images,
            "attack.max_black_box_images": self.attack.max_black_box_images,
            "attack.max_validation_images": self.attack.max_validation_images,
            "analyze.detector_evasion.max_images": self.analyze.detector_evasion.max_images,
            "active_learning.max_attacked_images": self.active_learning.max_attacked_images,
        }
        for name, limit in limits.items():
            if 0 < limit < n_classes:
                raise ValueError(
                    f"{name} {limit}: at least one image of each of the {n_classes} classes is needed, or 0 for all"
                )
        return self

    @model_validator(mode="after")
    def _active_learning_fits(self) -> Self:
        learning = self.active_learning
        if learning.adversarial_augmentation and (self.attack.norm != "linf" or learning.eps % 1):
            raise ValueError(
                "active_learning.adversarial_augmentation needs attack.norm linf and a whole number for "
                f"active_learning.eps, since the copies have 8 bits; got {self.attack.norm} and {learning.eps:g}"
            )
        oracle = self.active_learning.oracle
        if isinstance(oracle, NoisyOracle) and set(oracle.error_rate) != set(self.acquire.classes):
            raise ValueError(
                f"active_learning.oracle.error_rate has the classes {list(oracle.error_rate)}; exactly those of "
                f"acquire.classes {list(self.acquire.classes)} are needed"
            )
        return self

    def of_step(self, step: str, defence: str | None = None) -> dict[str, Any]:
        """The parameters that a step reads, by dotted key; the same as its stage's ``params`` in dvc.yaml.

        Args:
            step: name of the step.
            defence: name of the defence, for a step that runs once for each.
        """
        read = [entry.replace("${item.defence}", str(defence)) for entry in STEP_PARAMS[step]]
        return {key: value for key, value in self.flat().items() if any(f"{key}.".startswith(f"{e}.") for e in read)}

    def flat(self) -> dict[str, Any]:
        """All values by dotted key, as typed in params.yaml: ``{"attack.pgd.n_steps": 10, ...}``."""
        return flatten(json.loads(self.model_dump_json(by_alias=True, exclude_unset=True)))


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        key: leaf
        for name, child in values.items()
        for key, leaf in flatten(child, f"{prefix}.{name}" if prefix else name).items()
    }
