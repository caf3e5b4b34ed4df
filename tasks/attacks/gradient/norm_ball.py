"""Balls around images: their radius, steps towards their border, and starts inside them."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def radius(eps: float, norm: str, n_pixels: int) -> float:
    """Radius of the ball in units of the value range: eps / 255, for l2 times the root of the number of pixels.

    So an l2 eps is the root-mean-square change of a pixel, as an linf eps is its largest change.
    """
    return eps / 255 * (math.sqrt(n_pixels) if norm == "l2" else 1.0)


@dataclass(frozen=True)
class Balls:
    """The kind of balls around images that adversarial examples stay in, whatever their radius."""

    norm: str
    """``linf`` or ``l2``."""
    value_range: tuple[float, float]
    """Lowest and highest value of a pixel."""

    def steepest(self, gradient: Tensor) -> Tensor:
        """The change of norm 1 that gains most along the gradient: its sign (linf), or its direction (l2).

        Args:
            gradient: ``(N, 1, H, W)``; where it is zero or no number, the change is zero.
        """
        if self.norm == "linf":
            return gradient.sign()
        gradient = gradient.nan_to_num(0, 0, 0)
        tiny = torch.finfo(gradient.dtype).tiny
        # the squares of small numbers vanish; of a confident classifier's gradient they may be all there is
        scaled = gradient / gradient.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min_(tiny)
        return scaled / _l2_norm(scaled).clamp_min_(tiny)

    def slope(self, gradient: Tensor) -> Tensor:
        """What the steepest change gains: ``(N, 1, H, W)`` to the dual norm ``(N,)``."""
        return gradient.abs().sum(dim=(1, 2, 3)) if self.norm == "linf" else _l2_norm(gradient)[:, 0, 0, 0]

    def project(self, moved: Tensor, images: Tensor, radii: Tensor) -> Tensor:
        """The point of the ball, within the value range, next to where an image was moved.

        For l2 it is cut to the value range first and drawn towards the image then, which leads out of neither, as ART
        does.

        Args:
            moved: ``(N, 1, H, W)``; it is overwritten.
            images: the balls' centres, within the value range, ``(N, 1, H, W)``.
            radii: ``(N, 1, 1, 1)`` or one for all, in units of the value range.
        """
        change = moved.clamp_(*self.value_range).sub_(images)
        if self.norm == "linf":
            # clamp_ with two tensors takes eight times as long
            change.clamp_min_(-radii).clamp_max_(radii)
        else:
            change.mul_((radii / _l2_norm(change).clamp_min_(torch.finfo(change.dtype).tiny)).clamp_max_(1))
        return change.add_(images)

    def random_starts(
        self, images: Tensor, radii: Tensor | float, seed: int, rows: np.ndarray, restarts: np.ndarray
    ) -> Tensor:
        """For each image a point drawn evenly from its ball, then cut to the value range, ``(N, 1, H, W)``.

        It depends on the seed, the image and the number of the restart alone: every eps, attack and target starts from
        the same point of its ball, whatever was attacked before or beside it.

        Args:
            images: the balls' centres, within the value range, at least one, ``(N, 1, H, W)``.
            radii: ``(N, 1, 1, 1)`` or one for all, in units of the value range.
            seed: of all starts.
            rows: a number for each image, int ``(N,)``.
            restarts: number of each image's restart, int ``(N,)``.
        """
        drawn = [
            self._draw([seed, int(row), int(restart)], images.shape[1:])
            for row, restart in zip(rows, restarts, strict=True)
        ]
        starts = torch.from_numpy(np.stack(drawn)).to(images.device)
        return starts.mul_(radii).add_(images).clamp_(*self.value_range)

    def _draw(self, seed: list[int], shape: tuple[int, ...]) -> np.ndarray:
        """A point of the ball of radius 1 around 0, float32."""
        rng = np.random.default_rng(seed)
        if self.norm == "linf":
            return rng.random(shape, dtype=np.float32) * 2 - 1
        direction = rng.standard_normal(shape, dtype=np.float32)
        length = rng.random() ** (1 / direction.size)
        return direction * np.float32(length / np.linalg.norm(direction))


def _l2_norm(changes: Tensor) -> Tensor:
    """Of each image: ``(N, 1, H, W)`` to ``(N, 1, 1, 1)``."""
    norms: Tensor = torch.linalg.vector_norm(changes, dim=(1, 2, 3), keepdim=True)
    return norms
