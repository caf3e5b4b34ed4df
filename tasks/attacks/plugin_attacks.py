"""Attacks of the user at every eps: a function that returns adversarial images."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tasks.attacks.art_estimator import numpy_seeded
from tasks.attacks.gradient.norm_ball import NormBall
from tasks.models.compute import device_of
from tasks.models.seeding import torch_seeded
from tasks.models.sources import call_function
from tasks.params import PluginAttack


def craft_by_plugin(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    row: PluginAttack,
    radii: list[float],
    ball: NormBall,
    seed: np.ndarray,
    folder: Path,
) -> Iterator[np.ndarray]:
    """An attack of the user at each radius.

    The function is called as ``function(model=, images=, labels=, radius=, norm=, **arguments)`` with tensors on the
    device of the model, and returns adversarial images. They are moved into the ball and the value range.

    Args:
        model: takes images and returns logits ``(N, K)``; in evaluation mode, parameters frozen.
        images: float32 ``(N, C, H, W)`` within the value range.
        labels: true classes, int64 ``(N,)``.
        row: of ``attack.attacks``.
        radii: in units of the value range.
        ball: norm and value range.
        seed: of the global generators of torch and numpy during the call.
        folder: with the Python modules of the user.

    Yields:
        For each radius the adversarial images, float32 ``(N, C, H, W)``.

    Raises:
        ValueError: the function does not exist or fails, or returns no images of the same shape.
    """
    device = device_of(model)
    for radius in radii:
        # copies, since the function may change its arguments
        given, classes = torch.tensor(images, device=device), torch.tensor(labels, device=device)
        arguments = {"model": model, "images": given, "labels": classes, "radius": radius, "norm": ball.norm}
        state = int(np.random.SeedSequence(seed.tolist()).generate_state(1)[0])
        with torch_seeded(state), numpy_seeded(seed):
            crafted = call_function(row.plugin, folder, "attack.attacks", {**arguments, **row.arguments})
        if not isinstance(crafted, Tensor) or crafted.shape != images.shape:
            shape = tuple(getattr(crafted, "shape", ()))
            raise ValueError(
                f"attack.attacks: {row.plugin} returns {type(crafted).__name__} {shape}. A tensor of the shape "
                f"{images.shape} is needed. Correct the function"
            )
        yield ball.project_arrays(crafted.detach().float().cpu().numpy(), images, radius)
