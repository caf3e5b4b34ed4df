"""Other backward passes of image transforms, for attacks on a target whose gradient may mislead them."""

import copy
from functools import partial
from typing import Literal, get_args

from torch import Tensor, nn

from tasks.defences.preprocessing import BPDA, MedianFilter, TotalVariationDenoiser

BackwardPass = Literal["identity", "average"]
"""``identity``: the gradient passes through a transform unchanged (BPDA, Athalye et al. 2018, arXiv 1802.00420);
``average``: the mean of this gradient and the transform's own."""


def other_backward_passes(model: nn.Module) -> tuple[BackwardPass, ...]:
    """Return the backward passes that differ from the target's own; none for a target without image transforms."""
    return get_args(BackwardPass) if _transforms(model) else ()


def with_backward_pass(model: nn.Module, name: BackwardPass) -> nn.Module:
    """Return a copy of a target with the same outputs and another backward pass of its image transforms.

    Args:
        model: takes images ``(N, C, H, W)``, returns logits ``(N, K)``.
        name: of the backward pass.
    """
    changed = copy.deepcopy(model)
    for transform in _transforms(changed):
        transform.register_forward_hook(partial(_replace_gradient, name))
    return changed


def _transforms(model: nn.Module) -> list[nn.Module]:
    """The transforms of a target whose own backward pass is not the identity."""
    return [
        module
        for module in model.modules()
        if isinstance(module, MedianFilter | TotalVariationDenoiser)
        or (isinstance(module, BPDA) and module.backward_approximation is not None)
    ]


def _replace_gradient(
    name: BackwardPass, _transform: nn.Module, inputs: tuple[Tensor], output: Tensor
) -> Tensor | None:
    """Hook: the output with another gradient; None keeps the output."""
    if not output.requires_grad:
        return None
    unchanged = output.detach() + (inputs[0] - inputs[0].detach())
    return unchanged if name == "identity" else (output + unchanged) / 2
