"""Torch's global generator, from which layers get their first weights and dropout draws: one thread's at a time.

The flow runs several steps in one process, whose threads share that generator.
"""

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tasks.models.compute import device_of

_torch_is_seeded = threading.RLock()


@contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """Torch's global generator, seeded and kept to this thread."""
    with _torch_is_seeded, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def build_seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network whose initial weights depend on the seed alone, whatever other threads draw."""
    with torch_seeded(seed):
        return build()


def draws_globally(model: nn.Module, images: Tensor) -> bool:
    """Whether a network draws from torch's global generator while it trains, as for dropout and stochastic depth.

    Args:
        model: as it is, it stays.
        images: a batch that it can train on, on its device.
    """
    trial = copy.deepcopy(model).train()
    device = device_of(model)
    generator = torch if device.type == "cpu" else torch.get_device_module(device)
    with torch_seeded(0), torch.no_grad():
        before = generator.get_rng_state()
        trial(images)
        return not torch.equal(before, generator.get_rng_state())
