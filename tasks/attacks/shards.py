"""Finished parts of a sweep, kept so that a killed one goes on where it was."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import tasks


def shard_name(**ingredients: Any) -> str:
    """Name of the shard that these ingredients make; another value of any of them makes another name."""
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:32]


@contextmanager
def writing(shard: Path) -> Iterator[Path]:
    """A folder to fill that becomes ``shard`` at the end, whole or not at all."""
    partial = shard.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    partial.rename(shard)


def digest_of_arrays(*arrays: np.ndarray) -> str:
    """SHA-256 of the shapes, types and values of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def digest_of_model(model: nn.Module) -> str:
    """SHA-256 of a network's layers and of everything it has learned."""
    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(digest_of_arrays(tensor.cpu().numpy()).encode())
    return digest.hexdigest()


def digest_of_code() -> str:
    """SHA-256 of the project's steps and of the versions of the libraries that an attack depends on."""
    digest = hashlib.sha256()
    for library in ("adversarial-robustness-toolbox", "numpy", "torch"):
        digest.update(f"{library} {version(library)}".encode())
    for folder in tasks.__path__:
        for source in sorted(Path(folder).rglob("*.py")):
            digest.update(source.read_bytes())
    return digest.hexdigest()
