"""Norm balls around images: radius, steepest steps, projection and random starts."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tasks.attacks.gradient.seeding import generator


def radius(eps: float, norm: str, n_pixels: int) -> float:
    """Radius of a ball in units of the value range: eps / 255, for l2 multiplied by sqrt(number of pixels).

    With this factor an l2 eps is the root-mean-square change of a pixel; an linf eps is the largest change of a pixel.

    Args:
        eps: in 1/255 of the value range.
        norm: ``linf`` or ``l2``.
        n_pixels: values of an image, C x H x W.
    """
    return eps / 255 * (math.sqrt(n_pixels) if norm == "l2" else 1.0)


@dataclass(frozen=True)
class NormBall:
    """The norm of the balls around images, and the value range that adversarial examples stay in."""

    norm: str
    """``linf`` or ``l2``."""
    value_range: tuple[float, float]
    """Lowest and highest value of a pixel."""

    def steepest(self, gradient: Tensor) -> Tensor:
        """Direction of norm 1 with the largest slope: the sign of the gradient (linf), or the gradient scaled (l2).

        Args:
            gradient: ``(N, C, H, W)``; where it is zero or NaN, the direction is zero.
        """
        if self.norm == "linf":
            return gradient.sign()
        gradient = gradient.nan_to_num(0, 0, 0)
        tiny = torch.finfo(gradient.dtype).tiny
        # the gradient of a confident classifier may be so small that its squares underflow
        scaled = gradient / gradient.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min_(tiny)
        return scaled / _l2_norm(scaled).clamp_min_(tiny)

    def slope(self, gradient: Tensor) -> Tensor:
        """Slope along the steepest direction, which is the dual norm: ``(N, C, H, W)`` to ``(N,)``."""
        return gradient.abs().sum(dim=(1, 2, 3)) if self.norm == "linf" else _l2_norm(gradient)[:, 0, 0, 0]

    def size(self, changes: Tensor) -> Tensor:
        """Norm of each perturbation: ``(N, C, H, W)`` to ``(N,)``."""
        if self.norm == "linf":
            return changes.abs().amax(dim=(1, 2, 3))
        return _l2_norm(changes)[:, 0, 0, 0]

    def project(self, perturbed: Tensor, images: Tensor, radii: Tensor) -> Tensor:
        """Project perturbed images into their balls and the value range.

        For l2 the image is clipped to the value range and then moved towards the centre, as ART does; the result lies
        in both, but is not always the nearest such point.

        Args:
            perturbed: ``(N, C, H, W)``; it is overwritten.
            images: the centres, within the value range, ``(N, C, H, W)``.
            radii: ``(N, 1, 1, 1)`` or one for all, in units of the value range.
        """
        change = perturbed.clamp_(*self.value_range).sub_(images)
        if self.norm == "linf":
            # clamp_ with two tensor bounds is eight times slower
            change.clamp_min_(-radii).clamp_max_(radii)
        else:
            change.mul_((radii / _l2_norm(change).clamp_min_(torch.finfo(change.dtype).tiny)).clamp_max_(1))
        return change.add_(images)

    def project_arrays(self, perturbed: np.ndarray, images: np.ndarray, radius: float) -> np.ndarray:
        """Project the images of another package or of a user, in which values that are not finite are replaced.

        Args:
            perturbed: ``(N, C, H, W)``; NaN and infinity become the value of ``images``.
            images: the centres, float32, within the value range, ``(N, C, H, W)``.
            radius: in units of the value range.

        Returns:
            float32 ``(N, C, H, W)``, within the balls and the value range.
        """
        usable = np.where(np.isfinite(perturbed), perturbed, images).astype(np.float32)
        radii = torch.full((len(images), 1, 1, 1), radius)
        return self.project(torch.from_numpy(usable), torch.from_numpy(images), radii).numpy()

    def random_starts(
        self, images: Tensor, radii: Tensor | float, seed: int, attack: str, image_ids: np.ndarray, restarts: np.ndarray
    ) -> Tensor:
        """A point drawn uniformly from the ball of each image, then clipped to the value range, ``(N, C, H, W)``.

        A start depends on the seed, the name of the attack, the image and the number of the restart alone. It does not
        depend on the other images of the batch, and the starts of two attacks are independent.

        Args:
            images: the centres, within the value range, at least one, ``(N, C, H, W)``.
            radii: ``(N, 1, 1, 1)`` or one for all, in units of the value range.
            seed: of all starts.
            attack: name of the attack that begins there.
            image_ids: a number for each image, int ``(N,)``.
            restarts: number of each image's restart, int ``(N,)``.
        """
        drawn = [
            self._draw(generator(seed, attack, int(image), int(restart)), images.shape[1:])
            for image, restart in zip(image_ids, restarts, strict=True)
        ]
        starts = torch.from_numpy(np.stack(drawn)).to(images.device)
        return starts.mul_(radii).add_(images).clamp_(*self.value_range)

    def _draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """A point drawn uniformly from the ball of radius 1 around 0, float32."""
        if self.norm == "linf":
            return rng.random(shape, dtype=np.float32) * 2 - 1
        direction = rng.standard_normal(shape, dtype=np.float32)
        length = rng.random() ** (1 / direction.size)
        return direction * np.float32(length / np.linalg.norm(direction))


def _l2_norm(changes: Tensor) -> Tensor:
    """L2 norm of each image: ``(N, C, H, W)`` to ``(N, 1, 1, 1)``."""
    norms: Tensor = torch.linalg.vector_norm(changes, dim=(1, 2, 3), keepdim=True)
    return norms
