"""Balls around images: their radius, steps towards their border, and starts inside them."""

import math

import numpy as np
import torch
from torch import Tensor


def radius(eps: float, norm: str, n_pixels: int) -> float:
    """Radius of the ball in units of the value range: eps / 255, for l2 times the root of the number of pixels.

    So an l2 eps is the root-mean-square change of a pixel, as an linf eps is its largest change.
    """
    return eps / 255 * (math.sqrt(n_pixels) if norm == "l2" else 1.0)


def steepest(gradient: Tensor, norm: str) -> Tensor:
    """The change of norm 1 that gains most along the gradient: its sign (linf), or its direction (l2).

    Args:
        gradient: ``(N, 1, H, W)``; where it is zero, so is the change.
        norm: ``linf`` or ``l2``.
    """
    if norm == "linf":
        return gradient.sign()
    tiny = torch.finfo(gradient.dtype).tiny
    # the squares of small numbers vanish; of a confident classifier's gradient they may be all there is
    scaled = gradient / gradient.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min_(tiny)
    return scaled / l2_norm(scaled).clamp_min_(tiny)


def project(moved: Tensor, images: Tensor, radii: Tensor, norm: str, value_range: tuple[float, float]) -> Tensor:
    """The point of the ball, within the value range, next to where an image was moved.

    For l2 it is cut to the value range first and drawn towards the image then, which leads out of neither, as ART does.

    Args:
        moved: ``(N, 1, H, W)``; it is overwritten.
        images: the balls' centres, within the value range, ``(N, 1, H, W)``.
        radii: ``(N, 1, 1, 1)`` or one for all, in units of the value range.
        norm: ``linf`` or ``l2``.
        value_range: lowest and highest value of a pixel.
    """
    change = moved.clamp_(*value_range).sub_(images)
    if norm == "linf":
        change.clamp_(-radii, radii)
    else:
        change.mul_((radii / l2_norm(change).clamp_min_(torch.finfo(change.dtype).tiny)).clamp_max_(1))
    return change.add_(images)


def random_start(seed: int, row: int, restart: int, shape: tuple[int, ...], norm: str) -> np.ndarray:
    """A point drawn evenly from the ball of radius 1, float32 of the given shape.

    It depends on the seed, the image and the number of the restart alone: every eps, attack and target starts from the
    same point of its ball, whatever was attacked before or beside it.
    """
    rng = np.random.default_rng([seed, row, restart])
    if norm == "linf":
        return rng.random(shape, dtype=np.float32) * 2 - 1
    direction = rng.standard_normal(shape, dtype=np.float32)
    length = rng.random() ** (1 / direction.size)
    return direction * np.float32(length / np.linalg.norm(direction))


def l2_norm(changes: Tensor) -> Tensor:
    """Of each image: ``(N, 1, H, W)`` to ``(N, 1, 1, 1)``."""
    norms: Tensor = torch.linalg.vector_norm(changes, dim=(1, 2, 3), keepdim=True)
    return norms
