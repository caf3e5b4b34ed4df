"""Small networks whose smallest adversarial perturbations are known or fast to compute."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tasks.attacks.batch import AttackBatch, MinimumEps
from tasks.attacks.gradient.norm_ball import NormBall, radius
from tasks.defences.randomness import RandomModule

SIDE = 8
N_PIXELS = SIDE * SIDE


class Linear(nn.Module):
    """Logits ``(0, w . x + b)`` of the pixels x: FGSM and PGD are exactly optimal."""

    def __init__(self, weights: np.ndarray, bias: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.from_numpy(weights.astype(np.float32)), requires_grad=False)
        self.bias = nn.Parameter(torch.tensor(bias), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        score = images.flatten(1) @ self.weights + self.bias
        return torch.stack([torch.zeros_like(score), score], dim=1)

    def dual(self, norm: str) -> float:
        """Largest change of ``w . x`` by a perturbation of norm 1: the dual norm of w."""
        weights = self.weights.numpy().astype(np.float64)
        return float(np.abs(weights).sum() if norm == "linf" else np.linalg.norm(weights))


class ThreeClasses(nn.Module):
    """A small network with ReLU and three logits."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(N_PIXELS, 16), nn.Linear(16, 3)])
        for parameter in self.parameters():
            parameter.requires_grad_(False).normal_(0, 0.3, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers[1](self.layers[0](images.flatten(1)).relu())
        return logits


def linear_case() -> tuple[Linear, np.ndarray, np.ndarray, np.ndarray]:
    """A linear model, 40 images well inside [0, 1], true labels (four are misclassified), clean margins."""
    rng = np.random.default_rng(7)
    weights = rng.normal(size=N_PIXELS) + 0.2
    images = rng.uniform(0.4, 0.6, (40, 1, SIDE, SIDE)).astype(np.float32)
    score = images.reshape(40, -1) @ weights
    bias = -float(np.median(score))
    labels = (score + bias > 0).astype(np.int64)
    labels[:4] = 1 - labels[:4]
    return Linear(weights, bias), images, labels, np.where(labels == 1, 1, -1) * (score + bias)


def linear_batch(norm: str, eps: np.ndarray) -> tuple[AttackBatch, np.ndarray]:
    """The images of :func:`linear_case` as a batch with a grid of eps, and the index of the smallest eps of each.

    The index is -1 where the image is misclassified unchanged.
    """
    model, images, labels, margins = linear_case()
    radii = np.array([radius(value, norm, N_PIXELS) for value in eps])
    batch = AttackBatch(model, images, labels, 2, radii, NormBall(norm, (0.0, 1.0)), 16, 0, np.arange(40) + 100)
    return batch, np.where(margins < 0, -1, np.searchsorted(radii, margins / model.dual(norm)))


def three_class_batch(eps: np.ndarray) -> AttackBatch:
    """60 images of :class:`ThreeClasses` with a grid of L-infinity eps; a tenth is misclassified unchanged."""
    model = ThreeClasses()
    images = np.random.default_rng(0).uniform(size=(60, 1, SIDE, SIDE)).astype(np.float32)
    labels = model(torch.from_numpy(images)).argmax(dim=1).numpy()
    labels[::10] = (labels[::10] + 1) % 3
    return AttackBatch(model, images, labels, 3, eps / 255, NormBall("linf", (0.0, 1.0)), 16, 0, np.arange(60))


def nothing_found(batch: AttackBatch, index: np.ndarray) -> MinimumEps:
    """A result with these indices and without adversarial images, found by ``before``."""
    return MinimumEps(index, np.full(len(index), "before", dtype=object), batch.images)


def assert_adversarial(batch: AttackBatch, found: MinimumEps) -> None:
    """Each adversarial image lies in its ball and is misclassified."""
    broken = (found.index >= 0) & (found.index < len(batch.radii))
    changes = (found.adversarial - batch.images)[broken].reshape(broken.sum(), -1)
    sizes = np.abs(changes).max(axis=1) if batch.ball.norm == "linf" else np.linalg.norm(changes, axis=1)
    assert (sizes <= batch.radii[found.index[broken]] + 1e-5).all()
    predicted = batch.model(torch.from_numpy(found.adversarial[broken])).argmax(dim=1).numpy()
    assert (predicted != batch.labels[broken]).all()


class RandomLabels(RandomModule):
    """A classifier whose prediction is wrong in a given share of the draws, for any image."""

    def __init__(self, model: nn.Module, wrong: float = 0.2) -> None:
        super().__init__()
        self.model, self.wrong = model, wrong
        self.reseed([0])

    def reseed(self, seed: Sequence[int]) -> None:
        self.generator = np.random.default_rng(seed)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        wrong = torch.from_numpy(self.generator.random(len(images)) < self.wrong)
        return torch.where(wrong[:, None], logits.flip(1), logits)


class Flat(nn.Module):
    """Predicts class 1 for every image, with a gradient of zero."""

    def forward(self, images: Tensor) -> Tensor:
        return 0 * images.flatten(1)[:, :2] + torch.tensor([0.0, 1.0])
