"""Device, threads and precision of networks."""

import ctypes
import logging
import sys
from itertools import chain

import torch
from torch import nn

from tasks.params import Compute, Precision

log = logging.getLogger(__name__)

# numbers of the options of mallopt in glibc's malloc.h
_M_MMAP_THRESHOLD = -3
_M_TRIM_THRESHOLD = -1


def configure_torch(compute: Compute) -> torch.device:
    """Set the number of threads of the calling thread and deterministic algorithms; return the device.

    The memory allocator of the process is set to keep freed memory. A warning is logged if bfloat16 is slower than
    float32 on the device.

    Raises:
        ValueError: the configured device is not available.
    """
    set_num_threads(compute.threads)
    _keep_freed_memory()
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    # attacks need gradients in full float32
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    is_available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    available = [name for name, yes in is_available.items() if yes]
    if compute.device not in ("auto", *available):
        raise ValueError(
            f"compute.device: {compute.device} is not available on this machine. Allowed are auto, "
            f"{', '.join(available)}. Set one of these"
        )
    device = torch.device(available[0] if compute.device == "auto" else compute.device)
    if compute.precision == "bfloat16" and not supports_bfloat16(device):
        log.warning(
            "compute.precision: bfloat16 is slow on the %s of this machine, which has no bfloat16 instructions. "
            "float32 is faster. Set compute.precision to float32",
            device.type,
        )
    return device


def set_num_threads(n_threads: int) -> None:
    """Set the number of threads that torch uses for operations of the calling thread."""
    # the first read in a thread resets its number to the last one that any thread set, so read before the write
    torch.get_num_threads()
    torch.set_num_threads(n_threads)


def supports_bfloat16(device: torch.device) -> bool:
    """Return True if a device has bfloat16 instructions; without them, bfloat16 is emulated and slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known = torch.cpu.get_capabilities()
    return device.type == "cpu" and any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return a context in which convolutions and matrix products run in a precision.

    Weights, inputs and outputs of networks stay float32. Products of bfloat16 are summed in float32 (Kalamkar et al.
    2019, "A Study of BFLOAT16 for Deep Learning Training", arXiv 1905.12322).
    """
    # the cache could return a cast of the weights that was made without a gradient
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the parameters of a model, or of its buffers if it has none."""
    return next(chain(model.parameters(), model.buffers())).device


def _keep_freed_memory() -> None:
    """Set glibc to keep the memory of deleted tensors instead of returning it to the operating system.

    Otherwise every forward pass requests that memory again, and the system zeroes it page by page. That takes about
    10 % of the time of a forward pass of 64 images of 224 x 224 pixels.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        max_threshold = 2**31 - 1
        # an old glibc rejects the first option; the second alone makes a forward pass slower
        if libc.mallopt(_M_MMAP_THRESHOLD, max_threshold) == 1:
            libc.mallopt(_M_TRIM_THRESHOLD, max_threshold)
