"""The models under attack by name: the bare classifier, and every defence in front of it or in its place."""

import torch
from torch import nn

from tasks.core.workspace import Workspace
from tasks.defences.preprocessing import Preprocessed, build_purifier
from tasks.defences.purified import Purified
from tasks.models.classifier import build_classifier
from tasks.models.files import load_model
from tasks.params import UNDEFENDED


def load_target(workspace: Workspace, name: str, device: torch.device) -> nn.Module:
    """A target in evaluation mode, parameters frozen, where and in the layout in which networks run.

    Args:
        workspace: where inputs are read and outputs written.
        name: ``undefended``, or that of a defence: its purifier before its own classifier or, where it has none, before
            the undefended one; its own classifier alone where it has no purifier.
        device: to run on.

    Raises:
        FileNotFoundError: a model has not been trained.
    """
    purifier, classifier = workspace.purifier(name), workspace.defended_classifier(name)
    if name == UNDEFENDED or not classifier.is_file():
        classifier = workspace.classifier
    has_purifier = name != UNDEFENDED and (purifier.is_file() or classifier == workspace.classifier)
    needed = [classifier, purifier] if has_purifier else [classifier]
    if missing := [path for path in needed if not path.is_file()]:
        raise FileNotFoundError(f"{missing[0]} not found: run the step {workspace.step_of(missing[0])} first")
    target = load_model(classifier, build_classifier)
    if has_purifier:
        before = load_model(purifier, build_purifier)
        target = Purified(before, target, before.n_draws if isinstance(before, Preprocessed) else 1).eval()
    placed: nn.Module = target.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
    return placed
