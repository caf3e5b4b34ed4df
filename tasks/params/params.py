"""The sections of ``params.yaml``, one for each step."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tasks.params.active_learning import ActiveLearning, NoisyOracle
from tasks.params.classifier import Classifier
from tasks.params.defences import UNDEFENDED, Autoencoder, Defence
from tasks.params.images import Intensity, OwnExpectation, Table, Volumes
from tasks.params.section import (
    Architecture,
    Count,
    CountOrOff,
    DottedPath,
    Fraction,
    Noise,
    Pgd,
    Positive,
    Precision,
    Section,
    Share,
    Training,
    WithArguments,
    check_unit,
)

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


class Phantom(Section):
    """Number of phantoms."""

    n_patients: Annotated[int, Field(ge=2)]
    """Patients over all classes."""
    n_slices_per_patient: Count
    """Adjacent slices of each patient."""


class Acquire(Section):
    """Source and classes of the images."""

    source: Literal["phantom", "folder", "kaggle"]
    """Source of the images; ``phantom`` draws computer-made CT slices."""
    folder: Annotated[str, Field(min_length=1)]
    """Folder with one subfolder for each class, outside ``data/``; used if ``source`` is ``folder``."""
    kaggle_dataset: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$")]
    """``owner/name`` of a Kaggle data set; used if ``source`` is ``kaggle``."""
    classes: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=2)]
    """Names of the classes and of their subfolders; the order determines the label numbers."""
    positive_class: str
    """Class of precision, recall and F1."""
    phantom: Phantom
    volumes: Volumes
    table: Table

    @field_validator("classes")
    @classmethod
    def _distinct_folder_names(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len({name.casefold() for name in classes}) < len(classes):
            raise ValueError(f"class names {list(classes)} must differ by more than upper and lower case")
        for name in classes:
            if name in {".", ".."} or "/" in name or "\\" in name or "\0" in name:
                raise ValueError(f"{name!r} is not a valid folder name")
            if name.startswith(("=", "+", "-", "@")):
                # the tables of all steps contain the names of classes
                raise ValueError(f"{name!r} begins with =, +, - or @, which spreadsheet programs take for a formula")
        return classes

    @field_validator("folder")
    @classmethod
    def _not_in_data(cls, folder: str) -> str:
        # a step empties its folder below data/ before it runs
        if Path(folder).expanduser().resolve().is_relative_to(Path("data").resolve()):
            raise ValueError(f"{folder} is inside data/, where only steps write. Use a folder outside data/")
        return folder

    @model_validator(mode="after")
    def _positive_class_is_a_class(self) -> Self:
        if self.positive_class not in self.classes:
            raise ValueError(f"positive_class {self.positive_class!r} must be one of classes {list(self.classes)}")
        return self


class Validate(Section):
    """Requirements on the data set."""

    min_side: Count
    """Minimum length of the shorter side, in pixels."""
    max_side: Count
    """Maximum length of the longer side, in pixels."""
    max_megapixels: Positive
    """Maximum number of pixels, in millions; a larger image is rejected before it is decoded."""
    min_images_per_class: Count
    """Minimum number of images of every class."""
    max_imbalance_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    """Maximum ratio of the numbers of images of the largest and of the smallest class."""
    max_exact_duplicate_fraction: Share
    """Maximum fraction of images whose pixels are equal to those of an earlier image."""
    near_duplicate_correlation: Fraction
    """Pearson correlation of 32 x 32 thumbnails at and above which two images are near-duplicates."""
    same_group_correlation: Fraction
    """The same correlation at and above which two consecutive images are put into one inferred group."""
    expectations: tuple[OwnExpectation, ...]
    """Expectations of your own beside those that always run."""

    @model_validator(mode="after")
    def _sides_ordered(self) -> Self:
        if self.min_side > self.max_side:
            raise ValueError(f"min_side {self.min_side} must not be above max_side {self.max_side}")
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [expectation.name for expectation in self.expectations]
        if len(set(names)) < len(names):
            raise ValueError(f"the names of expectations must differ: {', '.join(names)}")
        return self


class Split(Section):
    """Split into training, validation and test images."""

    strategy: Literal["auto", "stratified", "grouped"]
    """``stratified`` draws single images; ``grouped`` keeps all images of a group (a patient, if ids are given) in one
    split. ``auto``: ``grouped`` with patient ids and for a folder of your own, otherwise ``stratified``. A split in
    ``acquire.table`` is kept."""
    test_fraction: Fraction
    """Fraction of all images."""
    validation_fraction: Fraction
    """Fraction of the images that are not test images."""


class Prepare(Section):
    """Image size and split."""

    image_size: Annotated[int, Field(ge=32, le=1024, multiple_of=32)]
    """Height and width in pixels, a multiple of 32."""
    intensity: Intensity
    split: Split


class Augmentation(Section):
    """Random augmentation of the training images."""

    horizontal_flip_probability: Share
    """Probability of a horizontal flip."""
    rotation: Annotated[float, Field(ge=0, le=180)]
    """Maximum rotation in either direction, in degrees."""
    scale: Annotated[float, Field(ge=0, lt=1)]
    """Maximum relative enlargement or reduction."""
    translation: Annotated[float, Field(ge=0, lt=1)]
    """Maximum shift as a fraction of the side."""
    brightness: Share
    """Maximum change of brightness as a fraction of the value range."""
    contrast: Annotated[float, Field(ge=0, lt=1)]
    """Maximum relative change of contrast."""


class TrainClassifier(Training):
    """The classifier and its training."""

    architecture: Annotated[str, Field(min_length=1)]
    """``cnn`` (ours) or the name of a torchvision classifier."""
    pretrained: bool
    """Start from torchvision's pretrained weights; not for ``cnn``."""
    augmentation: Augmentation

    @model_validator(mode="after")
    def _cnn_has_no_weights(self) -> Self:
        if self.pretrained and self.architecture == "cnn":
            raise ValueError("pretrained: true is not possible for the architecture 'cnn', only for torchvision's")
        return self


class Surrogate(Section):
    """A classifier of an attacker without access to ours; its other settings are those of ``train_classifier``."""

    architecture: Annotated[str, Field(min_length=1)]
    """``cnn`` (ours) or the name of a torchvision classifier."""
    epochs: Count
    """Maximum number of passes over the training images."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Learning rate of Adam; without this key, that of ``train_classifier``."""

    def training(self, settings: TrainClassifier) -> TrainClassifier:
        """Settings of the training: those of ``train_classifier``, changed by the keys of this row."""
        pretrained = settings.pretrained and self.architecture != "cnn"
        own = self.model_dump(exclude_none=True) | {"pretrained": pretrained}
        return settings.model_copy(update=own)


class TrainAutoencoder(Training):
    """The denoising autoencoder and its training."""

    architecture: Architecture
    """See :mod:`tasks.models.autoencoder`."""
    noise_types: Annotated[tuple[Noise, ...], Field(min_length=1)]
    """Types of noise, of which one is drawn for each image."""
    clean_fraction: Annotated[float, Field(ge=0, lt=1)]
    """Fraction of each batch without noise."""


class ArtAttack(WithArguments):
    """An evasion attack of the Adversarial Robustness Toolbox; further keys are arguments of its class."""

    art: Annotated[str, Field(min_length=1)]
    """Name of a class of ``art.attacks.evasion``."""


class PluginAttack(WithArguments):
    """An attack of your own; further keys are arguments of its function. See ``docs/how-to/own-defence.md``."""

    plugin: DottedPath
    """``package.module:function`` of a Python file in ``plugins/`` or of an installed package."""


class Attack(Section):
    """Attacks on the test images."""

    fixed_sensitivity: Annotated[float, Field(gt=0, lt=1)]
    """Fraction of the positive validation images that are predicted positive at the operating point
    ``fixed_sensitivity``, at which the targets are compared; for two classes."""
    norm: Literal["linf", "l2"]
    """Norm of the ball around an image."""
    eps: Annotated[tuple[Annotated[float, Field(gt=0, le=255)], ...], Field(min_length=1)]
    """Grid of radii in units of 1/255 of the value range, rising. For l2 the radius is
    eps / 255 * sqrt(number of pixels), so that eps is the root-mean-square change of a pixel."""
    attacks: Annotated[tuple[Literal["fgsm", "pgd", "pgd_8_bit"] | ArtAttack | PluginAttack, ...], Field(min_length=1)]
    """Attacks at every eps of the grid, for the curves of accuracy against eps: ``fgsm``, ``pgd``;
    ``pgd_8_bit``, in steps of whole grey levels, whose images have 8 bits (linf; unchanged below eps 1); and rows
    ``{art: ClassName, ...arguments}`` for any evasion attack of ART that accepts a PyTorch classifier, and
    ``{plugin: package.module:function, ...arguments}`` for an attack of your own."""
    max_art_reference_images: CountOrOff
    """Attacked images, stratified by class, on which ART's own FGSM and PGD are compared with ours; 0: all."""
    pgd: Pgd
    effort: Literal["quick", "standard", "exhaustive"]
    """Effort of the white-box suite and of the black-box attacks; a higher effort includes what a lower one found.
    Published results need ``standard``. See ``docs/reference/checks.md`` and :mod:`tasks.attacks.effort`."""
    max_black_box_images: CountOrOff
    """Attacked images, stratified by class, on which black-box attacks run without the white-box results, for their
    power; 0: all."""
    max_images: CountOrOff
    """Number of attacked test images, stratified by class; 0: all."""
    max_validation_images: CountOrOff
    """Validation images, stratified by class, that the sweep attacks; 0: all. Any choice among targets uses their
    accuracy, so that test images stay unused until then."""
    batch_size: Count
    """Images of one forward pass."""
    saved_eps: tuple[float, ...]
    """The eps of the grid that are analysed; empty: all. Adversarial images of defences are saved for these alone,
    those of the bare classifier for all eps, since they are transferred."""

    @model_validator(mode="after")
    def _lists_make_sense(self) -> Self:
        if list(self.eps) != sorted(set(self.eps)):
            raise ValueError(f"eps {list(self.eps)} must rise without repeats")
        check_unit(self.eps[-1])
        if len(set(self.saved_eps)) < len(self.saved_eps):
            raise ValueError(f"saved_eps {list(self.saved_eps)} must not repeat a value")
        if self.eight_bit_attacks and self.norm != "linf":
            raise ValueError(f"attacks: pgd_8_bit needs norm linf, not {self.norm}. Remove it, or set norm to linf")
        names = [row for row in self.attacks if isinstance(row, str)] + [*self.art_attacks, *self.plugin_attacks]
        if len(set(names)) < len(self.attacks):
            raise ValueError(f"attacks {names} must not repeat a name")
        if not self.own_attacks:
            raise ValueError(f"attacks {names} must contain fgsm or pgd, whose adversarial images are transferred")
        if unknown := sorted(set(self.saved_eps) - set(self.eps)):
            raise ValueError(f"saved_eps {unknown} must be among eps {list(self.eps)}")
        return self

    @property
    def own_attacks(self) -> tuple[str, ...]:
        """FGSM and PGD of this project, as far as ``attacks`` names them; their adversarial images are saved."""
        return tuple(row for row in self.attacks if isinstance(row, str) and row != "pgd_8_bit")

    @property
    def eight_bit_attacks(self) -> tuple[str, ...]:
        """``pgd_8_bit``, if ``attacks`` names it. Its images count in the records and in the worst case."""
        return tuple(row for row in self.attacks if row == "pgd_8_bit")

    @property
    def art_attacks(self) -> dict[str, ArtAttack]:
        """Rows for attacks of ART, by the name of the attack in the records."""
        return {f"art_{row.art}": row for row in self.attacks if isinstance(row, ArtAttack)}

    @property
    def plugin_attacks(self) -> dict[str, PluginAttack]:
        """Rows for attacks of the user's, by the name of the attack in the records."""
        rows = [row for row in self.attacks if isinstance(row, PluginAttack)]
        return {f"plugin_{row.plugin.rpartition(':')[2]}": row for row in rows}

    @property
    def analysed_eps(self) -> tuple[float, ...]:
        """The eps whose adversarial images are saved and analysed, rising."""
        return tuple(sorted(set(self.saved_eps))) or self.eps


class DetectorEvasion(Section):
    """Adaptive attacks on the classifier and each detector, and on the classifier and all detectors at once."""

    eps: tuple[float, ...]
    """The saved eps at which every detector is attacked; empty: no such attacks."""
    n_steps: Annotated[int, Field(ge=100, le=1000)]
    """Maximum number of gradient steps of each start; a start ends when the image is misclassified and its score is
    near that of a typical clean image. The relative step size is ``attack.pgd.relative_step_size``."""
    n_random_starts: Annotated[int, Field(ge=1, le=20)]
    """Random starts of the images that are still flagged or correct after the start at the image of PGD."""
    max_images: CountOrOff
    """Number of attacked images, stratified by class; 0: all."""

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        if len(set(self.eps)) < len(self.eps):
            raise ValueError(f"eps {list(self.eps)} must not repeat a value")
        return self


class ClaimBounds(Section):
    """Bounds by which the claims of the study are judged. The report shows the results with other bounds, too."""

    study_accuracy: Fraction
    """Accuracy that the classifier must reach."""
    separable_auroc: Fraction
    """AUROC from which two sets count as separable (Hosmer and Lemeshow 2013, "Applied Logistic Regression")."""
    min_accuracy_gain: Fraction
    """Gain in balanced accuracy from which retraining counts as helpful."""
    min_restored_fraction: Fraction
    """Fraction of the lost balanced accuracy that a defence must restore to count as helpful."""


class Analyze(Section):
    """Analyses of the saved adversarial images."""

    eps: Positive
    """The reported eps: claims, headline, model card and promotion use it. It is one of the saved eps."""
    false_positive_rate: Fraction
    """Maximum fraction of clean validation images above the threshold of a detector."""
    claim_bounds: ClaimBounds
    detector_evasion: DetectorEvasion


_TRAINING_DATA = ("train_classifier.augmentation", "train_autoencoder.noise_types", "train_autoencoder.clean_fraction")
_LEARNER = ("train_classifier.architecture", "train_classifier.pretrained", "train_classifier.augmentation")
STEP_PARAMS: dict[str, tuple[str, ...]] = {
    "check_params": (
        *("seed", "compute", "acquire", "validate", "prepare", "classifier", "train_classifier", "train_surrogates"),
        *("train_autoencoder", "selected_defences", "defences", "attack", "analyze", "active_learning"),
    ),
    "acquire": ("seed", "acquire"),
    "validate": ("acquire", "validate", "prepare.intensity"),
    "prepare": ("seed", "acquire", "prepare"),
    "train_classifier": ("seed", "compute", "classifier", "train_classifier"),
    "train_surrogates": ("seed", "compute", "train_classifier", "train_surrogates"),
    "train_autoencoder": ("seed", "compute", "train_autoencoder"),
    "train_defence": ("seed", "compute", *_TRAINING_DATA, "defences.${item.defence}"),
    "attack": ("seed", "compute", "attack"),
    "attack_defence": ("seed", "compute", "attack"),
    "evaluate": ("seed", "classifier", "train_classifier", "train_autoencoder", "selected_defences", "analyze.eps"),
    "analyze": ("seed", "compute", "selected_defences", "attack", "analyze"),
    "active_learning": (
        *("seed", "compute", *_LEARNER, "attack.norm", "attack.pgd", "attack.batch_size", "active_learning"),
    ),
    "report": (
        *("seed", "compute", "acquire", "validate", "prepare", "classifier", "train_classifier", "train_surrogates"),
        *("train_autoencoder", "selected_defences", "attack", "analyze", "active_learning"),
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
    order of the images and augmentation differ. Attacks on them are transferred to every target. At least two with
    different architectures are recommended; an empty list: no such attacks."""
    train_autoencoder: TrainAutoencoder
    selected_defences: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of the ``defences`` that are trained, attacked and analysed."""
    defences: dict[DefenceName, Defence]
    """Name of a defence -> its settings."""
    attack: Attack
    analyze: Analyze
    active_learning: ActiveLearning

    @model_validator(mode="after")
    def _defences_are_known(self) -> Self:
        if UNDEFENDED in self.defences:
            raise ValueError(
                f"defences.{UNDEFENDED}: this name is reserved for the bare classifier. Choose another name"
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
    def _analysed_images_are_kept(self) -> Self:
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
