"""Attacks: adversarial examples through the Adversarial Robustness Toolbox, and what a target makes of them."""

import hashlib
import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from tasks.defences.purified import Purified
from tasks.evaluation.scores import margin
from tasks.params import Attack

ORDERS: dict[str, Any] = {"linf": np.inf, "l2": 2}
"""Name of a norm -> its order, as ART takes it."""


def radius(eps: float, norm: str, n_pixels: int) -> float:
    """Radius of the ball in units of the value range: eps / 255, for l2 times the root of the number of pixels.

    So an l2 eps is the root-mean-square change of a pixel, as an linf eps is its largest change.
    """
    return eps / 255 * (math.sqrt(n_pixels) if norm == "l2" else 1.0)


def craft(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    attack: str,
    eps: float,
    settings: Attack,
    value_range: tuple[float, float],
    seed: int,
) -> np.ndarray:
    """Untargeted adversarial examples against the true labels, by cross-entropy.

    ``fgsm``: fast gradient sign method, one step of size eps (Goodfellow et al. 2015, arXiv 1412.6572).
    ``pgd``: projected gradient descent (Madry et al. 2018, arXiv 1706.06083), ``n_steps`` steps of
    ``relative_step`` * eps; of several random starts, each image keeps the one with the smallest margin.

    Args:
        model: white box, takes images and returns logits ``(N, K)``; in evaluation mode, parameters frozen.
        images: float32 ``(N, 1, H, W)`` within ``value_range``.
        labels: true classes, int ``(N,)``.
        n_classes: K.
        attack: ``fgsm`` or ``pgd``.
        eps: in 1/255 of the value range; see :func:`radius`.
        settings: norm, batch size, and the numbers of PGD.
        value_range: lowest and highest value of a pixel.
        seed: of the random starts. ART draws them from numpy's global state, which is seeded here.

    Returns:
        float32 ``(N, 1, H, W)``, within the ball and ``value_range`` up to rounding.
    """
    logging.getLogger("art").setLevel(logging.WARNING)
    from art.attacks.evasion import FastGradientMethod
    from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch import (
        ProjectedGradientDescentPyTorch,
    )
    from art.estimators.classification import PyTorchClassifier

    estimator = PyTorchClassifier(
        model=model,
        loss=nn.CrossEntropyLoss(),
        input_shape=images.shape[1:],
        nb_classes=n_classes,
        clip_values=value_range,
        device_type="gpu" if device_of(model).type == "cuda" else "cpu",
    )
    size = radius(eps, settings.norm, math.prod(images.shape[1:]))
    common = {"norm": ORDERS[settings.norm], "eps": size, "batch_size": settings.batch_size}
    one_hot = np.eye(n_classes, dtype=np.float32)[labels]

    if attack == "fgsm":
        fgsm = FastGradientMethod(estimator, **common)
        adversarial: np.ndarray = fgsm.generate(images, y=one_hot)
        return adversarial

    assert attack == "pgd", attack
    pgd = ProjectedGradientDescentPyTorch(
        estimator,
        **common,
        eps_step=settings.pgd.relative_step * size,
        max_iter=settings.pgd.n_steps,
        num_random_init=min(settings.pgd.n_restarts, 1),
        verbose=False,
    )
    np.random.seed(seed)
    strongest: np.ndarray = pgd.generate(images, y=one_hot)
    # ART's own restarts keep what differs from the clean prediction, so that they can turn a wrong one right
    if settings.pgd.n_restarts > 1:
        smallest = margin(observe(model, strongest, settings.batch_size).logits, labels)
        for _ in range(settings.pgd.n_restarts - 1):
            candidate = pgd.generate(images, y=one_hot)
            margins = margin(observe(model, candidate, settings.batch_size).logits, labels)
            better = margins < smallest
            strongest[better], smallest[better] = candidate[better], margins[better]
    return strongest


def seed_of(seed: int, surrogate: str, attack: str, eps: float) -> int:
    """A seed in [0, 2**32) for one crafting, so that its random starts don't depend on what was crafted before."""
    digest = hashlib.sha256(f"{seed}/{surrogate}/{attack}/{eps:g}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


@dataclass(frozen=True)
class Observation:
    """What a target makes of N images."""

    logits: np.ndarray
    """float32 ``(N, K)``."""
    reconstruction_error: np.ndarray | None
    """Mean squared difference between purified and given image, float64 ``(N,)``; None without a purifier."""


def observe(target: nn.Module, images: np.ndarray, batch_size: int) -> Observation:
    """Logits of the target, and the reconstruction error of its purifier.

    Args:
        target: in evaluation mode, on any device.
        images: float32 ``(N, 1, H, W)`` in [0, 1].
        batch_size: images a forward pass.
    """
    device = device_of(target)
    logits, errors = [], []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(images[start : start + batch_size]).to(device)
            if isinstance(target, Purified):
                purified = target.purifier(batch)
                errors.append((purified - batch).square().mean(dim=(1, 2, 3)).cpu().numpy())
                logits.append(target.classifier(purified).cpu().numpy())
            else:
                logits.append(target(batch).cpu().numpy())
    return Observation(np.concatenate(logits), np.concatenate(errors).astype(np.float64) if errors else None)


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters of a model are."""
    return next(model.parameters()).device
