"""What a prediction takes, apart from the machine that it runs on."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tasks.models.compute import device_of


def cost_of(model: nn.Module, image: np.ndarray) -> dict[str, int]:
    """What a prediction takes: ``parameters``, ``multiply_adds`` of convolutions and matrix products, ``looks``.

    Multiply-adds are over all looks at the image; image processing that is no network counts for nothing.

    Args:
        model: takes images, returns logits, of ``n_draws`` looks where it is random.
        image: one, float32 ``(1, 1, H, W)``.
    """
    # where a function mode listens, torch does not fuse a layer of attention, which would hide its matrix products
    with torch.no_grad(), BaseTorchFunctionMode(), _Operations() as operations:
        model(torch.from_numpy(image).to(device_of(model)))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "parameters": parameters,
        "multiply_adds": operations.multiply_adds,
        "looks": getattr(model, "n_draws", 1),
    }


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's annotation
    """Counts what torch's ``FlopCounterMode`` does, which imports compilers: more than a second of every attack."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's annotation
        self.multiply_adds = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # nothing is compiled here, so nobody need be told to skip it
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        aten = torch.ops.aten
        match func.overloadpacket:
            case aten.convolution:
                image, weight, *_ = args
                is_transposed = args[6]
                n_images, _, *places = (image if is_transposed else output).shape
                self.multiply_adds += n_images * math.prod(places) * weight.numel()
            case aten.linear:
                # whole on some devices, elsewhere made of those below
                self.multiply_adds += output.numel() * args[1].shape[-1]
            case aten.mm | aten.bmm:
                self.multiply_adds += args[0].numel() * args[1].shape[-1]
            case aten.addmm | aten.baddbmm:
                self.multiply_adds += args[1].numel() * args[2].shape[-1]
            case attention if "scaled_dot_product" in str(attention):
                # each device has kernels of its own, which take queries (B, H, L, E), keys (B, H, S, E), values
                queries, keys, values = args[:3]
                products = math.prod(queries.shape[:3]) * keys.shape[2]
                self.multiply_adds += products * (queries.shape[3] + values.shape[3])
        return output
