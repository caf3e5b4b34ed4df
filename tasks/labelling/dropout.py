"""Dropout with its own generator, because steps that run in one process share torch's global generator."""

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """Set values to zero with probability ``p`` in training mode, and scale up the others (Srivastava et al. 2014).

    Args:
        p: probability, in [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, values: Tensor) -> Tensor:
        """Return values of the same shape; without a generator they are unchanged."""
        if not self.training or not self.p or self.generator is None:
            return values
        is_kept = torch.rand(values.shape, device=values.device, generator=self.generator) >= self.p
        return values * is_kept / (1 - self.p)


def set_dropout_generator(model: nn.Module, generator: torch.Generator) -> list[Dropout]:
    """Set the generator of every :class:`Dropout` in a network; return these modules."""
    dropouts = [module for module in model.modules() if isinstance(module, Dropout)]
    for dropout in dropouts:
        dropout.generator = generator
    return dropouts
