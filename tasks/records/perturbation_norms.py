"""Perturbations held to the ball that the attacker may move in."""

from collections.abc import Sequence

import numpy as np

TOLERANCE = 1e-6
"""How far rounding may lead out of the ball or the value range, in units of the value range."""


def perturbation_norms(images: np.ndarray, adversarial: np.ndarray) -> dict[str, np.ndarray]:
    """``linf`` and ``l2`` norm of each perturbation, float64 ``(N,)``, from two arrays ``(N, 1, H, W)``."""
    flat = (
        adversarial_image.astype(np.float64).ravel() - image.ravel()
        for image, adversarial_image in zip(images, adversarial, strict=True)
    )
    norms = [(np.abs(perturbation).max(), np.linalg.norm(perturbation)) for perturbation in flat]
    both = np.array(norms, dtype=np.float64).reshape(-1, 2)
    return {"linf": both[:, 0], "l2": both[:, 1]}


def ball_excess(norms: np.ndarray, eps: np.ndarray | float, radius: np.ndarray | float) -> np.ndarray:
    """How far perturbations reach beyond their ball, in units of the value range a pixel; negative inside.

    The excess over the radius as a share of it, times eps / 255. For linf that is the norm minus the radius; for l2 it
    is the same in root-mean-square over the pixels: the norm of 50,000 float32 numbers can't be held to 1e-6 itself.

    Args:
        norms: of the perturbations, in the norm of the ball, ``(N,)``.
        eps: in 1/255 of the value range, one or ``(N,)``.
        radius: in units of the value range, one or ``(N,)``.
    """
    excess: np.ndarray = (norms / radius - 1) * eps / 255
    return excess


def check_adversarial(
    adversarial: np.ndarray,
    norms: np.ndarray,
    eps: float,
    radius: float,
    value_range: tuple[float, float],
    names: Sequence[str] | None = None,
) -> None:
    """Hold adversarial examples ``(N, 1, H, W)`` to their ball (see :func:`ball_excess`) and to the value range.

    Raises:
        AssertionError: one lies outside of either by more than ``TOLERANCE``, or holds NaN; with its name, or else its
            number.
    """
    low, high = value_range
    flat = adversarial.reshape(len(adversarial), -1)
    outside = np.maximum(low - flat.min(axis=1), flat.max(axis=1) - high)
    excess = ball_excess(norms, eps, radius)
    rules = {
        f"adversarial examples leave the value range [{low:g}, {high:g}]": outside,
        f"perturbations leave the ball of eps {eps:g} and radius {radius:g}": excess,
    }
    for rule, by in rules.items():
        # no comparison holds for NaN
        if len(beyond := np.flatnonzero(~(by <= TOLERANCE))):
            first = names[beyond[0]] if names is not None else beyond[0]
            raise AssertionError(f"{rule} by {by[beyond[0]]:g}: {len(beyond)} of {len(by)} images, {first} the first")
