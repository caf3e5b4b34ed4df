"""FGSM and PGD, by this project and by ART, with one signature: the two implementations are compared in tests."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from tasks.attacks.art_estimator import ART_NORMS, art_estimator, numpy_seeded
from tasks.attacks.gradient.fgsm import fgsm
from tasks.attacks.gradient.norm_ball import NormBall
from tasks.attacks.gradient.pgd import pgd
from tasks.params import Attack
from tasks.records.scores import margin

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
    """``FastGradientMethod`` or ``ProjectedGradientDescentPyTorch`` of the Adversarial Robustness Toolbox.

    Args:
        model: takes images and returns logits ``(N, K)``; in evaluation mode, parameters frozen.
        images: float32 ``(N, C, H, W)`` within ``value_range``.
        labels: true classes, int64 ``(N,)``.
        n_classes: K.
        attack: ``fgsm`` or ``pgd``.
        radii: in units of the value range.
        settings: norm, batch size, and the settings of PGD.
        value_range: lowest and highest value of a pixel.
        seed: of the random starts. ART draws them from numpy's global generator, which is seeded here.

    Yields:
        For each radius the adversarial images, float32 ``(N, C, H, W)``, within the ball and the value range up to
        rounding.
    """
    import art

    evasion = art.attacks.evasion
    projected = evasion.projected_gradient_descent.projected_gradient_descent_pytorch
    estimator = art_estimator(model, images.shape[1:], n_classes, value_range)
    one_hot = np.eye(n_classes, dtype=np.float32)[labels]
    for radius in radii:
        common = {"norm": ART_NORMS[settings.norm], "eps": radius, "batch_size": settings.batch_size}
        if attack == "fgsm":
            yield evasion.FastGradientMethod(estimator, **common).generate(images, y=one_hot)
            continue
        assert attack == "pgd", attack
        descent = projected.ProjectedGradientDescentPyTorch(
            estimator,
            **common,
            eps_step=settings.pgd.relative_step_size * radius,
            max_iter=settings.pgd.n_steps,
            num_random_init=min(settings.pgd.n_random_starts, 1),
            verbose=False,
        )
        with numpy_seeded(seed):
            strongest = descent.generate(images, y=one_hot)
            # ART's own restarts keep images whose prediction changed, and so may correct a wrong prediction
            smallest = margin(estimator.predict(strongest), labels)
            for _ in range(settings.pgd.n_random_starts - 1):
                candidate = descent.generate(images, y=one_hot)
                margins = margin(estimator.predict(candidate), labels)
                better = margins < smallest
                strongest[better], smallest[better] = candidate[better], margins[better]
        yield strongest


IMPLEMENTATIONS: dict[str, Craft] = {"ours": craft, "art": craft_by_art}
