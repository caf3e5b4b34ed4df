"""What happens to a batch of images: adversarial examples at every eps, and what a target makes of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tasks.attacks.gradient.balls import Balls, radius
from tasks.attacks.gradient.descent import fgsm, pgd
from tasks.defences.purified import Purified
from tasks.models.compute import device_of
from tasks.params import Attack


def craft(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    attack: str,
    settings: Attack,
    value_range: tuple[float, float],
    seed: int,
    rows: np.ndarray,
) -> Iterator[np.ndarray]:
    """Untargeted adversarial examples against the true labels, by cross-entropy, at every eps of the settings.

    Args:
        model: white box, takes images and returns logits ``(N, K)``; in evaluation mode, parameters frozen.
        images: a batch, float32 ``(N, 1, H, W)`` within ``value_range``.
        labels: true classes, int64 ``(N,)``.
        n_classes: K.
        attack: ``fgsm`` or ``pgd``.
        settings: norm, eps, mode and the numbers of PGD.
        value_range: lowest and highest value of a pixel.
        seed: of the random starts.
        rows: the images' rows in the prepared table, ``(N,)``, on which their random starts depend (in ``reference``
            mode those of a batch on its first).

    Yields:
        For each eps float32 ``(N, 1, H, W)``, within the ball and ``value_range`` up to rounding.
    """
    radii = [radius(eps, settings.norm, images[0].size) for eps in settings.eps]
    if settings.mode == "reference":
        from tasks.attacks.reference import craft_by_art

        # numpy's global generator takes 32 bits
        batch_seed = int(np.random.SeedSequence([seed, int(rows[0])]).generate_state(1)[0])
        yield from craft_by_art(model, images, labels, n_classes, attack, radii, settings, value_range, batch_seed)
        return

    device = device_of(model)
    batch = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
    balls = Balls(settings.norm, value_range)
    if attack == "fgsm":
        crafted = fgsm(model, *batch, radii, balls)
    else:
        assert attack == "pgd", attack
        crafted = pgd(model, *batch, radii, balls, settings.pgd, seed, rows)
    for adversarial in crafted:
        yield adversarial.cpu().numpy()


@dataclass(frozen=True)
class Observation:
    """What a target makes of N images."""

    logits: np.ndarray
    """float32 ``(N, K)``."""
    reconstruction_error: np.ndarray | None
    """Mean squared difference between purified and given image, over all looks, float64 ``(N,)``; None without a
    purifier."""


def observe(target: nn.Module, images: np.ndarray) -> Observation:
    """Logits of the target, and the reconstruction error of its purifier.

    Args:
        target: in evaluation mode, on any device.
        images: a batch, float32 ``(N, 1, H, W)`` in [0, 1].
    """
    with torch.inference_mode():
        batch = torch.from_numpy(images).to(device_of(target))
        if not isinstance(target, Purified):
            return Observation(target(batch).cpu().numpy(), None)
        looks = [target.purifier(batch) for _ in range(target.n_draws)]
        error = torch.stack([(purified - batch).square().mean(dim=(1, 2, 3)) for purified in looks]).mean(dim=0)
        return Observation(target.classify(looks).cpu().numpy(), error.cpu().numpy().astype(np.float64))
