"""Norms of perturbations, and the check that adversarial examples stay in their ball and in the value range."""

from collections.abc import Sequence

import numpy as np

TOLERANCE = 1e-6
"""Largest distance from the ball or the value range that counts as a rounding error, in units of the value range."""


def perturbation_norms(images: np.ndarray, adversarial: np.ndarray) -> dict[str, np.ndarray]:
    """Return the ``linf`` and ``l2`` norms of perturbations, float64 ``(N,)``, from two arrays ``(N, C, H, W)``."""
    flat = (
        adversarial_image.astype(np.float64).ravel() - image.ravel()
        for image, adversarial_image in zip(images, adversarial, strict=True)
    )
    norms = [(np.abs(perturbation).max(), np.linalg.norm(perturbation)) for perturbation in flat]
    both = np.array(norms, dtype=np.float64).reshape(-1, 2)
    return {"linf": both[:, 0], "l2": both[:, 1]}


def ball_excess(norms: np.ndarray, eps: np.ndarray | float, radius: np.ndarray | float) -> np.ndarray:
    """Return the excess of perturbations over their ball, per pixel, ``(N,)``; negative inside the ball.

    The excess is ``(norm / radius - 1) * eps / 255``, in units of the value range. For linf it equals the norm minus
    the radius. For l2 it is the excess of the root mean square over the pixels. The L2 norm itself adds the rounding
    errors of 50,000 float32 values, which together exceed ``TOLERANCE``.

    Args:
        norms: norms of the perturbations, in the norm of the ball, ``(N,)``.
        eps: eps in units of 1/255 of the value range, one for all or ``(N,)``.
        radius: radius of the ball in units of the value range, one for all or ``(N,)``.
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
    """Check that adversarial examples are in their ball and in the value range.

    Args:
        adversarial: adversarial examples, ``(N, C, H, W)``.
        norms: norms of the perturbations, in the norm of the ball, ``(N,)``.
        eps: eps in units of 1/255 of the value range.
        radius: radius of the ball in units of the value range.
        value_range: smallest and largest value of a pixel.
        names: names of the images for the error message; without them, their numbers.

    Raises:
        AssertionError: an image is outside by more than ``TOLERANCE``, or contains NaN.
    """
    low, high = value_range
    flat = adversarial.reshape(len(adversarial), -1)
    range_excess = np.maximum(low - flat.min(axis=1), flat.max(axis=1) - high)
    excess_by_rule = {
        f"adversarial examples leave the value range [{low:g}, {high:g}]": range_excess,
        f"perturbations leave the ball of eps {eps:g} and radius {radius:g}": ball_excess(norms, eps, radius),
    }
    for rule, excess in excess_by_rule.items():
        # negated, since every comparison with NaN is false
        if len(failed := np.flatnonzero(~(excess <= TOLERANCE))):
            first = names[failed[0]] if names is not None else failed[0]
            raise AssertionError(
                f"{rule} by {excess[failed[0]]:g}: {len(failed)} of {len(excess)} images; the first is {first}"
            )
