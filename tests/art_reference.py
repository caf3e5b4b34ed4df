"""FGSM and PGD by ART's own classes, one eps after the other: what our own are held against."""

from collections.abc import Iterator

import numpy as np
from torch import nn

from tasks.attacks.estimators import ORDERS, estimator_of, numpy_seeded
from tasks.params import Attack
from tasks.records.scores import margin


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
        model: white box, takes images and returns logits ``(N, K)``; in evaluation mode, parameters frozen.
        images: float32 ``(N, 1, H, W)`` within ``value_range``.
        labels: true classes, int ``(N,)``.
        n_classes: K.
        attack: ``fgsm`` or ``pgd``.
        radii: in units of the value range.
        settings: norm, batch size, and the numbers of PGD.
        value_range: lowest and highest value of a pixel.
        seed: of the random starts. ART draws them from numpy's global state, which is seeded here.

    Yields:
        For each radius the adversarial images, float32 ``(N, 1, H, W)``, within the ball and the value range up to
        rounding.
    """
    import art

    evasion = art.attacks.evasion
    descent = evasion.projected_gradient_descent.projected_gradient_descent_pytorch
    estimator = estimator_of(model, images.shape[1:], n_classes, value_range)
    one_hot = np.eye(n_classes, dtype=np.float32)[labels]
    for radius in radii:
        common = {"norm": ORDERS[settings.norm], "eps": radius, "batch_size": settings.batch_size}
        if attack == "fgsm":
            yield evasion.FastGradientMethod(estimator, **common).generate(images, y=one_hot)
            continue
        assert attack == "pgd", attack
        pgd = descent.ProjectedGradientDescentPyTorch(
            estimator,
            **common,
            eps_step=settings.pgd.relative_step * radius,
            max_iter=settings.pgd.n_steps,
            num_random_init=min(settings.pgd.n_restarts, 1),
            verbose=False,
        )
        with numpy_seeded(seed):
            strongest = pgd.generate(images, y=one_hot)
            # ART's own restarts keep what differs from the clean prediction, so that they can turn a wrong one right
            smallest = margin(estimator.predict(strongest), labels)
            for _ in range(settings.pgd.n_restarts - 1):
                candidate = pgd.generate(images, y=one_hot)
                margins = margin(estimator.predict(candidate), labels)
                better = margins < smallest
                strongest[better], smallest[better] = candidate[better], margins[better]
        yield strongest
