"""The models under attack by name: the bare classifier, and every defence in front of it."""

import torch
from torch import nn

from tasks import paths
from tasks.defences.purified import Purified
from tasks.models.autoencoder import build_autoencoder
from tasks.models.classifier import build_classifier
from tasks.models.files import load_model
from tasks.paths import UNDEFENDED


def load_target(name: str, device: torch.device) -> nn.Module:
    """A target in evaluation mode, parameters frozen, where and in the layout in which networks run.

    Args:
        name: ``undefended``, or that of a defence.
        device: to run on.

    Raises:
        FileNotFoundError: a model has not been trained.
    """
    needed = [paths.CLASSIFIER] if name == UNDEFENDED else [paths.CLASSIFIER, paths.purifier(name)]
    if missing := [path for path in needed if not path.is_file()]:
        raise FileNotFoundError(f"{missing[0]} not found: run the step {paths.step_of(missing[0])} first")
    target = load_model(paths.CLASSIFIER, build_classifier)
    if name != UNDEFENDED:
        target = Purified(load_model(paths.purifier(name), build_autoencoder), target).eval()
    placed: nn.Module = target.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub
    return placed
