"""Random targets: their modules, and the average over their draws that attacks use."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

MIN_EOT_DRAWS = 20
"""Smallest number of draws that an attack averages for a gradient or a loss (EOT)."""
FIXED_SEED = 0
"""Seed of the draws of :func:`with_fixed_draws`."""


class RandomModule(nn.Module):
    """A module that draws random numbers in every forward pass. A target with such a module is random."""

    same_for_all_images: bool = False
    """Draw once for all images of a batch. Then the draw of an image does not depend on the other images."""

    def reseed(self, seed: Sequence[int]) -> None:
        """Restart the random numbers from a seed."""
        raise NotImplementedError


def random_modules(model: nn.Module) -> list[RandomModule]:
    """Random modules of a model; none for a deterministic model."""
    return [module for module in model.modules() if isinstance(module, RandomModule)]


class AveragedPredictions(nn.Module):
    """A random target as attacks use it: the mean of the log-probabilities of several predictions.

    Losses and gradients are averaged over the same predictions: EOT, expectation over transformation (Athalye et al.
    2018, arXiv 1707.07397). With a mean of probabilities, confident predictions would have no gradient. The number of
    predictions is the smallest with at least ``MIN_EOT_DRAWS`` draws. It is not a property of the target, which
    averages ``n_eot_samples`` draws in each of its predictions.

    Args:
        target: takes images ``(N, C, H, W)``, returns logits ``(N, K)``.
        drawn: the target or a copy of it, whose predictions are averaged.
        is_fixed: use the same draws in every forward pass.
    """

    def __init__(self, target: nn.Module, drawn: nn.Module, is_fixed: bool = False) -> None:
        super().__init__()
        self.target = target
        self.drawn = drawn
        self.is_fixed = is_fixed
        self.n_predictions = math.ceil(MIN_EOT_DRAWS / int(getattr(target, "n_eot_samples", 1)))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, K)``."""
        if self.is_fixed:
            for module in random_modules(self.drawn):
                module.reseed([FIXED_SEED])
        logits = torch.stack([self.drawn(images) for _ in range(self.n_predictions)])
        return logits.log_softmax(dim=2).mean(dim=0)


def as_attacked(target: nn.Module) -> nn.Module:
    """Return a target as attacks use it: a random target with averaged predictions, otherwise the target itself."""
    return AveragedPredictions(target, target).eval() if random_modules(target) else target


def with_fixed_draws(model: AveragedPredictions) -> AveragedPredictions:
    """Return a random target whose averaged predictions use the same draws in every pass, for every image.

    Fixed draws make the loss deterministic, so that each step of an attack continues the step before. So a target gains
    nothing from noisy gradients alone (compare arXiv 2505.22839). New draws of the target still decide whether an image
    is misclassified.
    """
    drawn = copy.deepcopy(model.target)
    for module in random_modules(drawn):
        module.same_for_all_images = True
    return AveragedPredictions(model.target, drawn, is_fixed=True).eval()
