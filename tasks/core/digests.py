"""Digests of arrays, networks and folders: equal digests mean equal contents."""

import hashlib
import json
from pathlib import Path

import numpy as np
from torch import nn

from tasks.core.source import digests_of_files

PYTHON_CACHE = "__pycache__"


def digest_of_arrays(*arrays: np.ndarray) -> str:
    """Return the SHA-256 of the shapes, types and values of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def digest_of_model(model: nn.Module) -> str:
    """Return the SHA-256 of the layers, weights and buffers of a network."""
    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(digest_of_arrays(tensor.cpu().numpy()).encode())
    return digest.hexdigest()


def digest_of_folder(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of the files in a folder, without Python's caches."""
    files = {name: each for name, each in digests_of_files(folder).items() if PYTHON_CACHE not in Path(name).parts}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
