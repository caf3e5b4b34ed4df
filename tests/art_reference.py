"""FGSM and PGD, by this project and by ART, with one signature: the two implementations are compared in tests."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from tasks.attacks import art_attacks
from tasks.attacks.gradient.fgsm import fgsm
from tasks.attacks.gradient.norm_ball import NormBall
from tasks.attacks.gradient.pgd import pgd
from tasks.params import Attack

Craft = Callable[
    [nn.Module, np.ndarray, np.ndarray, int, str, list[float], Attack, tuple[float, float], int], Iterator[np.ndarray]
]


def craft(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    attack: str,
    radii: list[float],
    settings: Attack,
    value_range: tuple[float, float],
    seed: int,
) -> Iterator[np.ndarray]:
    """FGSM or PGD of this project; arguments as of :func:`craft_by_art`.

    The number of an image within the batch is its ``image_id``.
    """
    batch, ball = (torch.from_numpy(images), torch.from_numpy(labels)), NormBall(settings.norm, value_range)
    if attack == "fgsm":
        crafted = fgsm(model, *batch, radii, ball)
    else:
        assert attack == "pgd", attack
        crafted = pgd(model, *batch, radii, ball, settings.pgd, seed, np.arange(len(images)))
    for adversarial in crafted:
        yield adversarial.numpy()


def craft_by_art(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    attack: str,
    radii: list[float],
    settings: Attack,
    value_range: tuple[float, float],
    seed: int,
) -> Iterator[np.ndarray]:
    """FGSM or PGD of ART; arguments as of :func:`tasks.attacks.art_attacks.craft_by_art`, with our names."""
    yield from art_attacks.craft_by_art(
        model, images, labels, n_classes, f"art_{attack}", radii, settings, value_range, seed
    )


IMPLEMENTATIONS: dict[str, Craft] = {"ours": craft, "art": craft_by_art}
