"""Acquisition functions: each selects the images of the pool to label next.

An acquisition function gives every image of the pool a score. The images with the highest scores form the query.
Core-set selection chooses one image after the other, because each choice changes the scores of the remaining images.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from tasks.attacks.deepfool import deepfool
from tasks.attacks.gradient.fgsm import fgsm
from tasks.attacks.gradient.losses import logit_margin
from tasks.attacks.gradient.norm_ball import NormBall
from tasks.labelling.dropout import set_dropout_generator
from tasks.models.compute import device_of
from tasks.models.features import LogitsAndFeatures
from tasks.records.perturbation_norms import perturbation_norms

DEEPFOOL_STEPS = 10
MIN_PROBABILITY = 1e-7
"""Lower bound of a probability in the mutual information, so that its logarithm is finite."""


@dataclass(frozen=True)
class Pool:
    """Images without a label, the labelled set, and the classifier that is trained on it."""

    model: nn.Module
    """Takes images, returns logits ``(N, K)``; in evaluation mode, parameters frozen."""
    images: np.ndarray
    """Images without a label, float32 ``(N, C, H, W)``."""
    labelled: np.ndarray
    """Images of the labelled set, float32 ``(M, C, H, W)``."""
    ball: NormBall
    """Norm and value range of the attacks."""
    radius: float
    """Radius of the attacks, in units of the value range."""
    n_dropout_samples: int
    """Forward passes with dropout in ``bald``."""
    batch_size: int
    """Images in a forward pass."""
    seed: int
    """Seed of random scores, ties and dropout."""

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Predicted probabilities of the images without a label, float64 ``(N, K)``."""
        return predict_probabilities(self.model, self.images, self.batch_size)


def select_query(acquisition: str, pool: Pool, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions in the pool of the images to label, int64 ``(n,)``, and their scores, float64 ``(n,)``.

    The highest score comes first. Images with equal scores come in a random order that depends on the seed alone.

    Args:
        acquisition: name of the acquisition function in ``params.yaml``, or ``random``.
        pool: at least ``n`` images.
        n: number of images, at least 1.
    """
    assert 1 <= n <= len(pool.images)
    if acquisition == "core_set":
        return k_center_greedy(_features(pool, pool.images), _features(pool, pool.labelled), n, pool.seed)
    scores = SCORE_FUNCTIONS[acquisition](pool)
    assert scores.shape == (len(pool.images),)
    ties = np.random.default_rng(pool.seed).permutation(len(scores))
    chosen = np.lexsort((ties, -scores))[:n]
    return chosen, scores[chosen]


def predict_probabilities(model: nn.Module, images: np.ndarray, batch_size: int) -> np.ndarray:
    """Return the softmax of a model's logits, float64 ``(N, K)``.

    Raises:
        ValueError: a probability is NaN.
    """
    probabilities = np.concatenate([_softmax(model(batch)) for batch in _batches(model, images, batch_size)])
    if n_nan := int(np.isnan(probabilities).any(axis=1).sum()):
        raise ValueError(
            f"the classifier's probabilities are NaN: {n_nan} of {len(images)} images. They must be finite. Lower "
            "active_learning.training.learning_rate."
        )
    return probabilities


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Return the entropy in nats of each prediction: ``(N, K)`` to ``(N,)``."""
    logarithms = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    entropies: np.ndarray = -(probabilities * logarithms).sum(axis=1)
    return entropies


def smallest_margin(probabilities: np.ndarray) -> np.ndarray:
    """Return 1 minus the difference of the two largest probabilities: ``(N, K)`` to ``(N,)``."""
    second, first = np.partition(probabilities, -2, axis=1)[:, -2:].T
    scores: np.ndarray = 1 - (first - second)
    return scores


def least_confidence(probabilities: np.ndarray) -> np.ndarray:
    """Return 1 minus the largest probability: ``(N, K)`` to ``(N,)``."""
    scores: np.ndarray = 1 - probabilities.max(axis=1)
    return scores


def mutual_information(passes: np.ndarray) -> np.ndarray:
    """Return the mutual information in nats between label and weights: ``(P, N, K)`` to ``(N,)``.

    It is the mean Kullback-Leibler divergence of P forward passes with dropout from their mean.
    """
    clipped = np.clip(passes, MIN_PROBABILITY, 1)
    clipped /= clipped.sum(axis=2, keepdims=True)
    divergences = (clipped * np.log(clipped / clipped.mean(axis=0))).sum(axis=2)
    scores: np.ndarray = divergences.mean(axis=0)
    return scores


def k_center_greedy(features: np.ndarray, labelled: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images far from all labelled and chosen images, int64 ``(n,)``, and these distances, float64 ``(n,)``.

    Sener and Savarese 2018 (arXiv 1708.00489), algorithm 1, with the Euclidean distance.

    Args:
        features: of the images without a label, ``(N, D)``.
        labelled: features of the labelled set, ``(M, D)``, M at least 1.
        n: number of images, at most N.
        seed: of the order of images at equal distances.
    """
    # importing scikit-learn takes a second, and no other acquisition function needs it
    from sklearn.metrics import pairwise_distances_argmin_min

    rng = np.random.default_rng(seed)
    chosen, scores = np.empty(n, dtype=np.int64), np.empty(n)
    distances, centers = np.full(len(features), np.inf), labelled
    for i in range(n):
        distances = np.minimum(distances, pairwise_distances_argmin_min(features, centers)[1])
        distances[chosen[:i]] = -1
        chosen[i] = rng.choice(np.flatnonzero(distances == distances.max()))
        scores[i] = distances[chosen[i]]
        centers = features[chosen[i : i + 1]]
    return chosen, scores


def _random(pool: Pool) -> np.ndarray:
    return np.random.default_rng(pool.seed).random(len(pool.images))


def _uncertainty(score: Callable[[np.ndarray], np.ndarray]) -> Callable[[Pool], np.ndarray]:
    """Return a score of the predicted probabilities; with two classes all such scores rank the images equally.

    Settles 2009, "Active Learning Literature Survey", section 3.1.
    """
    return lambda pool: score(pool.probabilities)


def _bald(pool: Pool) -> np.ndarray:
    """Return the disagreement of forward passes with dropout.

    Houlsby et al. 2011 (arXiv 1112.5745); Gal et al. 2017 (arXiv 1703.02910).
    """
    generator = torch.Generator(device_of(pool.model)).manual_seed(pool.seed)
    dropouts = set_dropout_generator(pool.model, generator)
    assert any(dropout.p for dropout in dropouts)
    for dropout in dropouts:
        dropout.train()
    passes = [predict_probabilities(pool.model, pool.images, pool.batch_size) for _ in range(pool.n_dropout_samples)]
    for dropout in dropouts:
        dropout.eval()
    return mutual_information(np.stack(passes))


def _adversarial_margin(pool: Pool) -> np.ndarray:
    """Return minus the distance to the decision boundary, to first order.

    The distance is the logit margin over the dual norm of its gradient: the first step of DeepFool (Moosavi-Dezfooli et
    al. 2016, arXiv 1511.04599).
    """

    def score(images: Tensor, predicted: Tensor) -> Tensor:
        with torch.enable_grad():
            variable = images.detach().requires_grad_()
            margins = logit_margin(pool.model(variable), predicted)
            (gradient,) = torch.autograd.grad(margins.sum(), variable)
        return -margins.detach() / pool.ball.slope(gradient).clamp_min(torch.finfo(torch.float32).tiny)

    return _score_batches(pool, score)


def _deepfool(pool: Pool) -> np.ndarray:
    """Return minus the norm of DeepFool's perturbation; minus infinity where DeepFool does not change the prediction.

    Ducoffe and Precioso 2018 (arXiv 1802.09841).
    """

    def score(images: Tensor, predicted: Tensor) -> Tensor:
        perturbed, is_flipped = deepfool(pool.model, images, predicted, pool.ball, DEEPFOOL_STEPS)
        norms = perturbation_norms(images.cpu().numpy(), perturbed.cpu().numpy())[pool.ball.norm]
        return torch.where(is_flipped.cpu(), -torch.from_numpy(norms), -torch.inf)

    return _score_batches(pool, score)


def _adversarial_entropy(pool: Pool) -> np.ndarray:
    """Return the entropy of the predictions for FGSM examples, which are computed against the prediction."""

    def score(images: Tensor, predicted: Tensor) -> Tensor:
        (perturbed,) = fgsm(pool.model, images, predicted, [pool.radius], pool.ball)
        return torch.from_numpy(entropy(_softmax(pool.model(perturbed))))

    return _score_batches(pool, score)


SCORE_FUNCTIONS: dict[str, Callable[[Pool], np.ndarray]] = {
    "random": _random,
    "entropy": _uncertainty(entropy),
    "margin": _uncertainty(smallest_margin),
    "least_confidence": _uncertainty(least_confidence),
    "bald": _bald,
    "adversarial_margin": _adversarial_margin,
    "deepfool": _deepfool,
    "adversarial_entropy": _adversarial_entropy,
}
"""Acquisition functions that score images independently of each other, by their name in ``params.yaml``."""


def _score_batches(pool: Pool, score: Callable[[Tensor, Tensor], Tensor]) -> np.ndarray:
    """Return the scores of all images from a function of a batch of images and its predicted labels."""
    parts = []
    for batch in _batches(pool.model, pool.images, pool.batch_size):
        predicted = pool.model(batch).argmax(dim=1)
        parts.append(score(batch, predicted).double().cpu().numpy())
    return np.concatenate(parts)


def _features(pool: Pool, images: np.ndarray) -> np.ndarray:
    """Return the penultimate features of images, float32 ``(n, D)``."""
    model = LogitsAndFeatures(pool.model)
    return np.concatenate([model(batch)[1].cpu().numpy() for batch in _batches(pool.model, images, pool.batch_size)])


def _batches(model: nn.Module, images: np.ndarray, size: int) -> Iterator[Tensor]:
    device = device_of(model)
    for start in range(0, len(images), size):
        yield torch.from_numpy(images[start : start + size]).to(device)


def _softmax(logits: Tensor) -> np.ndarray:
    probabilities: np.ndarray = logits.double().softmax(dim=1).cpu().numpy()
    return probabilities
