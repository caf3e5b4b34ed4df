"""The section ``active_learning``: which images are labelled next, by whom, and what is learned from them."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from tasks.params.section import Count, CountOrOff, Fraction, Section, Share, Training, check_unit

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


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        # which Literal takes for 1
        raise ValueError("must be a number")
    return value


class Truth(Section):
    """An oracle that is always right."""

    kind: Literal["truth"]
    """Who labels."""


class NoisyOracle(Section):
    """An oracle that is wrong now and then, about the same images whoever asks."""

    kind: Literal["noisy"]
    """Who labels."""
    error_rate: Annotated[dict[str, Share], Field(min_length=1)]
    """By the name of the true class: the probability that another class is told, each other one as likely."""


class PseudoLabels(Section):
    """The model itself, where it is sure; only such images are queried."""

    kind: Literal["pseudo"]
    """Who labels."""
    confidence: Annotated[float, Field(gt=0, lt=1)]
    """Largest probability of the softmax from which the model's prediction becomes the label."""


Oracle = Annotated[Truth | NoisyOracle | PseudoLabels, Field(discriminator="kind")]


class Start(Section):
    """The images that are labelled before the first query."""

    selection: Literal["stratified", "grouped"]
    """``stratified`` draws single images in the classes' proportions; ``grouped`` draws whole groups (patients)."""
    share: Fraction
    """Of the training images."""


class ActiveLearning(Section):
    """Labels are asked for in cycles: train, choose from the pool, ask the oracle, train again."""

    acquisition: tuple[Acquisition, ...]
    """How images are chosen; ``random`` is always run beside."""
    n_seeds: Count
    """Runs of each acquisition function; all functions share the starts of these runs."""
    shrink: Annotated[Literal[1, 2, 4, 8], BeforeValidator(_not_bool)]
    """``prepare.image_size`` over the size that is learned from; squares of pixels are averaged."""
    start: Start
    query: Fraction
    """Share of the training images that each cycle asks for, at most."""
    n_cycles: Count
    """Queries, at most."""
    budget: CountOrOff
    """Labels, at most, that are asked for after the start; 0: as many as the cycles ask for."""
    training: Training
    """Of the start, and of every cycle that does not go on from the weights before."""
    warm_start_epochs: CountOrOff
    """Epochs of each later cycle, which goes on from the weights before; 0: every cycle begins anew."""
    dropout: Annotated[float, Field(ge=0, lt=1)]
    """Share of the penultimate features that are dropped in training, and in the passes of ``bald``."""
    n_passes: Annotated[int, Field(ge=2)]
    """Passes with dropout that ``bald`` compares."""
    oracle: Oracle
    """Who labels."""
    adversarial_copies: bool
    """Whether queried images join the training a second time, attacked as they were queried."""
    eps: Annotated[float, Field(gt=0, le=255)]
    """Radius of all attacks of this section, as in ``attack.eps``."""
    max_images: CountOrOff
    """Test images that are attacked in each cycle, stratified; 0: all."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        check_unit(self.eps)
        if len(set(self.acquisition)) < len(self.acquisition):
            raise ValueError(f"acquisition must not repeat, not {list(self.acquisition)}")
        if "bald" in self.acquisition and not self.dropout:
            raise ValueError("dropout must be above 0 with the acquisition 'bald', whose passes differ by it")
        if self.start.share + self.query > 1:
            raise ValueError(
                f"start.share {self.start.share:g} and query {self.query:g} together are more than all training images"
            )
        return self

    @property
    def functions(self) -> tuple[str, ...]:
        """``random``, then the others of ``acquisition``."""
        return tuple(dict.fromkeys(("random", *self.acquisition)))
