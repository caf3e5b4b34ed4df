"""Acquisition functions: which images of the pool are labelled next.

Each gives every image of the pool a score; those of the highest scores are asked about. Core-set chooses one after the
other, since what is chosen changes what is worth choosing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from skactiveml.pool import average_kl_divergence, k_greedy_center, uncertainty_scores
from torch import Tensor, nn

from tasks.attacks.deepfool import deepfool
from tasks.attacks.gradient.balls import Balls
from tasks.attacks.gradient.descent import fgsm, logit_margin
from tasks.labelling.dropout import draw_from
from tasks.models.compute import device_of
from tasks.models.features import Features
from tasks.records.perturbation_norms import perturbation_norms

DEEPFOOL_STEPS = 10


@dataclass(frozen=True)
class Pool:
    """What can be asked about, and the model that asks."""

    model: nn.Module
    """Takes images, returns logits ``(N, K)``; in evaluation mode, parameters frozen."""
    images: np.ndarray
    """Without a label, float32 ``(N, 1, H, W)``."""
    labelled: np.ndarray
    """What the model was trained on, float32 ``(M, 1, H, W)``."""
    balls: Balls
    radius: float
    """Of attacks, in units of the value range."""
    n_passes: int
    """With dropout."""
    batch_size: int
    seed: int

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Of the model, for the images, float64 ``(N, K)``."""
        return probabilities(self.model, self.images, self.batch_size)


def choose(acquisition: str, pool: Pool, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the images to ask about, the most wanted first, int64 ``(n,)``, and their scores, float64 ``(n,)``.

    Images of equal scores come in a random order that depends on the seed alone.

    Args:
        acquisition: its name in ``params.yaml``, or ``random``.
        pool: at least ``n`` images.
        n: images, at least 1.
    """
    assert 1 <= n <= len(pool.images)
    if acquisition == "core_set":
        return _core_set(pool, n)
    scores = SCORES[acquisition](pool)
    assert scores.shape == (len(pool.images),)
    ties = np.random.default_rng(pool.seed).permutation(len(scores))
    chosen = np.lexsort((ties, -scores))[:n]
    return chosen, scores[chosen]


def probabilities(model: nn.Module, images: np.ndarray, batch_size: int) -> np.ndarray:
    """Softmax of a model's logits, float64 ``(N, K)``; rows sum to 1.

    Raises:
        ValueError: one is NaN.
    """
    shares = np.concatenate([_softmax(model(batch)) for batch in _batches(model, images, batch_size)])
    if n_broken := int(np.isnan(shares).any(axis=1).sum()):
        raise ValueError(
            f"of {n_broken} of {len(shares)} images the classifier's probabilities are NaN; lower "
            "active_learning.training.learning_rate"
        )
    return shares


def _random(pool: Pool) -> np.ndarray:
    return np.random.default_rng(pool.seed).random(len(pool.images))


def _uncertainty(method: str) -> Callable[[Pool], np.ndarray]:
    """Settles 2009, "Active Learning Literature Survey", section 3.1; of two classes all methods ask the same."""

    def score(pool: Pool) -> np.ndarray:
        scores: np.ndarray = uncertainty_scores(pool.probabilities, method=method)
        return scores

    return score


def _bald(pool: Pool) -> np.ndarray:
    """Disagreement of passes with dropout, in nats (Houlsby et al. 2011, arXiv 1112.5745; Gal et al. 2017, 1703.02910).

    The mean Kullback-Leibler divergence of the passes from their mean is the information that the label would give
    about the weights.
    """
    dropouts = draw_from(torch.Generator(device_of(pool.model)).manual_seed(pool.seed), pool.model)
    assert any(dropout.p for dropout in dropouts)
    for dropout in dropouts:
        dropout.train()
    passes = [probabilities(pool.model, pool.images, pool.batch_size) for _ in range(pool.n_passes)]
    for dropout in dropouts:
        dropout.eval()
    scores: np.ndarray = average_kl_divergence(np.stack(passes))
    return scores


def _core_set(pool: Pool, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The images farthest from all that are labelled or chosen, one after the other (Sener and Savarese 2018).

    arXiv 1708.00489, algorithm 1, by Euclidean distance of penultimate features.
    """
    features = [
        np.concatenate([look(batch)[1].cpu().numpy() for batch in _batches(pool.model, images, pool.batch_size)])
        for look in [Features(pool.model)]
        for images in (pool.labelled, pool.images)
    ]
    n_labelled = len(pool.labelled)
    is_known = np.concatenate([np.zeros(n_labelled), np.full(len(pool.images), np.nan)])
    chosen, distances = k_greedy_center(np.concatenate(features), is_known, batch_size=n, random_state=pool.seed)
    return chosen - n_labelled, distances[np.arange(n), chosen]


def _adversarial_margin(pool: Pool) -> np.ndarray:
    """Nearness of the boundary: minus the margin over the dual norm of its gradient, to first order.

    The first step of DeepFool (Moosavi-Dezfooli et al. 2016, arXiv 1511.04599).
    """

    def score(images: Tensor, predicted: Tensor) -> Tensor:
        with torch.enable_grad():
            variable = images.detach().requires_grad_()
            margins = logit_margin(pool.model(variable), predicted)
            (gradient,) = torch.autograd.grad(margins.sum(), variable)
        return -margins.detach() / pool.balls.slope(gradient).clamp_min(torch.finfo(torch.float32).tiny)

    return _of_attacked(pool, score)


def _deepfool(pool: Pool) -> np.ndarray:
    """Minus the size of the perturbation by which DeepFool changes the prediction (Ducoffe and Precioso 2018).

    arXiv 1802.09841; minus infinity where it finds none.
    """

    def score(images: Tensor, predicted: Tensor) -> Tensor:
        moved, is_flipped = deepfool(pool.model, images, predicted, pool.balls, DEEPFOOL_STEPS)
        sizes = perturbation_norms(images.cpu().numpy(), moved.cpu().numpy())[pool.balls.norm]
        return torch.where(is_flipped.cpu(), -torch.from_numpy(sizes), -torch.inf)

    return _of_attacked(pool, score)


def _adversarial_entropy(pool: Pool) -> np.ndarray:
    """Entropy in nats of what is predicted once FGSM has moved the image away from its prediction."""

    def score(images: Tensor, predicted: Tensor) -> Tensor:
        (moved,) = fgsm(pool.model, images, predicted, [pool.radius], pool.balls)
        attacked = _softmax(pool.model(moved))
        return torch.from_numpy(uncertainty_scores(attacked, method="entropy"))

    return _of_attacked(pool, score)


SCORES: dict[str, Callable[[Pool], np.ndarray]] = {
    "random": _random,
    "entropy": _uncertainty("entropy"),
    "margin": _uncertainty("margin_sampling"),
    "least_confidence": _uncertainty("least_confident"),
    "bald": _bald,
    "adversarial_margin": _adversarial_margin,
    "deepfool": _deepfool,
    "adversarial_entropy": _adversarial_entropy,
}


def _of_attacked(pool: Pool, score: Callable[[Tensor, Tensor], Tensor]) -> np.ndarray:
    """Scores of all images from what an attack on their predictions finds."""
    parts = []
    for batch in _batches(pool.model, pool.images, pool.batch_size):
        predicted = pool.model(batch).argmax(dim=1)
        parts.append(score(batch, predicted).double().cpu().numpy())
    return np.concatenate(parts)


def _batches(model: nn.Module, images: np.ndarray, size: int) -> Iterator[Tensor]:
    device = device_of(model)
    for start in range(0, len(images), size):
        yield torch.from_numpy(images[start : start + size]).to(device)


def _softmax(logits: Tensor) -> np.ndarray:
    shares: np.ndarray = logits.double().softmax(dim=1).cpu().numpy()
    return shares
