"""Defences of the user: a function that returns a purifier or a classifier."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tasks.core.digests import digest_of_folder
from tasks.core.workspace import Workspace
from tasks.dataset.prepared import Prepared
from tasks.models.files import load_build_arguments, load_model, save_model
from tasks.models.loading import check_made_for, copy_modules, load_classifier
from tasks.models.seeding import torch_seeded
from tasks.models.sources import call_function
from tasks.params import PluginDefence


class Plugin(nn.Module):
    """The module of a plug-in.

    Args:
        module: takes images ``(N, C, H, W)`` in [0, 1], returns images or logits.
        source: text that identifies its code and arguments, for digests of the target.
        n_eot_samples: see :class:`tasks.defences.purified.Purified`.
    """

    def __init__(self, module: nn.Module, source: str, n_eot_samples: int) -> None:
        super().__init__()
        self.module = module
        self.source = source
        self.n_eot_samples = n_eot_samples

    def forward(self, images: Tensor) -> Tensor:
        """Return the output of the module."""
        output: Tensor = self.module(images)
        return output

    def extra_repr(self) -> str:
        """Return the source."""
        return self.source


def save_plugin(workspace: Workspace, settings: PluginDefence, data: Prepared, defence: str, seed: int) -> None:
    """Build a plug-in, train it if it has a method ``fit``, and write its weights and its Python modules.

    ``fit`` is called with the training images, float32 ``(n, C, H, W)`` in [0, 1], and their labels, int64 ``(n,)``.

    Raises:
        ValueError: the function does not exist or fails, or the outputs have a wrong shape.
    """
    files = workspace.defence_files(defence)
    copy_modules(workspace.plugins, files)
    files.mkdir(exist_ok=True)
    arguments: dict[str, Any] = {"plugin": settings.model_dump(mode="json"), "defence": defence}
    with torch_seeded(seed):
        plugin = build_plugin(workspace=workspace, **arguments)
        if callable(fit := getattr(plugin.module, "fit", None)):
            rows = data.indices("train")
            fit(torch.from_numpy(data.floats(rows)), torch.from_numpy(data.labels(rows)))
    check_output(plugin.eval(), settings, torch.from_numpy(data.floats(data.indices("train")[:2])), len(data.classes))
    is_purifier = settings.role == "purifier"
    path = workspace.purifier(defence) if is_purifier else workspace.defended_classifier(defence)
    made_for = {} if is_purifier else {"made_for": {"classes": list(data.classes)}}
    save_model(path, plugin, **arguments, **made_for)


def build_plugin(workspace: Workspace, plugin: Mapping[str, Any], defence: str) -> Plugin:
    """Build the module of a plug-in from its copied files.

    Args:
        workspace: whose step train_defence wrote the files.
        plugin: its row of ``defences``.
        defence: name of the defence.

    Raises:
        ValueError: the function does not exist or fails, or returns no module.
    """
    settings, files = PluginDefence.model_validate(dict(plugin)), workspace.defence_files(defence)
    arguments = settings.arguments
    if settings.role == "classifier":
        arguments["classifier"] = load_classifier(workspace, workspace.classifier)
    module = call_function(settings.factory, files, f"defences.{defence}.factory", arguments)
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"defences.{defence}.factory: {settings.factory} returns {type(module).__name__}. A torch.nn.Module is "
            "needed. Return one"
        )
    source = f"{settings.factory} {settings.arguments} {digest_of_folder(files)}"
    return Plugin(module, source, settings.n_eot_samples)


def load_plugin(workspace: Workspace, path: Path) -> nn.Module | None:
    """Load the purifier or the classifier of a plug-in; None if the file is of another kind of defence."""
    if "plugin" not in load_build_arguments(path):
        return None

    def build(made_for: Mapping[str, Any] | None = None, **arguments: Any) -> nn.Module:
        check_made_for(workspace, path, made_for or {})
        return build_plugin(workspace, **arguments)

    return load_model(path, build)


def check_output(plugin: nn.Module, settings: PluginDefence, images: Tensor, n_classes: int) -> None:
    """Check the shape and the values of the outputs of a plug-in.

    Raises:
        ValueError: a purifier returns no images, or a classifier no logits of all classes.
    """
    with torch.no_grad():
        output = plugin(images)
    expected = tuple(images.shape) if settings.role == "purifier" else (len(images), n_classes)
    if tuple(output.shape) != expected or not output.isfinite().all():
        raise ValueError(
            f"defences: the {settings.role} of {settings.factory} returns {tuple(output.shape)} for images "
            f"{tuple(images.shape)}. Finite values of the shape {expected} are needed. Correct the function"
        )
