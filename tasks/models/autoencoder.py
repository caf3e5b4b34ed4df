"""Denoising autoencoders: from images ``(N, C, H, W)`` in [0, 1] to images of the same shape and range.

The architectures are fast on a CPU: 4 x 4 blocks of pixels become channels (pixel unshuffle), so no layer works at full
resolution. Images are padded with zeros to multiples of 16 pixels, and the output is cut to their size. The module
``encoder`` returns the bottleneck ``(N, 64, H / 16, W / 16)``, which has a quarter as many values as the image has
pixels; H and W are rounded up to multiples of 16.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.models.classifier import conv_bn_relu, pad_to_multiple


class PlainAutoencoder(nn.Module):
    """Convolutional autoencoder with a bottleneck, without skip connections.

    Args:
        residual: predict the noise, which is subtracted from the input, instead of the image (Zhang et al. 2017,
            "DnCNN", arXiv 1608.03981). Before training, the output is then equal to the input.
        n_channels: C, 1 or 3.
    """

    def __init__(self, residual: bool = False, n_channels: int = 1) -> None:
        super().__init__()
        self.residual = residual
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(16 * n_channels, 32, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 128, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(128, 64, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(64, 128, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(128, 64, 2, stride=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(64, 32, 2, stride=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 16 * n_channels, 3, padding=1),
            nn.PixelShuffle(4),
        )
        if residual:
            _zero_init(self.decoder[8])

    def forward(self, images: Tensor) -> Tensor:
        """Return denoised images of the same shape and range."""
        return _to_image(self.decoder(self.encoder(pad_to_multiple(images, 16))), images, self.residual)


class UNet(nn.Module):
    """U-Net with batch normalisation (Ronneberger et al. 2015, arXiv 1505.04597).

    Below the bottleneck are one more level and a branch over the mean of all positions. They add context from the whole
    image to every position.

    Args:
        residual: predict the noise instead of the image, as the denoiser of Liao et al. 2018 (arXiv 1712.02976). Before
            training, the output is then equal to the input.
        n_channels: C, 1 or 3.
    """

    def __init__(self, residual: bool = False, n_channels: int = 1) -> None:
        super().__init__()
        self.residual = residual
        self.fine = nn.Sequential(nn.PixelUnshuffle(4), conv_bn_relu(16 * n_channels, 16))
        self.middle = nn.Sequential(conv_bn_relu(16, 32, stride=2), conv_bn_relu(32, 32))
        self.encoder = nn.Sequential(conv_bn_relu(32, 64, stride=2), conv_bn_relu(64, 64))
        self.deep = nn.Sequential(conv_bn_relu(64, 128, stride=2), conv_bn_relu(128, 128))
        self.whole = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128))
        self.up_to_code, self.at_code = conv_bn_relu(128, 64), conv_bn_relu(128, 64)
        self.up_to_middle, self.at_middle = conv_bn_relu(64, 32), conv_bn_relu(64, 32)
        self.up_to_fine = conv_bn_relu(32, 16)
        self.to_pixels = nn.Sequential(nn.Conv2d(32, 16 * n_channels, 3, padding=1), nn.PixelShuffle(4))
        if residual:
            _zero_init(self.to_pixels[0])

    def forward(self, images: Tensor) -> Tensor:
        """Return denoised images of the same shape and range."""
        fine = self.fine(pad_to_multiple(images, 16))
        middle = self.middle(fine)
        code = self.encoder(middle)
        deep = self.deep(code)
        deep = deep + self.whole(deep.mean(dim=(2, 3)))[:, :, None, None]
        decoded = self.at_code(torch.cat([self.up_to_code(_upsample(deep, code)), code], dim=1))
        decoded = self.at_middle(torch.cat([self.up_to_middle(_upsample(decoded, middle)), middle], dim=1))
        decoded = self.to_pixels(torch.cat([self.up_to_fine(_upsample(decoded, fine)), fine], dim=1))
        return _to_image(decoded, images, self.residual)


class VariationalAutoencoder(PlainAutoencoder):
    """:class:`PlainAutoencoder` with a normally distributed code (Kingma and Welling 2014, arXiv 1312.6114).

    :meth:`sample` draws the code at random and is used in training. :meth:`forward` uses the mean of the code.
    """

    PIXEL_VARIANCE = 0.05**2
    """Variance of a pixel given the code. It weights the squared error against the Kullback-Leibler divergence."""

    def __init__(self, n_channels: int = 1) -> None:
        super().__init__(n_channels=n_channels)
        self.log_variance = nn.Conv2d(64, 64, 1)

    def sample(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Reconstruct images from a random code.

        Args:
            images: float32 ``(N, C, H, W)`` in [0, 1].
            generator: random generator on the device of the images.

        Returns:
            The reconstructed images, of the same shape and range, and a penalty. The penalty is the Kullback-Leibler
            divergence of the code from the standard normal distribution, scaled so that mean squared error plus penalty
            is the negative evidence lower bound (ELBO) up to a constant factor and an additive constant.
        """
        mean = self.encoder(pad_to_multiple(images, 16)).float()
        log_variance = self.log_variance(mean).float()
        code = mean + torch.empty_like(mean).normal_(generator=generator) * (log_variance / 2).exp()
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
        return _to_image(self.decoder(code), images, False), 2 * self.PIXEL_VARIANCE * divergence / images.numel()


def _upsample(feature_maps: Tensor, like: Tensor) -> Tensor:
    """Upsample feature maps ``(N, C, h, w)`` to the size of others by nearest-neighbour interpolation."""
    return F.interpolate(feature_maps, size=like.shape[2:])


def _zero_init(layer: nn.Module) -> None:
    """Set weights and bias to 0, so that an untrained residual network predicts no noise."""
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def _to_image(decoded: Tensor, images: Tensor, residual: bool) -> Tensor:
    """Convert the output of a decoder, of padded images, to images in [0, 1]."""
    decoded = decoded[..., : images.shape[2], : images.shape[3]].float()
    return (images - decoded).clamp(0, 1) if residual else decoded.sigmoid()


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "plain": PlainAutoencoder,
    "residual": partial(PlainAutoencoder, residual=True),
    "unet": UNet,
    "residual_unet": partial(UNet, residual=True),
    "variational": VariationalAutoencoder,
}


def build_autoencoder(architecture: str, n_channels: int = 1) -> nn.Module:
    """Return an untrained autoencoder of an architecture from ``ARCHITECTURES`` for images of C channels, 1 or 3."""
    return ARCHITECTURES[architecture](n_channels=n_channels)
