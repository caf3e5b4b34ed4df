"""Denoising autoencoders: images ``(N, 1, H, W)`` in [0, 1] to images of the same shape and range.

All are made for CPUs: pixels go to channels and back (4 x 4 blocks), so that no layer works at full resolution. H and W
are multiples of 16. A module ``encoder`` gives the bottleneck, ``(N, 64, H / 16, W / 16)``: a quarter as many numbers
as pixels.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn


class PlainAutoencoder(nn.Module):
    """Convolutional bottleneck without skips.

    Args:
        residual: predict the noise, which is taken off the image, instead of the image (Zhang et al. 2017, "DnCNN",
            arXiv 1608.03981); untrained, it gives back what it is given.
    """

    def __init__(self, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(16, 32, 3, padding=1),
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
            nn.Conv2d(32, 16, 3, padding=1),
            nn.PixelShuffle(4),
        )
        if residual:
            _predict_nothing(self.decoder[8])

    def forward(self, images: Tensor) -> Tensor:
        """Denoised images, of the same shape and range."""
        return _image(self.decoder(self.encoder(images)), images, self.residual)


class UNet(nn.Module):
    """The same pyramid, with skips at every level (Ronneberger et al. 2015, arXiv 1505.04597).

    Args:
        residual: predict the noise instead of the image, as the denoiser of Liao et al. 2018 (arXiv 1712.02976).
    """

    def __init__(self, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.fine = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.ReLU())
        self.encoder = nn.Conv2d(128, 64, 3, padding=1)
        self.from_code = nn.Sequential(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU())
        self.up_to_middle = nn.Sequential(nn.ConvTranspose2d(128, 64, 2, stride=2), nn.ReLU())
        self.at_middle = nn.Sequential(nn.Conv2d(128, 64, 3, padding=1), nn.ReLU())
        self.up_to_fine = nn.Sequential(nn.ConvTranspose2d(64, 32, 2, stride=2), nn.ReLU())
        self.to_pixels = nn.Sequential(nn.Conv2d(64, 16, 3, padding=1), nn.PixelShuffle(4))
        if residual:
            _predict_nothing(self.to_pixels[0])

    def forward(self, images: Tensor) -> Tensor:
        """Denoised images, of the same shape and range."""
        fine = self.fine(images)
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        # the coarsest level passes its bottleneck by as well: a skip, too
        decoded = coarse + self.from_code(self.encoder(coarse))
        decoded = self.at_middle(torch.cat([self.up_to_middle(decoded), middle], dim=1))
        decoded = self.to_pixels(torch.cat([self.up_to_fine(decoded), fine], dim=1))
        return _image(decoded, images, self.residual)


class VariationalAutoencoder(PlainAutoencoder):
    """The plain one, its code a normal distribution (Kingma and Welling 2014, arXiv 1312.6114).

    The code is drawn while it trains; what is trained uses its mean.
    """

    PIXEL_VARIANCE = 0.05**2
    """Of the images given their code: it weighs the squared error against the divergence."""

    def __init__(self) -> None:
        super().__init__()
        self.log_variance = nn.Conv2d(64, 64, 1)

    def draw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images from one draw of the code (torch's global generator), and what the draw costs.

        Args:
            images: float32 ``(N, 1, H, W)`` in [0, 1].

        Returns:
            Images of the same shape and range; the divergence of the code from the standard normal distribution, in
            units of the squared error: the negative evidence bound is, up to a constant factor, the sum of both.
        """
        mean = self.encoder(images)
        log_variance = self.log_variance(mean)
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
        return _image(self.decoder(code), images, False), 2 * self.PIXEL_VARIANCE * divergence / images.numel()


def _predict_nothing(layer: nn.Module) -> None:
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def _image(decoded: Tensor, images: Tensor, residual: bool) -> Tensor:
    return (images - decoded).clamp(0, 1) if residual else decoded.sigmoid()


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "plain": PlainAutoencoder,
    "residual": partial(PlainAutoencoder, residual=True),
    "unet": UNet,
    "residual_unet": partial(UNet, residual=True),
    "variational": VariationalAutoencoder,
}


def build_autoencoder(architecture: str) -> nn.Module:
    """An untrained autoencoder of the named architecture (``ARCHITECTURES``)."""
    return ARCHITECTURES[architecture]()
