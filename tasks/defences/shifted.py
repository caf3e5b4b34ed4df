"""A classifier at another operating point: a bias on its logits, as part of the network that is attacked."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Shifted(nn.Module):
    """A model with constant biases on its logits.

    Args:
        model: takes images ``(N, C, H, W)``, returns logits ``(N, K)``.
        biases: added to the logits, K values.
    """

    biases: Tensor

    def __init__(self, model: nn.Module, biases: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("biases", torch.tensor(biases, dtype=torch.float32))

    @property
    def n_eot_samples(self) -> int:
        """Number of passes through a random purifier that the model averages."""
        return int(getattr(self.model, "n_eot_samples", 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, K)``."""
        logits: Tensor = self.model(images) + self.biases
        return logits
