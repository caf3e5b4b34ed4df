"""Image processing before a network: ART's preprocessor defences as modules that gradients pass, and our own."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.models.autoencoder import build_autoencoder
from tasks.params import BitDepth, GaussianNoise, Jpeg, MedianSmoothing, Step, TotalVariation

# where ART keeps its data is nobody's concern
logging.getLogger("art").setLevel(logging.WARNING)

MOST_EXCHANGED = 25
"""Neighbours of a pixel of which the median is found by exchanges: as many as the square of their number."""

Transform = Callable[[np.ndarray], tuple[np.ndarray, Any]]
"""Images ``(N, 1, H, W)`` in [0, 1] to images of the same shape, and labels that nobody asks for."""


class Preprocessed(nn.Sequential):
    """Steps of image processing, then perhaps an autoencoder: takes and returns images ``(N, 1, H, W)`` in [0, 1].

    Args:
        modules: one after the other.
        n_draws: looks that whoever predicts from the outcome shall average, since a step is random; else 1.
    """

    def __init__(self, *modules: nn.Module, n_draws: int = 1) -> None:
        super().__init__(*modules)
        self.n_draws = n_draws


class WithoutGradient(nn.Module):
    """What has no useful gradient, and borrows one backwards (BPDA; Athalye et al. 2018, arXiv 1802.00420).

    Args:
        transform: of arrays.
        name: by which digests tell one from another.
        likeness: something like it, whose gradient is borrowed; without it, what comes out counts as what goes in.
    """

    def __init__(self, transform: Transform, name: str, likeness: nn.Module | None = None) -> None:
        super().__init__()
        self._transform = transform
        self._name = name
        self.likeness = likeness

    def forward(self, images: Tensor) -> Tensor:
        """Processed images, of the same shape and range."""
        processed, _ = self._transform(images.detach().cpu().numpy())
        changed: Tensor = torch.from_numpy(processed.astype(np.float32)).to(images.device).clamp_(0, 1)
        if not (torch.is_grad_enabled() and images.requires_grad):
            return changed
        alike: Tensor = images if self.likeness is None else self.likeness(images)
        # the value of the one, the gradient of the other
        return changed + (alike - alike.detach())

    def extra_repr(self) -> str:
        """What it is."""
        return self._name


class SoftJpeg(nn.Module):
    """JPEG with a rounding that has a gradient: ``round(x) + (x - round(x))^3`` (Shin and Song 2017).

    From "JPEG-resistant Adversarial Images" (NIPS workshop on machine learning and computer security). A coefficient in
    the middle between two levels passes a gradient, one that is on its level none: what is found so is found among the
    changes that survive. An attacker who takes JPEG for unchanged backwards breaks a fraction of the images.

    Args:
        quality: 1 to 95, from which the levels follow as in libjpeg.
    """

    BLOCK = 8
    """Pixels of a block's side (ITU-T T.81, A.3.3)."""

    LUMINANCE = (
        (16, 11, 10, 16, 24, 40, 51, 61),
        (12, 12, 14, 19, 26, 58, 60, 55),
        (14, 13, 16, 24, 40, 57, 69, 56),
        (14, 17, 22, 29, 51, 87, 80, 62),
        (18, 22, 37, 56, 68, 109, 103, 77),
        (24, 35, 55, 64, 81, 104, 113, 92),
        (49, 64, 78, 87, 103, 121, 120, 101),
        (72, 92, 95, 98, 112, 100, 103, 99),
    )
    """Distances of the levels of each coefficient at quality 50, in grey levels of 255 (ITU-T T.81, table K.1)."""

    cosines: Tensor
    distances: Tensor

    def __init__(self, quality: int) -> None:
        super().__init__()
        place = torch.arange(self.BLOCK, dtype=torch.float64)
        cosines = torch.cos((2 * place + 1) * place[:, None] * math.pi / (2 * self.BLOCK)) / 2
        cosines[0] /= math.sqrt(2)
        percent = 5000 // quality if quality < 50 else 200 - 2 * quality
        distances = ((torch.tensor(self.LUMINANCE) * percent + 50) // 100).clamp(1, 255)
        self.register_buffer("cosines", cosines.float(), persistent=False)
        self.register_buffer("distances", distances.float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images much like compressed ones, ``(N, 1, H, W)``; values may lie a little outside [0, 1]."""
        n, channels, height, width = images.shape
        padded = F.pad(images, (0, -width % self.BLOCK, 0, -height % self.BLOCK), mode="replicate")
        blocks = (255 * padded - 128).unfold(2, self.BLOCK, self.BLOCK).unfold(3, self.BLOCK, self.BLOCK)
        # in bfloat16 a grey level is lost
        with torch.autocast(images.device.type, enabled=False):
            coefficients = self.cosines @ blocks @ self.cosines.T / self.distances
            level = coefficients.detach().round()
            quantised = (level + (coefficients - level) ** 3) * self.distances
            restored = self.cosines.T @ quantised @ self.cosines
        restored = restored.transpose(3, 4).reshape(n, channels, *padded.shape[2:])
        return (restored[..., :height, :width] + 128) / 255


class Noise(nn.Module):
    """Gaussian noise, drawn anew at every look, and cut to [0, 1].

    It draws from a generator of its own: ART's draws from numpy's global one, which several steps in one process share.

    Args:
        std: standard deviation, images in [0, 1].
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std
        self.reseed([0])

    def reseed(self, seed: list[int]) -> None:
        """Begin the draws anew, at a place that the seed tells."""
        self._generator = np.random.default_rng(seed)

    def forward(self, images: Tensor) -> Tensor:
        """Noisy images, of the same shape and range."""
        noise = self._generator.standard_normal(images.shape, dtype=np.float32)
        return (images + self.std * torch.from_numpy(noise).to(images.device)).clamp(0, 1)

    def extra_repr(self) -> str:
        """Its number."""
        return f"std={self.std}"


class MedianFilter(nn.Module):
    """The median of the square around each pixel; images go on beyond their borders as in a mirror.

    Its gradient goes to the pixel that is the median. An attacker who takes it for unchanged backwards, as ART's filter
    has to be taken, breaks a fraction of the images that he breaks with it.

    Args:
        window: side of the square, odd.
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        assert window % 2
        self.window = window

    def forward(self, images: Tensor) -> Tensor:
        """Filtered images, of the same shape and range."""
        half, (height, width) = self.window // 2, images.shape[2:]
        rows, columns = (
            torch.cat([every[:half].flip(0), every, every[-half:].flip(0)])
            for every in (torch.arange(side, device=images.device) for side in (height, width))
        )
        pixels = rows[:, None] * width + columns
        with torch.no_grad():
            mirrored = images[:, :, rows][..., columns]
            squares = [
                (slice(down, down + height), slice(right, right + width))
                for down in range(self.window)
                for right in range(self.window)
            ]
            median = _median([mirrored[:, :, down, right] for down, right in squares])
            if not images.requires_grad:
                return median
            source = torch.zeros_like(median, dtype=torch.int64)
            for down, right in squares:
                neighbour = mirrored[:, :, down, right]
                source = torch.where((neighbour == median) | neighbour.isnan(), pixels[down, right], source)
        return images.flatten(2).gather(2, source.flatten(2)).view_as(images)

    def extra_repr(self) -> str:
        """Its number."""
        return f"window={self.window}"


def _median(arrays: Sequence[Tensor]) -> Tensor:
    """The median, element by element, of an odd number of arrays; of few by exchanges (Paeth 1990, Graphics Gems).

    Among any ``n // 2 + 2`` of n numbers, one is at most as large as the median of all, and one at least as large: the
    least and the greatest can be forgotten, and another number takes their place.
    """
    if len(arrays) > MOST_EXCHANGED:
        return torch.stack(list(arrays), dim=-1).median(dim=-1).values
    n_held = len(arrays) // 2 + 2
    held, waiting = list(arrays[:n_held]), list(arrays[n_held:])
    while len(held) > 1:
        for i in range(1, len(held)):
            held[0], held[i] = torch.minimum(held[0], held[i]), torch.maximum(held[0], held[i])
        for i in range(1, len(held) - 1):
            held[i], held[-1] = torch.minimum(held[i], held[-1]), torch.maximum(held[i], held[-1])
        held = held[1:-1] + waiting[:1]
        waiting = waiting[1:]
    return held[0]


class TotalVariationDenoiser(nn.Module):
    """The image nearest to the given one for its total variation (Rudin, Osher and Fatemi 1992, Physica D 60).

    Minimises ``|u - f|^2 / 2 + strength * TV(u)`` by Chambolle's projection (2004, Journal of Mathematical Imaging and
    Vision 20, 89-97, equation 9), through which gradients flow. ART's takes more than a second an image.

    Args:
        strength: weight of the total variation, images in [0, 1].
        n_steps: of the projection.
    """

    STEP = 0.25
    """Of the projection; converges in practice up to this (Chambolle 2004, remark after theorem 3.1)."""

    def __init__(self, strength: float, n_steps: int) -> None:
        super().__init__()
        self.strength = strength
        self.n_steps = n_steps

    def forward(self, images: Tensor) -> Tensor:
        """Denoised images, of the same shape and range."""
        down, right = torch.zeros_like(images), torch.zeros_like(images)
        for _ in range(self.n_steps):
            slope_down, slope_right = _slopes(_divergence(down, right) - images / self.strength)
            # the root has no gradient at 0
            length = (slope_down.square() + slope_right.square() + 1e-12).sqrt()
            shrink = 1 + self.STEP * length
            down, right = (down + self.STEP * slope_down) / shrink, (right + self.STEP * slope_right) / shrink
        return (images - self.strength * _divergence(down, right)).clamp(0, 1)

    def extra_repr(self) -> str:
        """Its numbers."""
        return f"strength={self.strength}, n_steps={self.n_steps}"


def _slopes(images: Tensor) -> tuple[Tensor, Tensor]:
    """Differences to the next pixel below and to the right, 0 at the border."""
    down, right = images.diff(dim=2), images.diff(dim=3)
    return F.pad(down, (0, 0, 0, 1)), F.pad(right, (0, 1))


def _divergence(down: Tensor, right: Tensor) -> Tensor:
    """The negative adjoint of the slopes."""
    below, beside = down[:, :, :-1], right[..., :-1]
    return F.pad(below, (0, 0, 0, 1)) - F.pad(below, (0, 0, 1, 0)) + F.pad(beside, (0, 1)) - F.pad(beside, (1, 0))


def module_of(step: Step) -> nn.Module:
    """The module that does a step of ``params.yaml``."""
    match step:
        case TotalVariation():
            return TotalVariationDenoiser(step.strength, step.n_steps)
        case GaussianNoise():
            return Noise(step.std)
        case MedianSmoothing():
            return MedianFilter(step.window)
        case _:
            return _by_art(step)


def _by_art(step: Jpeg | BitDepth) -> nn.Module:
    import art

    value_range = (0.0, 1.0)
    match step:
        case Jpeg():
            jpeg = art.defences.preprocessor.JpegCompression(value_range, quality=step.quality, channels_first=True)
            return WithoutGradient(jpeg, str(step), SoftJpeg(step.quality))
        case BitDepth():
            return WithoutGradient(
                art.defences.preprocessor.FeatureSqueezing(value_range, bit_depth=step.bits), str(step)
            )


def build_purifier(
    architecture: str | None = None, steps: Sequence[dict[str, Any]] = (), n_draws: int = 1
) -> nn.Module:
    """What stands in front of a classifier: an untrained autoencoder, image processing, or one after the other.

    Args:
        architecture: of the autoencoder, if there is one.
        steps: of the image processing, as in ``params.yaml``.
        n_draws: see :class:`Preprocessed`.
    """
    autoencoders = [] if architecture is None else [build_autoencoder(architecture)]
    if not steps:
        (autoencoder,) = autoencoders
        return autoencoder
    typed = TypeAdapter(tuple[Step, ...]).validate_python(tuple(steps))
    return Preprocessed(*map(module_of, typed), *autoencoders, n_draws=n_draws)
