"""What a prediction takes, apart from the machine that it runs on."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tasks.models.compute import device_of


def cost_of(model: nn.Module, image: np.ndarray) -> dict[str, int]:
    """What a prediction takes: ``parameters``, ``multiply_adds`` of convolutions and matrix products, ``looks``.

    Multiply-adds are over all looks at the image; image processing that is no network counts for nothing.

    Args:
        model: takes images, returns logits, of ``n_draws`` looks where it is random.
        image: one, float32 ``(1, 1, H, W)``.
    """
    # where a function mode listens, torch takes attention apart instead of fusing it into what has no formula
    with torch.no_grad(), BaseTorchFunctionMode(), _Operations() as operations:
        model(torch.from_numpy(image).to(device_of(model)))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "parameters": parameters,
        "multiply_adds": operations.n_flops // 2,
        "looks": getattr(model, "n_draws", 1),
    }


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's annotation
    """Counts as torch's ``FlopCounterMode`` does, which imports the compiler: more than a second of every attack."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's annotation
        self.n_flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # nothing is compiled here, so nobody need be told to skip it
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            self.n_flops += formula(*args, **(kwargs or {}), out_val=output)
        return output
