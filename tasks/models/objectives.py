"""What networks are trained for, without an attacker."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.models.augmentation import augment
from tasks.models.autoencoder import VariationalAutoencoder
from tasks.models.noise import add_noise
from tasks.models.training import InputTransform, Objective, no_transform
from tasks.params import Augmentation, TrainAutoencoder


def classification(augmentation: Augmentation, input_transform: InputTransform = no_transform) -> Objective:
    """Cross-entropy and accuracy.

    Args:
        augmentation: of images that are trained on.
        seen: what the network is shown of images, augmented or not.
    """

    def measure(
        model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, _progress: float
    ) -> dict[str, Tensor]:
        if model.training:
            images = augment(images, augmentation, generator)
        logits = model(seen(images, generator))
        return {"loss": F.cross_entropy(logits, labels), "accuracy": accuracy(logits, labels)}

    return measure


def purified(purifier: nn.Module, noise: TrainAutoencoder) -> InputTransform:
    """What a frozen purifier makes of noisy images, as it was trained on them.

    After Salman et al. 2020, "Denoised Smoothing" (arXiv 2003.01908), where a classifier is tuned to its denoiser.
    """

    def see(images: Tensor, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            seen: Tensor = purifier(add_noise(images, noise.noises, noise.clean_share, generator))
        return seen

    return see


def noisy(std: float) -> InputTransform:
    """Gaussian noise of a standard deviation, cut to [0, 1] (Cohen et al. 2019, arXiv 1902.02918, section 3.3)."""

    def see(images: Tensor, generator: torch.Generator) -> Tensor:
        return (images + torch.empty_like(images).normal_(0, std, generator=generator)).clamp_(0, 1)

    return see


def denoising(noise: TrainAutoencoder) -> Objective:
    """Mean squared error between the originals and what an autoencoder makes of noisy copies."""

    def measure(
        model: nn.Module, images: Tensor, _labels: Tensor, generator: torch.Generator, _progress: float
    ) -> dict[str, Tensor]:
        noisy = add_noise(images, noise.noises, noise.clean_share, generator)
        denoised, cost = reconstruct(model, noisy, generator)
        return {"loss": F.mse_loss(denoised, images) + cost}

    return measure


def reconstruct(model: nn.Module, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What an autoencoder makes of images ``(N, 1, H, W)``, and what it pays for its code beside the squared error."""
    if isinstance(model, VariationalAutoencoder) and model.training:
        return model.draw(images, generator)
    return model(images), torch.zeros((), device=images.device)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of images ``(N, K)`` whose largest logit is that of their class."""
    return (logits.argmax(dim=1) == labels).float().mean()
