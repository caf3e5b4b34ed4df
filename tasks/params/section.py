"""What all sections of ``params.yaml`` are made of."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
CountOrOff = Annotated[int, Field(ge=0)]
Architecture = Literal["plain", "residual", "unet", "residual_unet", "variational"]


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
