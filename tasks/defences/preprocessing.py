"""Purifiers that process images without training, as differentiable modules; some use ART's preprocessor defences."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.defences.randomness import RandomModule
from tasks.models.autoencoder import build_autoencoder
from tasks.params import BitDepth, GaussianNoise, ImageTransform, Jpeg, MedianSmoothing, TotalVariation

# ART logs its data folder at import
logging.getLogger("art").setLevel(logging.WARNING)

MAX_EXCHANGE_MEDIAN_SIZE = 25
"""Maximum number of values whose median is computed by compare-and-exchange, which takes quadratic time."""

NumpyTransform = Callable[[np.ndarray], tuple[np.ndarray, Any]]
"""ART's interface: images ``(N, C, H, W)`` in [0, 1] to images of the same shape and labels; the labels are ignored."""


class PreprocessingPipeline(nn.Sequential):
    """A sequence of transforms, optionally followed by an autoencoder.

    It takes and returns images ``(N, C, H, W)`` in [0, 1].

    Args:
        modules: transforms and autoencoder, in order.
        n_eot_samples: number of forward passes whose predictions are averaged; 1 if no transform is random.
    """

    def __init__(self, *modules: nn.Module, n_eot_samples: int = 1) -> None:
        super().__init__(*modules)
        self.n_eot_samples = n_eot_samples


class BPDA(nn.Module):
    """A transform without a useful gradient, with an approximation of it in the backward pass.

    BPDA, the backward pass differentiable approximation (Athalye et al. 2018, arXiv 1802.00420).

    Args:
        transform: transform of arrays, used in the forward pass.
        name: description of the transform and its parameters; digests of the network depend on it.
        backward_approximation: differentiable approximation of the transform; None stands for the identity.
    """

    def __init__(self, transform: NumpyTransform, name: str, backward_approximation: nn.Module | None = None) -> None:
        super().__init__()
        self._transform = transform
        self._name = name
        self.backward_approximation = backward_approximation

    def forward(self, images: Tensor) -> Tensor:
        """Return transformed images of the same shape and range."""
        transformed, _ = self._transform(images.detach().cpu().numpy())
        output: Tensor = torch.from_numpy(transformed.astype(np.float32)).to(images.device).clamp_(0, 1)
        if not (torch.is_grad_enabled() and images.requires_grad):
            return output
        approximation: Tensor = images if self.backward_approximation is None else self.backward_approximation(images)
        # the value of the transform, the gradient of the approximation
        return output + (approximation - approximation.detach())

    def extra_repr(self) -> str:
        """Return the name."""
        return self._name


class DifferentiableJpeg(nn.Module):
    """JPEG compression with a differentiable rounding, ``round(x) + (x - round(x))^3``.

    Shin and Song 2017, "JPEG-resistant Adversarial Images" (NIPS workshop on machine learning and computer security).
    The gradient of a coefficient is largest halfway between two quantization levels and 0 on a level. So an attack
    prefers perturbations that survive the compression. With the identity in the backward pass, it breaks fewer images.

    Args:
        quality: quality as in libjpeg, 1 to 95.
    """

    BLOCK_SIZE = 8
    """Side of a block in pixels (ITU-T T.81, A.3.3)."""

    LUMINANCE_QUANTIZATION_TABLE = (
        (16, 11, 10, 16, 24, 40, 51, 61),
        (12, 12, 14, 19, 26, 58, 60, 55),
        (14, 13, 16, 24, 40, 57, 69, 56),
        (14, 17, 22, 29, 51, 87, 80, 62),
        (18, 22, 37, 56, 68, 109, 103, 77),
        (24, 35, 55, 64, 81, 104, 113, 92),
        (49, 64, 78, 87, 103, 121, 120, 101),
        (72, 92, 95, 98, 112, 100, 103, 99),
    )
    """Quantization steps of the coefficients at quality 50, in grey levels of 255 (ITU-T T.81, table K.1)."""

    dct_matrix: Tensor
    quantization_steps: Tensor

    def __init__(self, quality: int) -> None:
        super().__init__()
        index = torch.arange(self.BLOCK_SIZE, dtype=torch.float64)
        dct_matrix = torch.cos((2 * index + 1) * index[:, None] * math.pi / (2 * self.BLOCK_SIZE)) / 2
        dct_matrix[0] /= math.sqrt(2)
        percent = 5000 // quality if quality < 50 else 200 - 2 * quality
        steps = ((torch.tensor(self.LUMINANCE_QUANTIZATION_TABLE) * percent + 50) // 100).clamp(1, 255)
        self.register_buffer("dct_matrix", dct_matrix.float(), persistent=False)
        self.register_buffer("quantization_steps", steps.float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return approximately compressed images ``(N, C, H, W)``; values can lie slightly outside [0, 1]."""
        n, channels, height, width = images.shape
        size = self.BLOCK_SIZE
        padded = F.pad(images, (0, -width % size, 0, -height % size), mode="replicate")
        blocks = (255 * padded - 128).unfold(2, size, size).unfold(3, size, size)
        # bfloat16 is too coarse for 255 grey levels
        with torch.autocast(images.device.type, enabled=False):
            coefficients = self.dct_matrix @ blocks @ self.dct_matrix.T / self.quantization_steps
            levels = coefficients.detach().round()
            quantized = (levels + (coefficients - levels) ** 3) * self.quantization_steps
            restored = self.dct_matrix.T @ quantized @ self.dct_matrix
        restored = restored.transpose(3, 4).reshape(n, channels, *padded.shape[2:])
        return (restored[..., :height, :width] + 128) / 255


class AdditiveGaussianNoise(RandomModule):
    """Gaussian noise, different in every forward pass; the result is clamped to [0, 1].

    The module has its own random generator. ART's version uses numpy's global one, which all steps of a process share.

    Args:
        std: standard deviation of the noise, for images in [0, 1].
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std
        self.reseed([0])

    def reseed(self, seed: Sequence[int]) -> None:
        """Restart the random numbers from a seed."""
        self._generator = np.random.default_rng(seed)

    def forward(self, images: Tensor) -> Tensor:
        """Return noisy images of the same shape and range."""
        shape = images.shape[1:] if self.same_for_all_images else images.shape
        noise = self._generator.standard_normal(shape, dtype=np.float32)
        return (images + self.std * torch.from_numpy(noise).to(images.device)).clamp(0, 1)

    def extra_repr(self) -> str:
        """Return the parameter."""
        return f"std={self.std}"


class MedianFilter(nn.Module):
    """Median filter over a square window, with reflected borders.

    The gradient goes to the pixel that is the median. ART's filter has no gradient. With the identity in its backward
    pass, an attack breaks fewer images.

    Args:
        window: side of the window in pixels, odd.
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        assert window % 2
        self.window = window

    def forward(self, images: Tensor) -> Tensor:
        """Return filtered images of the same shape and range."""
        half, (height, width) = self.window // 2, images.shape[2:]
        rows, columns = (
            torch.cat([index[:half].flip(0), index, index[-half:].flip(0)])
            for index in (torch.arange(side, device=images.device) for side in (height, width))
        )
        pixel_numbers = rows[:, None] * width + columns
        with torch.no_grad():
            padded = images[:, :, rows][..., columns]
            shifts = [
                (slice(down, down + height), slice(right, right + width))
                for down in range(self.window)
                for right in range(self.window)
            ]
            median = _median([padded[:, :, down, right] for down, right in shifts])
            if not images.requires_grad:
                return median
            source = torch.zeros_like(median, dtype=torch.int64)
            for down, right in shifts:
                neighbour = padded[:, :, down, right]
                source = torch.where((neighbour == median) | neighbour.isnan(), pixel_numbers[down, right], source)
        return images.flatten(2).gather(2, source.flatten(2)).view_as(images)

    def extra_repr(self) -> str:
        """Return the parameter."""
        return f"window={self.window}"


def _median(arrays: Sequence[Tensor]) -> Tensor:
    """Return the elementwise median of an odd number of arrays.

    Few arrays are compared and exchanged elementwise (Paeth 1990, Graphics Gems), which is faster than sorting. The
    minimum of any ``n // 2 + 2`` of n values is at most the median of all n, and the maximum is at least the median.
    Both are removed, and the next value is added, until one value is left.
    """
    if len(arrays) > MAX_EXCHANGE_MEDIAN_SIZE:
        return torch.stack(list(arrays), dim=-1).median(dim=-1).values
    n_candidates = len(arrays) // 2 + 2
    candidates, remaining = list(arrays[:n_candidates]), list(arrays[n_candidates:])
    while len(candidates) > 1:
        # the minimum to the front, the maximum to the end
        for i in range(1, len(candidates)):
            low, high = candidates[0], candidates[i]
            candidates[0], candidates[i] = torch.minimum(low, high), torch.maximum(low, high)
        for i in range(1, len(candidates) - 1):
            low, high = candidates[i], candidates[-1]
            candidates[i], candidates[-1] = torch.minimum(low, high), torch.maximum(low, high)
        candidates = candidates[1:-1] + remaining[:1]
        remaining = remaining[1:]
    return candidates[0]


class TotalVariationDenoiser(nn.Module):
    """Total-variation denoising (Rudin, Osher and Fatemi 1992, Physica D 60).

    Minimises ``|u - f|^2 / 2 + weight * TV(u)`` over images u by Chambolle's projection (2004, Journal of Mathematical
    Imaging and Vision 20, 89-97, equation 9), which is differentiable. ART's version is not, and takes more than a
    second for each image.

    Args:
        weight: weight of the total variation, for images in [0, 1].
        n_iterations: number of iterations of the projection.
    """

    STEP_SIZE = 0.25
    """Step size of the projection, the largest that converges in practice (Chambolle 2004, after theorem 3.1)."""

    def __init__(self, weight: float, n_iterations: int) -> None:
        super().__init__()
        self.weight = weight
        self.n_iterations = n_iterations

    def forward(self, images: Tensor) -> Tensor:
        """Return denoised images of the same shape and range."""
        # the dual variable, a vector for each pixel
        down, right = torch.zeros_like(images), torch.zeros_like(images)
        for _ in range(self.n_iterations):
            gradient_down, gradient_right = _forward_differences(_divergence(down, right) - images / self.weight)
            # the square root has no gradient at 0
            length = (gradient_down.square() + gradient_right.square() + 1e-12).sqrt()
            scale = 1 + self.STEP_SIZE * length
            down = (down + self.STEP_SIZE * gradient_down) / scale
            right = (right + self.STEP_SIZE * gradient_right) / scale
        return (images - self.weight * _divergence(down, right)).clamp(0, 1)

    def extra_repr(self) -> str:
        """Return the parameters."""
        return f"weight={self.weight}, n_iterations={self.n_iterations}"


def _forward_differences(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the differences to the next pixel below and to the right, 0 at the border."""
    down, right = images.diff(dim=2), images.diff(dim=3)
    return F.pad(down, (0, 0, 0, 1)), F.pad(right, (0, 1))


def _divergence(down: Tensor, right: Tensor) -> Tensor:
    """Return the divergence, which is the negative adjoint of the forward differences."""
    down, right = down[:, :, :-1], right[..., :-1]
    return F.pad(down, (0, 0, 0, 1)) - F.pad(down, (0, 0, 1, 0)) + F.pad(right, (0, 1)) - F.pad(right, (1, 0))


def build_transform(step: ImageTransform) -> nn.Module:
    """Return the module of a transform of ``params.yaml``."""
    match step:
        case TotalVariation():
            return TotalVariationDenoiser(step.weight, step.n_iterations)
        case GaussianNoise():
            return AdditiveGaussianNoise(step.std)
        case MedianSmoothing():
            return MedianFilter(step.window_size)
        case _:
            return _build_art_transform(step)


def _build_art_transform(step: Jpeg | BitDepth) -> nn.Module:
    import art

    value_range = (0.0, 1.0)
    match step:
        case Jpeg():
            jpeg = art.defences.preprocessor.JpegCompression(value_range, quality=step.quality, channels_first=True)
            return BPDA(jpeg, str(step), DifferentiableJpeg(step.quality))
        case BitDepth():
            return BPDA(art.defences.preprocessor.FeatureSqueezing(value_range, bit_depth=step.bits), str(step))


def build_purifier(
    architecture: str | None = None, steps: Sequence[dict[str, Any]] = (), n_eot_samples: int = 1, n_channels: int = 1
) -> nn.Module:
    """Return a purifier: transforms, an untrained autoencoder, or transforms followed by an autoencoder.

    Args:
        architecture: architecture of the autoencoder; None for transforms alone.
        steps: transforms as in ``params.yaml``; empty for an autoencoder alone.
        n_eot_samples: see :class:`PreprocessingPipeline`; ignored for an autoencoder alone.
        n_channels: channels of the images of the autoencoder.
    """
    autoencoders = [] if architecture is None else [build_autoencoder(architecture, n_channels)]
    if not steps:
        (autoencoder,) = autoencoders
        return autoencoder
    transforms = TypeAdapter(tuple[ImageTransform, ...]).validate_python(tuple(steps))
    return PreprocessingPipeline(*map(build_transform, transforms), *autoencoders, n_eot_samples=n_eot_samples)
