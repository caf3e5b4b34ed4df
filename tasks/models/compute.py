"""Where and with how many threads networks run."""

import ctypes
import sys

import torch
from torch import nn

from tasks.params import Compute

# as glibc's malloc.h numbers them
_M_MMAP_THRESHOLD = -3
_M_TRIM_THRESHOLD = -1


def set_up(compute: Compute) -> torch.device:
    """Give the calling thread its number of threads, ask for deterministic algorithms, and choose the device.

    Also tells the process's allocator to keep freed memory.

    Raises:
        ValueError: the device that was asked for is not there.
    """
    torch.set_num_threads(compute.threads)
    _keep_freed_memory()
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    # gradients of attacks are wanted in full float32
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if compute.device == "auto":
        return torch.device(next(name for name, available in there.items() if available))
    if not there[compute.device]:
        available = [name for name, is_there in there.items() if is_there]
        raise ValueError(
            f"compute.device: no {compute.device} on this machine; available: auto, {', '.join(available)}"
        )
    return torch.device(compute.device)


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters of a model are."""
    return next(model.parameters()).device


def _keep_freed_memory() -> None:
    """Let glibc keep what tensors leave instead of giving it back to the system.

    Every pass would get it anew, zeroed page by page: about a tenth of a pass's time at 64 images of 224 x 224.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        most = 2**31 - 1
        # an old glibc refuses the first; the second alone would make things worse
        if libc.mallopt(_M_MMAP_THRESHOLD, most) == 1:
            libc.mallopt(_M_TRIM_THRESHOLD, most)
