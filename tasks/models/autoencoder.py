"""Denoising autoencoders: images ``(N, 1, H, W)`` in [0, 1] to images of the same shape and range.

All are made for CPUs: pixels go to channels and back (4 x 4 blocks), so that no layer works at full resolution. H and W
are multiples of 16. A module ``encoder`` gives the bottleneck, ``(N, 64, H / 16, W / 16)``: a quarter as many numbers
as pixels.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
    """A pyramid with skips at every level (Ronneberger et al. 2015, arXiv 1505.04597) and batch norm.

    Below the bottleneck is one level more, and a look at the whole image, so that what is far away can tell what is to
    be restored here.

    Args:
        residual: predict the noise instead of the image, as the denoiser of Liao et al. 2018 (arXiv 1712.02976).
    """

    def __init__(self, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.fine = nn.Sequential(nn.PixelUnshuffle(4), _block(16, 16))
        self.middle = nn.Sequential(_block(16, 32, stride=2), _block(32, 32))
        self.encoder = nn.Sequential(_block(32, 64, stride=2), _block(64, 64))
        self.deep = nn.Sequential(_block(64, 128, stride=2), _block(128, 128))
        self.whole = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128))
        self.up_to_code, self.at_code = _block(128, 64), _block(128, 64)
        self.up_to_middle, self.at_middle = _block(64, 32), _block(64, 32)
        self.up_to_fine = _block(32, 16)
        self.to_pixels = nn.Sequential(nn.Conv2d(32, 16, 3, padding=1), nn.PixelShuffle(4))
        if residual:
            _predict_nothing(self.to_pixels[0])

    def forward(self, images: Tensor) -> Tensor:
        """Denoised images, of the same shape and range."""
        fine = self.fine(images)
        middle = self.middle(fine)
        code = self.encoder(middle)
        deep = self.deep(code)
        deep = deep + self.whole(deep.mean(dim=(2, 3)))[:, :, None, None]
        decoded = self.at_code(torch.cat([self.up_to_code(_enlarged(deep, code)), code], dim=1))
        decoded = self.at_middle(torch.cat([self.up_to_middle(_enlarged(decoded, middle)), middle], dim=1))
        decoded = self.to_pixels(torch.cat([self.up_to_fine(_enlarged(decoded, fine)), fine], dim=1))
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

    def draw(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images from one draw of the code, and what the draw costs.

        Args:
            images: float32 ``(N, 1, H, W)`` in [0, 1].
            generator: of the draw, where the images are.

        Returns:
            Images of the same shape and range; the divergence of the code from the standard normal distribution, in
            units of the squared error: the negative evidence bound is, up to a constant factor, the sum of both.
        """
        mean = self.encoder(images).float()
        log_variance = self.log_variance(mean).float()
        code = mean + torch.empty_like(mean).normal_(generator=generator) * (log_variance / 2).exp()
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
        return _image(self.decoder(code), images, False), 2 * self.PIXEL_VARIANCE * divergence / images.numel()


def _block(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(n_out), nn.ReLU(inplace=True))


def _enlarged(maps: Tensor, like: Tensor) -> Tensor:
    """Maps repeated to the size of others, ``(N, C, h, w)``."""
    return F.interpolate(maps, size=like.shape[2:])


def _predict_nothing(layer: nn.Module) -> None:
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def _image(decoded: Tensor, images: Tensor, residual: bool) -> Tensor:
    decoded = decoded.float()
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
