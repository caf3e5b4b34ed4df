"""The sections of ``params.yaml``, one a step."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tasks.params.active_learning import ActiveLearning, NoisyOracle
from tasks.params.defences import UNDEFENDED, Autoencoder, Defence, TrainedAutoencoder
from tasks.params.section import (
    Architecture,
    Count,
    CountOrOff,
    Fraction,
    Noise,
    Pgd,
    Positive,
    Precision,
    Section,
    Share,
    Training,
    check_unit,
)

DefenceName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class Compute(Section):
    """Where and how steps compute."""

    threads: Annotated[int, Field(ge=1, le=256)]
    """CPU threads that a step uses. Floating-point sums depend on it, so it belongs to the experiment."""
    device: Literal["auto", "cpu", "cuda", "mps"]
    """Where networks run; ``auto`` takes cuda, then mps, then cpu."""
    precision: Precision
    """Of convolutions and matrix products while networks are trained, and in the gradients of the sweep. Weights,
    losses, validation, and what an attack is said to have broken stay in float32."""


class Phantom(Section):
    """How many phantoms are drawn."""

    n_patients: Annotated[int, Field(ge=2)]
    """Patients over all classes."""
    n_slices: Count
    """Neighbouring slices of each patient."""


class Acquire(Section):
    """Where images come from, and their classes."""

    source: Literal["phantom", "folder", "kaggle"]
    """Where the images come from."""
    folder: Annotated[str, Field(min_length=1)]
    """Folder with one subfolder a class, outside ``data/``; read when ``source`` is ``folder``."""
    kaggle_dataset: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$")]
    """``owner/name`` of a Kaggle data set; read when ``source`` is ``kaggle``."""
    classes: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=2)]
    """Class names, which are the names of the subfolders; their order gives the label numbers."""
    positive_class: str
    """The class that precision, recall and F1 are about."""
    phantom: Phantom

    @field_validator("classes")
    @classmethod
    def _distinct_folder_names(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len({name.casefold() for name in classes}) < len(classes):
            raise ValueError("class names must differ, not only in case")
        for name in classes:
            if name in {".", ".."} or "/" in name or "\\" in name or "\0" in name:
                raise ValueError(f"{name!r} can't be a folder's name")
        return classes

    @field_validator("folder")
    @classmethod
    def _not_in_data(cls, folder: str) -> str:
        # the folders in there are emptied before their steps run
        if Path(folder).resolve().is_relative_to(Path("data").resolve()):
            raise ValueError("must lie outside data/, where only steps write")
        return folder

    @model_validator(mode="after")
    def _positive_class_is_a_class(self) -> Self:
        if self.positive_class not in self.classes:
            raise ValueError(f"positive_class {self.positive_class!r} must be one of classes {list(self.classes)}")
        return self


class Validate(Section):
    """What the data set must be like."""

    min_side: Count
    """Pixels that the shorter side has at least."""
    max_side: Count
    """Pixels that the longer side has at most."""
    max_megapixels: Positive
    """Millions of pixels above which an image is refused before it is decoded."""
    min_images_per_class: Count
    """Images of every class, at least."""
    max_imbalance: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    """Images of the largest class over images of the smallest, at most."""
    max_exact_duplicates: Share
    """Share of images, at most, whose decoded pixels equal those of an earlier image."""
    near_duplicate_correlation: Fraction
    """Pearson correlation of 32 x 32 thumbnails from which two images are near-duplicates."""
    neighbour_correlation: Fraction
    """Same correlation from which two slices that follow each other are taken for one patient's."""

    @model_validator(mode="after")
    def _sides_ordered(self) -> Self:
        if self.min_side > self.max_side:
            raise ValueError(f"min_side {self.min_side} must not be above max_side {self.max_side}")
        return self


class Split(Section):
    """How images are split into training, validation and test."""

    strategy: Literal["stratified", "grouped"]
    """``stratified`` draws single slices; ``grouped`` keeps a patient's slices on one side."""
    test_fraction: Fraction
    """Share of all images."""
    validation_fraction: Fraction
    """Share of the images that are not test images."""


class Prepare(Section):
    """What networks see."""

    image_size: Annotated[int, Field(ge=32, le=1024, multiple_of=32)]
    """Height and width in pixels, a multiple of 32."""
    split: Split


class Augmentation(Section):
    """Random changes of training images."""

    flip: Share
    """Probability of a left-right flip."""
    rotation: Annotated[float, Field(ge=0, le=180)]
    """Degrees, at most, either way."""
    scale: Annotated[float, Field(ge=0, lt=1)]
    """Share by which an image is enlarged or shrunk, at most."""
    translation: Annotated[float, Field(ge=0, lt=1)]
    """Share of the side by which an image is moved, at most."""
    brightness: Share
    """Share of the value range added or taken away, at most."""
    contrast: Annotated[float, Field(ge=0, lt=1)]
    """Share by which differences from the mean grey are stretched or squeezed, at most."""


class TrainClassifier(Training):
    """The classifier and its training."""

    architecture: Annotated[str, Field(min_length=1)]
    """``cnn`` (ours) or the name of a torchvision classifier."""
    pretrained: bool
    """Begin with torchvision's weights; not for ``cnn``."""
    augmentation: Augmentation

    @model_validator(mode="after")
    def _cnn_has_no_weights(self) -> Self:
        if self.pretrained and self.architecture == "cnn":
            raise ValueError("pretrained weights exist for torchvision architectures only, not for 'cnn'")
        return self


class TrainAutoencoder(Training):
    """The denoising autoencoder and its training."""

    architecture: Architecture
    """See :mod:`tasks.models.autoencoder`."""
    noises: Annotated[tuple[Noise, ...], Field(min_length=1)]
    """One of these is drawn for each image."""
    clean_share: Annotated[float, Field(ge=0, lt=1)]
    """Share of each batch that is left without noise."""


class Sweep(Section):
    """A stronger PGD that looks for the smallest eps that breaks each image."""

    n_steps: Count
    """Gradient steps of each start."""
    n_restarts: CountOrOff
    """Random starts of the images that withstand the first."""


class Suite(Section):
    """Stronger and other attacks, for the smallest eps that breaks each image."""

    n_steps: CountOrOff
    """Gradients of each try by Auto-PGD and DeepFool on what withstands the sweep; 0: neither."""
    n_queries: CountOrOff
    """Scores that the Square attack asks for, of each image at each eps that it tries; 0: no such attack."""
    n_label_queries: CountOrOff
    """Labels that HopSkipJump asks for, about, of each image; 0: no such attack."""
    max_label_images: Count
    """Of the attacked images, those that HopSkipJump is tried on, stratified."""


class Attack(Section):
    """Attacks on the test images."""

    norm: Literal["linf", "l2"]
    """Norm of the perturbations' ball."""
    eps: Annotated[tuple[Annotated[float, Field(gt=0, le=255)], ...], Field(min_length=1)]
    """Radii in units of 1/255 of the value range, rising. For l2 the radius is
    eps / 255 * sqrt(number of pixels), so that eps is the root-mean-square change of a pixel."""
    mode: Literal["fast", "reference"]
    """``fast``: our own FGSM and PGD; ``reference``: ART's classes, one eps after the other, to hold ours against."""
    attacks: Annotated[tuple[Literal["fgsm", "pgd"], ...], Field(min_length=1)]
    """Attacks that every target meets."""
    pgd: Pgd
    sweep: Sweep
    suite: Suite
    max_images: CountOrOff
    """Test images that are attacked, stratified by class; 0: all."""
    batch_size: Count
    """Images that are attacked at once."""
    keep_eps: tuple[float, ...]
    """Those of ``eps`` that are analysed; none named: all. Adversarial images of defences are kept for these alone,
    those of the bare classifier for all, since they are transferred."""

    @model_validator(mode="after")
    def _lists_make_sense(self) -> Self:
        if list(self.eps) != sorted(set(self.eps)):
            raise ValueError(f"eps must rise without repeats, not {list(self.eps)}")
        check_unit(self.eps[-1])
        if len(set(self.keep_eps)) < len(self.keep_eps):
            raise ValueError(f"keep_eps must not repeat, not {list(self.keep_eps)}")
        if len(set(self.attacks)) < len(self.attacks):
            raise ValueError(f"attacks must not repeat, not {list(self.attacks)}")
        if self.sweep.n_steps < self.pgd.n_steps:
            raise ValueError(
                f"sweep.n_steps {self.sweep.n_steps} must not be below pgd.n_steps {self.pgd.n_steps}: the sweep is "
                "the stronger attack, against which PGD is checked"
            )
        if self.norm == "l2" and self.suite.n_queries:
            raise ValueError(
                f"suite.n_queries must be 0 with norm l2, not {self.suite.n_queries}: the Square attack moves in linf "
                "balls; HopSkipJump (suite.n_label_queries) asks for labels in either"
            )
        if unknown := sorted(set(self.keep_eps) - set(self.eps)):
            raise ValueError(f"keep_eps {unknown} must be among eps {list(self.eps)}")
        return self

    @property
    def kept_eps(self) -> tuple[float, ...]:
        """Those of ``eps`` whose adversarial images are kept, rising."""
        return tuple(sorted(set(self.keep_eps))) or self.eps


class Evasion(Section):
    """Attacks that know a detector and evade it."""

    eps: tuple[float, ...]
    """Those of the kept eps at which every detector is attacked; none: no such attacks."""
    n_steps: Count
    """Gradient steps; their size over eps is ``attack.pgd.relative_step``."""
    max_images: CountOrOff
    """Of the attacked images, the first so many by seeded choice, stratified; 0: all."""

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        if len(set(self.eps)) < len(self.eps):
            raise ValueError(f"eps must not repeat, not {list(self.eps)}")
        return self


class Analyze(Section):
    """The study's analyses, of the adversarial images that were kept."""

    eps: Positive
    """The one of the kept eps at which the study's claims are judged."""
    n_resamples: Annotated[int, Field(ge=100)]
    """Bootstrap resamples behind 95 % intervals."""
    false_positive_rate: Fraction
    """Share of clean validation images, at most, above a detector's threshold."""
    evasion: Evasion


_TRAINING_DATA = ("train_classifier.augmentation", "train_autoencoder.noises", "train_autoencoder.clean_share")
_LEARNER = ("train_classifier.architecture", "train_classifier.pretrained", "train_classifier.augmentation")
STEP_PARAMS: dict[str, tuple[str, ...]] = {
    "acquire": ("seed", "acquire"),
    "validate": ("acquire", "validate"),
    "prepare": ("seed", "acquire", "prepare"),
    "train_classifier": ("seed", "compute", "train_classifier"),
    "train_autoencoder": ("seed", "compute", "train_autoencoder"),
    "train_defence": ("seed", "compute", *_TRAINING_DATA, "defences.${item.defence}"),
    "attack": ("seed", "compute", "attack"),
    "attack_defence": ("seed", "compute", "attack", "defences.${item.defence}"),
    "evaluate": ("benchmark", "defences"),
    "analyze": ("seed", "compute", "benchmark", "defences", "attack", "analyze"),
    "active_learning": (
        *("seed", "compute", *_LEARNER, "attack.norm", "attack.pgd", "attack.batch_size", "active_learning"),
    ),
    "report": (
        *("seed", "compute", "acquire", "validate", "prepare", "train_classifier", "train_autoencoder"),
        *("benchmark", "defences", "attack", "analyze", "active_learning"),
    ),
}
"""The parameters that each step reads, as in dvc.yaml (``tests/test_contracts.py`` compares the two)."""


class Params(Section):
    """All parameters of the pipeline; sections are named after the steps."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Of everything that is drawn at random."""
    compute: Compute
    acquire: Acquire
    validate_: Annotated[Validate, Field(alias="validate")]
    prepare: Prepare
    train_classifier: TrainClassifier
    train_autoencoder: TrainAutoencoder
    benchmark: Annotated[tuple[str, ...], Field(min_length=1)]
    """Defences that are trained, attacked and analysed, by their names in ``defences``."""
    defences: dict[DefenceName, Defence]
    """What can stand in front of the classifier, by the name that tables give it."""
    attack: Attack
    analyze: Analyze
    active_learning: ActiveLearning

    @model_validator(mode="after")
    def _defences_are_known(self) -> Self:
        if UNDEFENDED in self.defences:
            raise ValueError(f"defences.{UNDEFENDED}: this is the name of the bare classifier; choose another")
        if unknown := [name for name in self.benchmark if name not in self.defences]:
            raise ValueError(f"benchmark: {unknown} must be among the names in defences, {list(self.defences)}")
        if len(set(self.benchmark)) < len(self.benchmark):
            raise ValueError(f"benchmark must not repeat a name, not {list(self.benchmark)}")
        if not any(isinstance(self.defences[name], Autoencoder) for name in self.benchmark):
            raise ValueError(
                f"benchmark: one of {list(self.benchmark)} must be of the kind 'autoencoder', the study's defence, "
                "which the others are compared with and what detectors look through"
            )
        return self

    @model_validator(mode="after")
    def _analysed_images_are_kept(self) -> Self:
        kept = self.attack.kept_eps
        allowed = f"must be among the eps whose images are kept {list(kept)}; see attack.keep_eps"
        if self.analyze.eps not in kept:
            raise ValueError(f"analyze.eps {self.analyze.eps:g} {allowed}")
        if unknown := sorted(set(self.analyze.evasion.eps) - set(kept)):
            raise ValueError(f"analyze.evasion.eps {unknown} {allowed}")
        return self

    @model_validator(mode="after")
    def _every_class_is_attacked(self) -> Self:
        n_classes = len(self.acquire.classes)
        limits = {
            "attack.max_images": self.attack.max_images,
            "attack.suite.max_label_images": self.attack.suite.max_label_images,
            "analyze.evasion.max_images": self.analyze.evasion.max_images,
            "active_learning.max_images": self.active_learning.max_images,
        }
        for name, limit in limits.items():
            if 0 < limit < n_classes:
                raise ValueError(
                    f"{name}: {limit} images can't stand for {n_classes} classes; at least {n_classes}, or 0 for all"
                )
        return self

    @model_validator(mode="after")
    def _active_learning_fits(self) -> Self:
        if self.active_learning.adversarial_copies and (self.attack.norm != "linf" or self.active_learning.eps % 1):
            raise ValueError(
                "active_learning.adversarial_copies are kept in 8 bits, so they need attack.norm linf and a whole "
                f"number for active_learning.eps, not {self.attack.norm} and {self.active_learning.eps:g}"
            )
        oracle = self.active_learning.oracle
        if isinstance(oracle, NoisyOracle) and set(oracle.error_rate) != set(self.acquire.classes):
            raise ValueError(
                f"active_learning.oracle.error_rate names the classes {list(oracle.error_rate)}; it needs a rate for "
                f"each of acquire.classes {list(self.acquire.classes)}, and for no other"
            )
        return self

    @property
    def autoencoders(self) -> list[str]:
        """Those of the benchmark that put an autoencoder before the undefended classifier, the study's first."""
        kinds = (Autoencoder, TrainedAutoencoder)
        return [name for kind in kinds for name in self.benchmark if isinstance(self.defences[name], kind)]

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

        def walk(prefix: str, value: Any) -> dict[str, Any]:
            if not isinstance(value, dict):
                return {prefix: value}
            return {
                key: leaf
                for name, child in value.items()
                for key, leaf in walk(f"{prefix}.{name}" if prefix else name, child).items()
            }

        return walk("", json.loads(self.model_dump_json(by_alias=True)))
