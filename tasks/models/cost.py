"""Cost of a prediction, independent of the machine: parameters and multiply-adds."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tasks.models.compute import device_of


def prediction_cost(model: nn.Module, image: np.ndarray) -> dict[str, int]:
    """Return ``n_parameters``, ``multiply_adds`` and ``n_eot_samples`` of a prediction.

    ``multiply_adds`` counts convolutions, matrix products and attention, summed over all forward passes of a random
    defence (EOT samples). Image processing without these operations counts as 0.

    Args:
        model: takes images ``(N, C, H, W)``, returns logits. A random model averages ``n_eot_samples`` forward passes.
        image: one image, float32 ``(1, C, H, W)``.
    """
    # in a function mode, torch runs attention layers without the fused kernel, which has no formula
    with torch.no_grad(), BaseTorchFunctionMode(), _FlopCounter() as counter:
        model(torch.from_numpy(image).to(device_of(model)))
    return {
        "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "multiply_adds": counter.n_flops // 2,
        "n_eot_samples": getattr(model, "n_eot_samples", 1),
    }


class _FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's annotation
    """Floating-point operations by torch's formulas; a multiply-add is two operations.

    torch's ``FlopCounterMode`` gives the same counts, but is not thread-safe: it registers hooks on the modules of all
    threads, and the flow runs several steps in threads.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's annotation
        self.n_flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func.overloadpacket is torch.ops.aten.linear:
            # has no formula, since most devices decompose it into addmm
            self.n_flops += 2 * output.numel() * args[1].shape[-1]
        elif formula := flop_registry.get(func.overloadpacket):
            self.n_flops += formula(*args, **kwargs, out_val=output)
        return output
