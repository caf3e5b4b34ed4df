"""Models on disk: weights as safetensors, and beside them a small JSON of how to build the network."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def save_model(path: Path, model: "nn.Module", **build: Any) -> None:
    """Write the weights to ``path`` (``.safetensors``), and beside them the builder's keyword arguments as JSON."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, path)
    path.with_suffix(".json").write_text(json.dumps(build, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_model(path: Path, build: Callable[..., "nn.Module"]) -> "nn.Module":
    """A saved model, in evaluation mode, its parameters frozen.

    Args:
        path: of the weights.
        build: the builder that the model was saved with (``build_classifier``, ``build_autoencoder``).

    Raises:
        FileNotFoundError: the weights or the JSON beside them are missing.
        ValueError: one of them is damaged, or something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from tasks.models.seeding import build_seeded

    # weights are drawn before they are replaced, and another thread may be drawing those that it keeps
    model = build_seeded(partial(build, **build_of(path)))
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        # RuntimeError: weights of another network
        raise ValueError(f"{path} holds no weights of this network: make or fetch it again; {error}") from error
    return model.eval().requires_grad_(False)


def build_of(path: Path) -> dict[str, Any]:
    """The builder's keyword arguments that a model was saved with.

    Raises:
        FileNotFoundError: the JSON beside the weights is missing.
        ValueError: it is damaged.
    """
    path = path.with_suffix(".json")
    try:
        build: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: make or fetch it again; {error}") from error
    return build


def copy_model(source: Path, destination: Path) -> None:
    """Copy weights, and the JSON beside them."""
    for suffix in (source.suffix, ".json"):
        shutil.copyfile(source.with_suffix(suffix), destination.with_suffix(suffix))
