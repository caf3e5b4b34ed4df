"""Where and with how many threads networks run."""

import ctypes
import logging
import sys

import torch
from torch import nn

from tasks.params import Compute, Precision

log = logging.getLogger(__name__)

# as glibc's malloc.h numbers them
_M_MMAP_THRESHOLD = -3
_M_TRIM_THRESHOLD = -1


def set_up(compute: Compute) -> torch.device:
    """Give the calling thread its number of threads, ask for deterministic algorithms, and choose the device.

    Also tells the process's allocator to keep freed memory, and the user where bfloat16 gains nothing.

    Raises:
        ValueError: the device that was asked for is not there.
    """
    use_threads(compute.threads)
    _keep_freed_memory()
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    # gradients of attacks are wanted in full float32
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if compute.device != "auto" and not there[compute.device]:
        available = [name for name, is_there in there.items() if is_there]
        raise ValueError(
            f"compute.device: no {compute.device} on this machine; available: auto, {', '.join(available)}"
        )
    chosen = next(name for name, available in there.items() if available and compute.device in ("auto", name))
    device = torch.device(chosen)
    if compute.precision == "bfloat16" and not multiplies_bfloat16(device):
        log.warning("compute.precision: this machine has no products of bfloat16; float32 is faster here")
    return device


def use_threads(n_threads: int) -> None:
    """Let torch compute with so many threads in the calling thread."""
    # at its first look a thread takes the number that any thread set last
    torch.get_num_threads()
    torch.set_num_threads(n_threads)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for products of bfloat16; others make them of float32, slower than those."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known = torch.cpu.get_capabilities()
    return device.type == "cpu" and any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def in_precision(precision: Precision, device: torch.device) -> torch.autocast:
    """A context in which networks convolve and multiply matrices in a precision; what they take and give is float32.

    After Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep Learning Training" (arXiv 1905.12322): products of
    bfloat16 are summed in float32, and weights are kept in float32.
    """
    # weights that were cast without a gradient must not serve where one is wanted
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False)


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
