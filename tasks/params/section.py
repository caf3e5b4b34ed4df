"""What all sections of ``params.yaml`` are made of."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
CountOrOff = Annotated[int, Field(ge=0, lt=2**31)]
Architecture = Literal["plain", "residual", "unet", "residual_unet", "variational"]

Precision = Literal["float32", "bfloat16"]
"""Of products in networks, where these may be less exact than what is said of them."""

FRACTION_OF_RANGE = 0.1
"""Largest eps below which it must be meant as a fraction of the value range: a tenth of a grey level changes nothing
that a file of 8 bits keeps, and a tenth of the range is more than is attacked with."""


def check_unit(eps: float) -> None:
    """Refuse a radius that was given as a fraction of the value range, 0.031 where 8 (of 255) is meant.

    Raises:
        ValueError: the largest eps is below :data:`FRACTION_OF_RANGE`.
    """
    if eps < FRACTION_OF_RANGE:
        raise ValueError(
            f"eps is in units of 1/255, and {eps:g} looks like a fraction of the value range: write {255 * eps:.3g} "
            f"for a radius of {eps:g} of images in [0, 1]; the largest must be at least {FRACTION_OF_RANGE:g}"
        )


class Section(BaseModel):
    """A part of params.yaml: frozen, no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Training(Section):
    """What every training loop needs."""

    epochs: Count
    """Passes over the training images, at most."""
    batch_size: Annotated[int, Field(ge=2)]
    """Images a step; at least 2, for batch normalisation."""
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    """Of Adam."""
    schedule: Literal["constant", "cosine"]
    """Of the learning rate; ``cosine`` falls to zero over all epochs."""
    early_stopping: CountOrOff
    """Epochs without a better one on the validation images after which training ends; 0: never."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    """Decay a step of the exponential moving average of the weights; 0 keeps the last weights."""


class Noise(Section):
    """One kind of noise."""

    kind: Literal["gaussian", "uniform", "salt_pepper", "speckle"]
    """gaussian and uniform are added, salt_pepper replaces pixels by 0 or 1, speckle is gaussian times the pixel."""
    strength: Annotated[float, Field(gt=0, le=1)]
    """At most, drawn evenly from 0 up for each image. gaussian, speckle: standard deviation;
    uniform: half-width; salt_pepper: share of pixels. Images are in [0, 1]."""


class Pgd(Section):
    """Projected gradient descent."""

    n_steps: Count
    """Gradient steps of each start."""
    relative_step: Annotated[float, Field(gt=0, le=2)]
    """Size of a step over eps."""
    n_restarts: CountOrOff
    """Random starts; 0 starts once, at the image itself."""
