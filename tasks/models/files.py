"""Saved models: weights as safetensors, and a JSON file of the same name with the arguments that build the network."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.core.durable import write_bytes

if TYPE_CHECKING:
    from torch import nn


def save_model(path: Path, model: "nn.Module", **build_arguments: Any) -> None:
    """Write the weights to ``path`` (``.safetensors``) and the keyword arguments of the builder to a JSON file."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    # the library's own error about a full disk is no OSError
    write_bytes(path, save(tensors))
    path.with_suffix(".json").write_text(json.dumps(build_arguments, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_model(path: Path, builder: Callable[..., "nn.Module"]) -> "nn.Module":
    """Load a saved model in evaluation mode, with frozen parameters.

    Args:
        path: path of the weights.
        builder: function that builds the network from the saved arguments (``build_classifier``,
            ``build_autoencoder``, ``build_purifier``).

    Raises:
        FileNotFoundError: the weights or the JSON file are missing.
        ValueError: one of the two files is damaged, or the weights belong to another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from tasks.models.seeding import build_seeded

    # random initial weights are replaced below, but drawing them unlocked would disturb the draws of other threads
    model = build_seeded(partial(builder, **load_build_arguments(path)))
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        # RuntimeError: weights of another network
        raise ValueError(
            f"{path} holds no weights of this network: {error}. The weights must fit "
            f"{path.with_suffix('.json').name}. Run the step that writes it again, or restore both files"
        ) from error
    return model.eval().requires_grad_(False)


def load_build_arguments(path: Path) -> dict[str, Any]:
    """Return the keyword arguments of the builder with which a model was saved.

    Args:
        path: path of the weights.

    Raises:
        FileNotFoundError: the JSON file is missing.
        ValueError: the JSON file is damaged.
    """
    path = path.with_suffix(".json")
    try:
        build_arguments: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is no JSON file: {error}. It must hold the arguments that build the network. Run the step that "
            "writes it again, or restore the file"
        ) from error
    return build_arguments


def copy_model(source: Path, destination: Path) -> None:
    """Copy the weights and the JSON file of a saved model."""
    for suffix in (source.suffix, ".json"):
        shutil.copyfile(source.with_suffix(suffix), destination.with_suffix(suffix))
