"""Image processing before a network: ART's preprocessor defences as modules that gradients pass, and our own."""

import logging
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
    """What has no useful gradient, and counts as unchanged backwards (BPDA; Athalye et al. 2018, arXiv 1802.00420).

    Args:
        transform: of arrays.
        name: by which digests tell one from another.
    """

    def __init__(self, transform: Transform, name: str) -> None:
        super().__init__()
        self._transform = transform
        self._name = name

    def forward(self, images: Tensor) -> Tensor:
        """Processed images, of the same shape and range."""
        processed, _ = self._transform(images.detach().cpu().numpy())
        changed = torch.from_numpy(processed.astype(np.float32)).to(images.device).clamp_(0, 1)
        # the value of the one, the gradient of the other
        return images + (changed - images).detach()

    def extra_repr(self) -> str:
        """What it is."""
        return self._name


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
        half = self.window // 2
        rows, columns = (
            torch.cat([every[:half].flip(0), every, every[-half:].flip(0)])
            for every in (torch.arange(side, device=images.device) for side in images.shape[2:])
        )
        squares = images[:, :, rows][..., columns].unfold(2, self.window, 1).unfold(3, self.window, 1)
        return squares.flatten(4).median(dim=-1).values

    def extra_repr(self) -> str:
        """Its number."""
        return f"window={self.window}"


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
    from art.defences import preprocessor as art

    value_range = (0.0, 1.0)
    made: Any
    match step:
        case Jpeg():
            made = art.JpegCompression(value_range, quality=step.quality, channels_first=True)
        case BitDepth():
            made = art.FeatureSqueezing(value_range, bit_depth=step.bits)
    return WithoutGradient(made, str(step))


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
