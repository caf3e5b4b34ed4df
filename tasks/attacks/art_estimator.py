"""Models as classifiers of the Adversarial Robustness Toolbox (ART)."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Imported here, not in a function: the import of ART configures logging, and deadlocks with a thread that logs. A flow
# imports the code of all steps before its threads begin. It is imported whole, since two threads that import parts of
# ART at once would deadlock, too.
import art
import numpy as np
from torch import Tensor, nn

from tasks.models.compute import device_of

# only the warnings of ART
logging.getLogger("art").setLevel(logging.WARNING)

ART_NORMS: dict[str, Any] = {"linf": np.inf, "l2": 2}
"""Name of a norm -> ART's value for it."""

_numpy_rng_lock = threading.Lock()


@contextmanager
def numpy_seeded(seed: int | np.ndarray) -> Iterator[None]:
    """Seed numpy's global generator, from which ART draws, and lock it for the use of ART in this thread.

    Args:
        seed: 32 bits, or several such numbers ``(n,)``.
    """
    with _numpy_rng_lock:
        np.random.seed(seed)
        yield


class _CastToFloat32(nn.Module):
    """A model that accepts float64 images, which some of ART's attacks pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.float())
        return logits


def art_estimator(
    model: nn.Module, image_shape: tuple[int, ...], n_classes: int, value_range: tuple[float, float]
) -> Any:
    """ART's ``PyTorchClassifier`` of a model.

    Args:
        model: takes images and returns logits ``(N, K)``; in evaluation mode, parameters frozen.
        image_shape: ``(C, H, W)``.
        n_classes: K.
        value_range: lowest and highest value of a pixel.
    """
    return art.estimators.classification.PyTorchClassifier(
        model=_CastToFloat32(model).eval(),
        loss=nn.CrossEntropyLoss(),
        input_shape=image_shape,
        nb_classes=n_classes,
        clip_values=value_range,
        device_type="gpu" if device_of(model).type == "cuda" else "cpu",
    )
