"""The section ``active_learning``: acquisition functions, oracle and training of the simulated experiment."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from tasks.params.section import Count, CountOrOff, Fraction, Section, Share, Training, check_unit, not_bool

Acquisition = Literal[
    "random",
    "entropy",
    "margin",
    "least_confidence",
    "bald",
    "core_set",
    "adversarial_margin",
    "deepfool",
    "adversarial_entropy",
]


class GroundTruth(Section):
    """An oracle that always returns the true class."""

    kind: Literal["ground_truth"]
    """Type of the oracle."""


class NoisyOracle(Section):
    """An oracle with random errors, which are the same for every acquisition function."""

    kind: Literal["noisy"]
    """Type of the oracle."""
    error_rate: Annotated[dict[str, Share], Field(min_length=1)]
    """Name of the true class -> probability that the oracle returns another class, each equally likely."""


class PseudoLabelOracle(Section):
    """The model itself: confident predictions become labels, and only such images are queried."""

    kind: Literal["pseudo_label"]
    """Type of the oracle."""
    confidence_threshold: Annotated[float, Field(gt=0, lt=1)]
    """Minimum confidence (largest softmax probability) at which the prediction becomes the label."""


Oracle = Annotated[GroundTruth | NoisyOracle | PseudoLabelOracle, Field(discriminator="kind")]


class InitialSet(Section):
    """The labelled images before the first query."""

    strategy: Literal["stratified", "grouped"]
    """``grouped`` draws whole groups, the next one from the class that lacks most of its share; ``stratified`` draws
    single images in the proportions of the classes."""
    fraction: Fraction
    """Fraction of the training images."""


class ActiveLearning(Section):
    """Cycles of active learning: train, query images from the pool, label them by the oracle, train again."""

    acquisition_functions: tuple[Acquisition, ...]
    """Acquisition functions to compare; ``random`` is always included."""
    n_seeds: Count
    """Runs of each acquisition function; the runs of all functions start from the same initial sets. A comparison with
    ``random`` needs at least 10."""
    downsampling_factor: Annotated[Literal[1, 2, 4, 8], BeforeValidator(not_bool)]
    """``prepare.image_size`` divided by the image size of this experiment; squares of pixels are averaged."""
    initial_set: InitialSet
    query_fraction: Fraction
    """Maximum fraction of the training images that each cycle queries."""
    n_cycles: Count
    """Maximum number of queries."""
    budget: CountOrOff
    """Maximum number of labels after the initial set; 0: as many as the cycles query."""
    training: Training
    """Training on the initial set, and in every cycle without a warm start."""
    reference_training: Training
    """Training of the reference on the labels of all training images. It stops when the accuracy on validation images
    stops rising; ``epochs`` is the maximum, which should not be reached."""
    warm_start_epochs: CountOrOff
    """Epochs of each later cycle, which starts from the weights before; 0: every cycle starts from random weights."""
    dropout: Annotated[float, Field(ge=0, lt=1)]
    """Fraction of the penultimate features that is dropped in training and in the samples of ``bald``."""
    n_dropout_samples: Annotated[int, Field(ge=2)]
    """Monte-Carlo dropout samples of ``bald``."""
    oracle: Oracle
    adversarial_augmentation: bool
    """True if the training also uses an adversarial copy of each image of the last query."""
    eps: Annotated[float, Field(gt=0, le=255)]
    """eps of all attacks of this section, in 1/255."""
    max_attacked_images: CountOrOff
    """Number of test images that are attacked in each cycle, chosen like ``attack.max_images``; 0: all."""

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        check_unit(self.eps)
        names = self.acquisition_functions
        if len(set(names)) < len(names):
            raise ValueError(f"acquisition_functions {list(names)} must not repeat a name")
        if "bald" in names and not self.dropout:
            raise ValueError("dropout must be above 0 for the acquisition function 'bald'")
        if self.initial_set.fraction + self.query_fraction > 1:
            raise ValueError(
                f"initial_set.fraction {self.initial_set.fraction:g} and query_fraction {self.query_fraction:g} "
                "together must be at most 1"
            )
        return self

    @property
    def compared_functions(self) -> tuple[str, ...]:
        """``random``, then the other acquisition functions."""
        return tuple(dict.fromkeys(("random", *self.acquisition_functions)))
