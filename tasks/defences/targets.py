"""Loading of targets, the models under attack: the undefended classifier and every defended one."""

import torch
from torch import nn

from tasks.core.workspace import Workspace
from tasks.defences.plugins import Plugin, load_plugin
from tasks.defences.preprocessing import PreprocessingPipeline, build_purifier
from tasks.defences.purified import Purified
from tasks.models.files import load_model
from tasks.models.loading import borrow_gradients, load_classifier
from tasks.params import UNDEFENDED


def load_target(workspace: Workspace, name: str, device: torch.device) -> nn.Module:
    """Return a target on a device, in evaluation mode, with frozen parameters, in the channels-last layout.

    A defence consists of a purifier, a classifier or both. A defence with a purifier alone uses the undefended
    classifier behind it.

    Args:
        workspace: workspace with the trained models.
        name: ``undefended`` or the name of a defence.
        device: device to run on.

    Raises:
        FileNotFoundError: a model is missing.
    """
    purifier, classifier = workspace.purifier(name), workspace.defended_classifier(name)
    if name == UNDEFENDED or not classifier.is_file():
        classifier = workspace.classifier
    has_purifier = name != UNDEFENDED and (purifier.is_file() or classifier == workspace.classifier)
    needed = [classifier, purifier] if has_purifier else [classifier]
    if missing := [path for path in needed if not path.is_file()]:
        raise FileNotFoundError(
            f"{missing[0]} not found. The target {name} needs it: run the step {workspace.step_of(missing[0])} first"
        )
    target = load_plugin(workspace, classifier) or load_classifier(workspace, classifier)
    borrow_gradients(workspace, target, device)
    if has_purifier:
        loaded = load_plugin(workspace, purifier) or load_model(purifier, build_purifier)
        n_eot_samples = loaded.n_eot_samples if isinstance(loaded, PreprocessingPipeline | Plugin) else 1
        target = Purified(loaded, target, n_eot_samples).eval()
    on_device: nn.Module = target.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
    return on_device
