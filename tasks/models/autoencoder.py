"""Denoising autoencoders: images ``(N, 1, H, W)`` in [0, 1] to images of the same shape and range."""

from torch import Tensor, nn


class PlainAutoencoder(nn.Module):
    """Convolutional bottleneck autoencoder without skips, made for CPUs.

    Pixels go to channels and back (4 x 4 blocks), so that no layer works at full resolution. H and W are multiples
    of 16; the bottleneck is ``(N, 64, H / 16, W / 16)``: a quarter as many numbers as pixels.
    """

    def __init__(self) -> None:
        super().__init__()
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
            nn.Sigmoid(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Denoised images, of the same shape and range."""
        denoised: Tensor = self.decoder(self.encoder(images))
        return denoised


ARCHITECTURES: dict[str, type[nn.Module]] = {"plain": PlainAutoencoder}


def build_autoencoder(architecture: str) -> nn.Module:
    """An untrained autoencoder of the named architecture (``ARCHITECTURES``)."""
    return ARCHITECTURES[architecture]()
