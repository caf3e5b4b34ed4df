"""Parts of a defence that need no training, and the networks from which a training starts."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.core.workspace import Workspace
from tasks.models.files import copy_model, load_build_arguments
from tasks.params import (
    Autoencoder,
    Defence,
    FinetunedClassifier,
    Params,
    PluginDefence,
    Preprocessing,
    RandomizedSmoothing,
    TrainedAutoencoder,
)

if TYPE_CHECKING:
    from torch import nn

    from tasks.dataset.prepared import Prepared


def save_untrained_parts(workspace: Workspace, params: Params, defence: str) -> None:
    """Write the copied autoencoder, the transforms or the plug-in of a defence; other kinds have no such part."""
    settings = params.defences[defence]
    match settings:
        case Autoencoder() | FinetunedClassifier():
            copy_model(workspace.autoencoder, workspace.purifier(defence))
        case Preprocessing():
            steps = [transform.model_dump(mode="json") for transform in settings.transforms]
            has_autoencoder = settings.applied_before == "autoencoder"
            save_preprocessing(workspace, defence, steps, settings.n_eot_samples, has_autoencoder)
        case RandomizedSmoothing():
            steps = [{"kind": "gaussian_noise", "std": settings.std}]
            save_preprocessing(workspace, defence, steps, settings.n_eot_samples)
        case PluginDefence():
            from tasks.dataset.prepared import load_prepared
            from tasks.defences.plugins import save_plugin
            from tasks.models.compute import configure_torch

            configure_torch(params.compute)
            save_plugin(workspace, settings, load_prepared(workspace), defence, params.seed)


def save_preprocessing(
    workspace: Workspace, defence: str, steps: list[dict[str, Any]], n_eot_samples: int, has_autoencoder: bool = False
) -> None:
    """Write a purifier of transforms, optionally followed by the autoencoder of ``train_autoencoder``.

    Args:
        workspace: where inputs are read and outputs written.
        defence: name of the defence.
        steps: transforms as in ``params.yaml``.
        n_eot_samples: number of forward passes whose predictions are averaged; 1 if no transform is random.
        has_autoencoder: append the autoencoder.
    """
    from tasks.defences.preprocessing import build_purifier
    from tasks.models.autoencoder import build_autoencoder
    from tasks.models.files import load_model, save_model
    from tasks.models.seeding import build_seeded

    # its architecture, and its channels unless they are grey
    of_autoencoder = load_build_arguments(workspace.autoencoder) if has_autoencoder else {"architecture": None}
    arguments = of_autoencoder | {"steps": steps, "n_eot_samples": n_eot_samples}
    purifier = build_seeded(lambda: build_purifier(**arguments))
    if has_autoencoder:
        trained = load_model(workspace.autoencoder, build_autoencoder)
        purifier.get_submodule(str(len(steps))).load_state_dict(trained.state_dict())
    save_model(workspace.purifier(defence), purifier, **arguments)


def initial_network(
    workspace: Workspace, settings: Defence, defence: str, data: "Prepared", seed: int
) -> tuple[Path, "nn.Module", dict[str, Any]]:
    """Return the network from which the training of a defence starts.

    A classifier starts from the weights of ``train_classifier``. An autoencoder starts from those of
    ``train_autoencoder`` if it has the same architecture, otherwise from random weights.

    Args:
        workspace: where the trained networks are.
        settings: of the defence.
        defence: its name.
        data: prepared images.
        seed: of random weights.

    Returns:
        Path of the trained weights, the network, and the arguments that build it.
    """
    from tasks.models.autoencoder import build_autoencoder
    from tasks.models.files import load_model
    from tasks.models.loading import load_classifier
    from tasks.models.seeding import build_seeded

    if isinstance(settings, TrainedAutoencoder):
        path = workspace.purifier(defence)
        build_arguments: dict[str, Any] = {"architecture": settings.architecture, **data.channel_argument}
        if build_arguments == load_build_arguments(workspace.autoencoder):
            model = load_model(workspace.autoencoder, build_autoencoder)
        else:
            model = build_seeded(lambda: build_autoencoder(**build_arguments), seed)
    else:
        path, build_arguments = workspace.defended_classifier(defence), load_build_arguments(workspace.classifier)
        model = load_classifier(workspace, workspace.classifier)
    return path, model, build_arguments
