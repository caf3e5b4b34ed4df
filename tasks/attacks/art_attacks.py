"""Evasion attacks of the Adversarial Robustness Toolbox (ART): those that a user adds, and a reference for ours.

ART's own FGSM and PGD run on a part of the images of every target, with the steps, random starts and balls of ours. A
check compares the two. Rows ``{art: ClassName, ...arguments}`` of ``attack.attacks`` name further attacks.
"""

import inspect
from collections.abc import Iterator
from typing import Any

import art
import numpy as np
import torch
from torch import nn

from tasks.attacks.art_estimator import ART_NORMS, art_estimator, numpy_seeded
from tasks.attacks.gradient.norm_ball import NormBall
from tasks.params import ArtAttack, Attack
from tasks.records.perturbation_norms import TOLERANCE, perturbation_norms
from tasks.records.scores import margin
from tasks.records.vocabulary import ART_REFERENCE

OTHER_GEOMETRY = ("Patch", "Texture", "Spatial", "Laser", "GRAPHITE", "Wasserstein", "Shadow", "Pixel", "Threshold")
"""Parts of the names of attacks whose perturbations are not meant for a ball of this norm."""


def check_art_attacks(settings: Attack) -> None:
    """Refuse rows of ``attack.attacks`` that ART cannot run here, before any work.

    Raises:
        ValueError: an attack is unknown, is not for images in a norm ball or for PyTorch classifiers, or has an unknown
            argument.
    """
    for row in settings.art_attacks.values():
        evasion_class(row)


def evasion_class(row: ArtAttack) -> Any:
    """ART's class of a row of ``attack.attacks``.

    Raises:
        ValueError: see :func:`check_art_attacks`.
    """
    where, name = f"attack.attacks: art {row.art!r}", row.art
    cls: Any = getattr(art.attacks.evasion, name, None)
    is_attack = inspect.isclass(cls) and issubclass(cls, art.attacks.EvasionAttack)
    if not is_attack:
        raise ValueError(f"{where} is not a class of art.attacks.evasion. Use a name such as MomentumIterativeMethod")
    if any(part in name for part in OTHER_GEOMETRY):
        raise ValueError(
            f"{where} is not supported: patch, spatial and single-pixel attacks do not stay in a norm ball around an "
            "image, so they have no robust accuracy at an eps. Use an attack with eps, or one of minimal norm"
        )
    classifier = art.estimators.classification.PyTorchClassifier
    if not all(_accepts(classifier, needed) for needed in cls._estimator_requirements):
        raise ValueError(f"{where} does not accept a PyTorch classifier. Use another attack")
    given = set(row.arguments)
    if own := sorted(given & {"eps", "eps_step", "norm", "batch_size", "verbose"}):
        raise ValueError(f"{where}: {own} are set from attack.eps, attack.norm and attack.pgd. Remove them")
    if unknown := sorted(given - set(inspect.signature(cls).parameters)):
        raise ValueError(f"{where} has no arguments {unknown}. Allowed: {sorted(inspect.signature(cls).parameters)}")
    return cls


def craft_by_art(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    attack: str,
    radii: list[float],
    settings: Attack,
    value_range: tuple[float, float],
    seed: int | np.ndarray,
) -> Iterator[np.ndarray]:
    """An attack of ART at each radius.

    An attack of minimal norm has no eps: it runs once, and its result counts at the radii whose ball contains it.

    Args:
        model: takes images and returns logits ``(N, K)``; in evaluation mode, parameters frozen.
        images: float32 ``(N, C, H, W)`` within ``value_range``.
        labels: true classes, int64 ``(N,)``.
        n_classes: K.
        attack: a key of :data:`ART_REFERENCE` or of ``settings.art_attacks``.
        radii: in units of the value range.
        settings: norm, batch size, and the settings of PGD.
        value_range: lowest and highest value of a pixel.
        seed: of the random starts. ART draws them from numpy's global generator, which is seeded here.

    Yields:
        For each radius the adversarial images, float32 ``(N, C, H, W)``, within the ball and the value range.

    Raises:
        ValueError: ART's attack failed.
    """
    estimator = art_estimator(model, images.shape[1:], n_classes, value_range)
    one_hot = np.eye(n_classes, dtype=np.float32)[labels]
    ball = NormBall(settings.norm, value_range)
    if attack in ART_REFERENCE:
        for radius in radii:
            # parts of ART draw from torch's global generator
            with numpy_seeded(seed), torch.random.fork_rng():
                crafted = _reference(attack, estimator, images, labels, one_hot, radius, settings)
            yield ball.project_arrays(crafted, images, radius)
        return

    row = settings.art_attacks[attack]
    cls = evasion_class(row)
    common = {"norm": ART_NORMS[settings.norm], "batch_size": settings.batch_size, "verbose": False}
    if "eps" not in cls.attack_params:
        nearest = _generate(cls, row, estimator, common, images, one_hot, seed)
        sizes = perturbation_norms(images, nearest)[settings.norm]
        for radius in radii:
            inside = (sizes <= radius + TOLERANCE)[:, None, None, None]
            yield ball.project_arrays(np.where(inside, nearest, images), images, radius)
        return
    for radius in radii:
        of_radius = common | {"eps": radius, "eps_step": settings.pgd.relative_step_size * radius}
        crafted = _generate(cls, row, estimator, of_radius, images, one_hot, seed)
        yield ball.project_arrays(crafted, images, radius)


def _reference(
    attack: str,
    estimator: Any,
    images: np.ndarray,
    labels: np.ndarray,
    one_hot: np.ndarray,
    radius: float,
    settings: Attack,
) -> np.ndarray:
    """ART's FGSM or PGD with the settings of ours, ``(N, C, H, W)``."""
    evasion = art.attacks.evasion
    common = {"norm": ART_NORMS[settings.norm], "eps": radius, "batch_size": settings.batch_size}
    if attack == "art_fgsm":
        crafted: np.ndarray = evasion.FastGradientMethod(estimator, **common).generate(images, y=one_hot)
        return crafted
    assert attack == "art_pgd", attack
    projected = evasion.projected_gradient_descent.projected_gradient_descent_pytorch
    descent = projected.ProjectedGradientDescentPyTorch(
        estimator,
        **common,
        eps_step=settings.pgd.relative_step_size * radius,
        max_iter=settings.pgd.n_steps,
        num_random_init=min(settings.pgd.n_random_starts, 1),
        verbose=False,
    )
    strongest: np.ndarray = descent.generate(images, y=one_hot)
    # ART's own restarts keep images whose prediction changed, and so may correct a wrong prediction
    smallest = margin(estimator.predict(strongest), labels)
    for _ in range(settings.pgd.n_random_starts - 1):
        candidate = descent.generate(images, y=one_hot)
        margins = margin(estimator.predict(candidate), labels)
        better = margins < smallest
        strongest[better], smallest[better] = candidate[better], margins[better]
    return strongest


def _generate(
    cls: Any,
    row: ArtAttack,
    estimator: Any,
    common: dict[str, Any],
    images: np.ndarray,
    one_hot: np.ndarray,
    seed: int | np.ndarray,
) -> np.ndarray:
    known = {name: value for name, value in common.items() if name in inspect.signature(cls).parameters}
    try:
        with numpy_seeded(seed), torch.random.fork_rng():
            crafted: np.ndarray = cls(estimator, **known, **row.arguments).generate(images, y=one_hot)
    except Exception as error:
        raise ValueError(
            f"attack.attacks: ART's {row.art} failed: {error}. Change its arguments, or remove the row"
        ) from error
    return crafted


def _accepts(classifier: type, needed: Any) -> bool:
    """Return whether a class fulfils a requirement of ART: a base class, or a tuple of alternatives."""
    return any(issubclass(classifier, base) for base in (needed if isinstance(needed, tuple) else (needed,)))
