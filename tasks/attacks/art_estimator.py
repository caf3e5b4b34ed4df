"""Targets as the Adversarial Robustness Toolbox takes them."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn

from tasks.models.compute import device_of

# where it keeps its data is nobody's concern
logging.getLogger("art").setLevel(logging.WARNING)

ORDERS: dict[str, Any] = {"linf": np.inf, "l2": 2}
"""Name of a norm -> its order, as ART takes it."""


_numpy_is_seeded = threading.Lock()


@contextmanager
def numpy_seeded(seed: int | np.ndarray) -> Iterator[None]:
    """Numpy's global generator, from which ART draws, seeded and kept to this thread's use of ART.

    Args:
        seed: 32 bits, or several such numbers ``(n,)``.
    """
    with _numpy_is_seeded:
        np.random.seed(seed)
        yield


class _Single(nn.Module):
    """A network that takes images in double precision, too, as some of ART's attacks give them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.float())
        return logits


def estimator_of(
    model: nn.Module, image_shape: tuple[int, ...], n_classes: int, value_range: tuple[float, float]
) -> Any:
    """ART's ``PyTorchClassifier`` of a target.

    Args:
        model: takes images and returns logits ``(N, K)``; in evaluation mode, parameters frozen.
        image_shape: ``(1, H, W)``.
        n_classes: K.
        value_range: lowest and highest value of a pixel.
    """
    # whole, here and elsewhere: two threads that begin with parts of it would wait for each other
    import art

    return art.estimators.classification.PyTorchClassifier(
        model=_Single(model).eval(),
        loss=nn.CrossEntropyLoss(),
        input_shape=image_shape,
        nb_classes=n_classes,
        clip_values=value_range,
        device_type="gpu" if device_of(model).type == "cuda" else "cpu",
    )
