"""The sections ``train_classifier``, ``train_surrogates`` and ``train_autoencoder``."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from tasks.params.section import Architecture, Count, Noise, Section, Share, Training


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
    """``cnn`` (a small network of this project) or the name of a torchvision classifier."""
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
    """``cnn`` (a small network of this project) or the name of a torchvision classifier."""
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
    """``residual`` and ``residual_unet`` predict the noise instead of the image. ``unet`` and ``residual_unet`` have
    skip connections. ``variational`` draws its code at random in training."""
    noise_types: Annotated[tuple[Noise, ...], Field(min_length=1)]
    """Types of noise, of which one is drawn for each image."""
    clean_fraction: Annotated[float, Field(ge=0, lt=1)]
    """Fraction of each batch without noise."""
