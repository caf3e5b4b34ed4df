"""Small networks whose attacks can be computed by hand or at once."""

import numpy as np
import torch
from torch import Tensor, nn

SIDE = 8
N_PIXELS = SIDE * SIDE


class Linear(nn.Module):
    """Logits ``(0, w . x + b)`` over the pixels: FGSM and PGD are exactly optimal on it."""

    def __init__(self, weights: np.ndarray, bias: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.from_numpy(weights.astype(np.float32)), requires_grad=False)
        self.bias = nn.Parameter(torch.tensor(bias), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        score = images.flatten(1) @ self.weights + self.bias
        return torch.stack([torch.zeros_like(score), score], dim=1)

    def dual(self, norm: str) -> float:
        """The most that a perturbation of size 1 changes ``w . x``: the dual norm of w."""
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
    """A linear model, 40 images well inside [0, 1], true labels (four unlike the prediction), clean margins."""
    rng = np.random.default_rng(7)
    weights = rng.normal(size=N_PIXELS) + 0.2
    images = rng.uniform(0.4, 0.6, (40, 1, SIDE, SIDE)).astype(np.float32)
    score = images.reshape(40, -1) @ weights
    bias = -float(np.median(score))
    labels = (score + bias > 0).astype(np.int64)
    labels[:4] = 1 - labels[:4]
    return Linear(weights, bias), images, labels, np.where(labels == 1, 1, -1) * (score + bias)
