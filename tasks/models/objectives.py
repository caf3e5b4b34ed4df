"""What networks are trained for, without an attacker."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.models.augmentation import augment
from tasks.models.autoencoder import VariationalAutoencoder
from tasks.models.noise import add_noise
from tasks.models.training import Objective
from tasks.params import Augmentation, TrainAutoencoder


def classification(augmentation: Augmentation) -> Objective:
    """Cross-entropy and accuracy; images that are trained on are augmented."""

    def measure(
        model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, _progress: float
    ) -> dict[str, Tensor]:
        if model.training:
            images = augment(images, augmentation, generator)
        logits = model(images)
        return {"loss": F.cross_entropy(logits, labels), "accuracy": accuracy(logits, labels)}

    return measure


def classification_of_purified(purifier: nn.Module, noise: TrainAutoencoder, augmentation: Augmentation) -> Objective:
    """The same of what a frozen purifier makes of noisy images, as it was trained on them.

    After Salman et al. 2020, "Denoised Smoothing" (arXiv 2003.01908), where a classifier is tuned to its denoiser.
    """

    def measure(
        model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, _progress: float
    ) -> dict[str, Tensor]:
        if model.training:
            images = augment(images, augmentation, generator)
        with torch.no_grad():
            purified = purifier(add_noise(images, noise.noises, noise.clean_share, generator))
        logits = model(purified)
        return {"loss": F.cross_entropy(logits, labels), "accuracy": accuracy(logits, labels)}

    return measure


def classification_of_noisy(std: float, augmentation: Augmentation) -> Objective:
    """The same of images with Gaussian noise, cut to [0, 1] (Cohen et al. 2019, arXiv 1902.02918, section 3.3).

    Args:
        std: standard deviation of the noise.
        augmentation: of images that are trained on, before the noise.
    """

    def measure(
        model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, _progress: float
    ) -> dict[str, Tensor]:
        if model.training:
            images = augment(images, augmentation, generator)
        noise = torch.empty_like(images).normal_(0, std, generator=generator)
        logits = model((images + noise).clamp_(0, 1))
        return {"loss": F.cross_entropy(logits, labels), "accuracy": accuracy(logits, labels)}

    return measure


def denoising(noise: TrainAutoencoder) -> Objective:
    """Mean squared error between the originals and what an autoencoder makes of noisy copies."""

    def measure(
        model: nn.Module, images: Tensor, _labels: Tensor, generator: torch.Generator, _progress: float
    ) -> dict[str, Tensor]:
        noisy = add_noise(images, noise.noises, noise.clean_share, generator)
        denoised, cost = reconstruct(model, noisy)
        return {"loss": F.mse_loss(denoised, images) + cost}

    return measure


def reconstruct(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """What an autoencoder makes of images ``(N, 1, H, W)``, and what it pays for its code beside the squared error."""
    if isinstance(model, VariationalAutoencoder) and model.training:
        return model.draw(images)
    return model(images), torch.zeros((), device=images.device)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of images ``(N, K)`` whose largest logit is that of their class."""
    return (logits.argmax(dim=1) == labels).float().mean()
