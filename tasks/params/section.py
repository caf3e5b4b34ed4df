"""Types and sections that all sections of ``params.yaml`` share."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
"""From 0 to 1, both included."""
Fraction = Annotated[float, Field(gt=0, lt=1)]
"""Above 0 and below 1."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
CountOrOff = Annotated[int, Field(ge=0, lt=2**31)]
"""A count, or 0 with the meaning that the field states, such as all or never."""
Architecture = Literal["plain", "residual", "unet", "residual_unet", "variational"]

DottedPath = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]
"""``package.module:function``."""


def outside_data(path: str) -> str:
    """Return a path of the user; a step empties its folder below data/ before it runs.

    Raises:
        ValueError: the path is inside data/.
    """
    if Path(path).expanduser().resolve().is_relative_to(Path("data").resolve()):
        raise ValueError(f"{path} is inside data/, where only steps write. Use a path outside data/")
    return path


OutsideData = Annotated[str, Field(min_length=1), AfterValidator(outside_data)]
"""Path of a file or folder of the user."""

Precision = Literal["float32", "bfloat16"]
"""Floating-point type of the matrix products of networks."""

FRACTION_OF_RANGE = 0.1
"""A largest eps below this value is refused as a fraction of the value range: rounding to 8 bits removes a tenth of a
grey level."""


def check_unit(eps: float) -> None:
    """Refuse an eps that is a fraction of the value range, for instance 0.031 instead of 8.

    Raises:
        ValueError: the largest eps is below :data:`FRACTION_OF_RANGE`.
    """
    if eps < FRACTION_OF_RANGE:
        raise ValueError(
            f"eps {eps:g} looks like a fraction of the value range. eps is in units of 1/255, and the largest must be "
            f"at least {FRACTION_OF_RANGE:g}. Write {255 * eps:.3g} for a radius of {eps:g} of images in [0, 1]"
        )


def not_bool(value: Any) -> Any:
    """Return a value of a ``Literal`` of numbers, which would accept ``True`` as 1.

    Raises:
        ValueError: the value is a bool.
    """
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


class Section(BaseModel):
    """A section of params.yaml: frozen, without unknown keys and silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class WithArguments(Section):
    """A section whose further keys are the arguments of a class or a function."""

    model_config = ConfigDict(extra="allow")

    @property
    def arguments(self) -> dict[str, Any]:
        """The further keys and their values."""
        return dict(self.model_extra or {})


class Training(Section):
    """Settings of a training loop."""

    epochs: Count
    """Maximum number of passes over the training images."""
    batch_size: Annotated[int, Field(ge=2)]
    """Images of one step; at least 2, for batch normalisation."""
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    """Learning rate of Adam."""
    learning_rate_schedule: Literal["constant", "cosine"]
    """``cosine`` decays the learning rate to zero over all epochs."""
    early_stopping_patience: CountOrOff
    """Epochs without improvement on the validation images after which training stops; 0: never."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    """Decay per step of the exponential moving average of the weights; 0 keeps the last weights."""


class Noise(Section):
    """One type of noise."""

    kind: Literal["gaussian", "uniform", "salt_pepper", "speckle"]
    """gaussian and uniform are added; salt_pepper sets pixels to 0 or 1; speckle multiplies."""
    max_strength: Annotated[float, Field(gt=0, le=1)]
    """Upper bound of the strength, which is drawn uniformly from 0 for each image. gaussian, speckle: standard
    deviation; uniform: half-width; salt_pepper: fraction of pixels. Images are in [0, 1]."""


class Pgd(Section):
    """Projected gradient descent."""

    n_steps: Count
    """Gradient steps of each start."""
    relative_step_size: Annotated[float, Field(gt=0, le=2)]
    """Step size divided by eps."""
    n_random_starts: CountOrOff
    """Random starts; 0: one start at the image itself."""
