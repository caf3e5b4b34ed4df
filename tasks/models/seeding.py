"""Seeding of torch's global random generator, one thread at a time.

Initial weights and dropout use the global generator. All threads of the flow share it, so a thread must lock it.
"""

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from tasks.models.compute import device_of

_torch_rng_lock = threading.RLock()


@contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """Lock torch's global generator for this thread, seed it, and restore its state at the end."""
    with _torch_rng_lock, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def build_seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a network whose initial weights depend on the seed alone, even if other threads draw random numbers."""
    with torch_seeded(seed):
        return build()


def uses_global_rng(model: nn.Module, images: Tensor) -> bool:
    """Return True if a network draws from torch's global generator in training, as dropout and stochastic depth do.

    Args:
        model: network, which stays unchanged.
        images: input of the network, on its device.
    """
    trial = copy.deepcopy(model).train()
    device = device_of(model)
    generator = torch if device.type == "cpu" else torch.get_device_module(device)
    with torch_seeded(0), torch.no_grad():
        before = generator.get_rng_state()
        trial(images)
        return not torch.equal(before, generator.get_rng_state())


def surrogate_seed(seed: int, position: int) -> int:
    """Return the seed of a surrogate, a child of the project's seed as NumPy spawns them.

    Args:
        seed: of the project.
        position: of the surrogate, from 1.
    """
    return int(np.random.SeedSequence(seed, spawn_key=(position,)).generate_state(1)[0])
