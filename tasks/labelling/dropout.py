"""Dropout with a generator of its own, since steps of a flow share torch's global one."""

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """Values are dropped with probability ``p`` in training mode, the others scaled up (Srivastava et al. 2014).

    Args:
        p: in [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, values: Tensor) -> Tensor:
        """Values of the same shape; nothing is dropped before ``generator`` is set."""
        if not self.training or not self.p or self.generator is None:
            return values
        kept = torch.rand(values.shape, device=values.device, generator=self.generator) >= self.p
        return values * kept / (1 - self.p)


def draw_from(generator: torch.Generator, model: nn.Module) -> list[Dropout]:
    """Let all dropout of a network draw from a generator; returns these modules."""
    dropouts = [module for module in model.modules() if isinstance(module, Dropout)]
    for dropout in dropouts:
        dropout.generator = generator
    return dropouts
