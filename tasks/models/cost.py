"""What a prediction takes, apart from the machine that it runs on."""

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tasks.models.compute import device_of


def cost_of(model: nn.Module, image: np.ndarray) -> dict[str, int]:
    """What a prediction takes: ``parameters``, ``multiply_adds`` of convolutions and matrix products, ``looks``.

    Multiply-adds are over all looks at the image; image processing that is no network counts for nothing.

    Args:
        model: takes images, returns logits, of ``n_draws`` looks where it is random.
        image: one, float32 ``(1, 1, H, W)``.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.from_numpy(image).to(device_of(model)))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    multiply_adds = counter.get_total_flops() // 2
    return {"parameters": parameters, "multiply_adds": multiply_adds, "looks": getattr(model, "n_draws", 1)}
