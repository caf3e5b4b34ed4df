"""Training objectives without an attack: classification and denoising."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.models.augmentation import augment
from tasks.models.autoencoder import VariationalAutoencoder
from tasks.models.noise import add_noise
from tasks.models.training import InputTransform, Objective, no_transform
from tasks.params import Augmentation, TrainAutoencoder


def classification_objective(augmentation: Augmentation, input_transform: InputTransform = no_transform) -> Objective:
    """Return the objective of a classifier: cross-entropy, with accuracy as a further metric.

    Args:
        augmentation: augmentation of the training images.
        input_transform: transform of the images, after augmentation, to the input of the network.
    """

    def objective(
        model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, _progress: float
    ) -> dict[str, Tensor]:
        if model.training:
            images = augment(images, augmentation, generator)
        logits = model(input_transform(images, generator))
        return {"loss": F.cross_entropy(logits, labels), "accuracy": accuracy(logits, labels)}

    return objective


def purified_noise_transform(purifier: nn.Module, noise_settings: TrainAutoencoder) -> InputTransform:
    """Return a transform that adds noise to images and then applies a frozen purifier.

    A classifier that is trained on these images is adapted to the purifier (Salman et al. 2020, "Denoised Smoothing",
    arXiv 2003.01908).

    Args:
        purifier: takes and returns images ``(N, C, H, W)`` in [0, 1]; in evaluation mode, parameters frozen.
        noise_settings: types of noise and fraction of clean images, as in the training of the purifier.
    """

    def transform(images: Tensor, generator: torch.Generator) -> Tensor:
        noisy = add_noise(images, noise_settings.noise_types, noise_settings.clean_fraction, generator)
        with torch.no_grad():
            purified: Tensor = purifier(noisy)
        return purified

    return transform


def gaussian_noise_transform(std: float) -> InputTransform:
    """Return a transform that adds Gaussian noise and clamps the result to [0, 1].

    Cohen et al. 2019, "Certified adversarial robustness via randomized smoothing" (arXiv 1902.02918), section 3.3.

    Args:
        std: standard deviation of the noise, for images in [0, 1].
    """

    def transform(images: Tensor, generator: torch.Generator) -> Tensor:
        return (images + torch.empty_like(images).normal_(0, std, generator=generator)).clamp_(0, 1)

    return transform


def denoising_objective(noise_settings: TrainAutoencoder) -> Objective:
    """Return the objective of a denoising autoencoder: mean squared error between its output and the clean images.

    Args:
        noise_settings: types of noise on the input, and fraction of inputs without noise.
    """

    def objective(
        model: nn.Module, images: Tensor, _labels: Tensor, generator: torch.Generator, _progress: float
    ) -> dict[str, Tensor]:
        noisy = add_noise(images, noise_settings.noise_types, noise_settings.clean_fraction, generator)
        denoised, penalty = reconstruct(model, noisy, generator)
        return {"loss": F.mse_loss(denoised, images) + penalty}

    return objective


def reconstruct(model: nn.Module, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the output of an autoencoder and the penalty that its loss adds to the squared error.

    The penalty is 0 except for a variational autoencoder in training mode (:meth:`VariationalAutoencoder.sample`).

    Args:
        model: autoencoder.
        images: float32 ``(N, C, H, W)`` in [0, 1].
        generator: random generator on the device of the images.
    """
    if isinstance(model, VariationalAutoencoder) and model.training:
        return model.sample(images, generator)
    return model(images), torch.zeros((), device=images.device)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the accuracy of logits ``(N, K)`` against true classes ``(N,)``, as a scalar tensor."""
    return (logits.argmax(dim=1) == labels).float().mean()
