"""Small untrained targets: the same classifier without a purifier and with a purifier of every kind."""

from typing import Any

import torch
from torch import nn

from tasks.defences.preprocessing import Preprocessed, build_purifier
from tasks.defences.purified import Purified
from tasks.models.autoencoder import ARCHITECTURES
from tasks.models.classifier import build_classifier

METHODS: dict[str, dict[str, Any]] = {
    "jpeg": {"method": "jpeg", "quality": 60},
    "bit_depth": {"method": "bit_depth", "bits": 5},
    "median": {"method": "median", "window": 3},
    "total_variation": {"method": "total_variation", "strength": 0.05, "n_steps": 10},
    "gaussian_noise": {"method": "gaussian_noise", "std": 0.05},
}
"""Every method of preprocessing."""

PURIFIERS: dict[str, dict[str, Any]] = {
    **{architecture: {"architecture": architecture} for architecture in ARCHITECTURES},
    **{method: {"steps": [step]} for method, step in METHODS.items()},
    "averaged_noise": {"steps": [METHODS["gaussian_noise"]], "n_draws": 2},
    "median_jpeg_plain": {"architecture": "plain", "steps": [METHODS["median"], METHODS["jpeg"]]},
}
TARGETS = ["undefended", *PURIFIERS]
"""Defences that train a classifier have the form of ``undefended``; smoothing has the form of ``averaged_noise``."""


def build_target(name: str) -> nn.Module:
    """One of ``TARGETS`` for images ``(N, 1, H, W)`` and three classes, in evaluation mode, parameters frozen."""
    torch.manual_seed(0)
    target: nn.Module = build_classifier("cnn", n_classes=3, mean=0.5, std=0.3)
    head = target.network.head
    if name in PURIFIERS:
        purifier = build_purifier(**PURIFIERS[name])
        for layer in purifier.modules():
            # with the initial weights of torch, the output of all layers hardly depends on the image
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(layer.weight)
        target = Purified(purifier, target, purifier.n_draws if isinstance(purifier, Preprocessed) else 1)
    target.eval().requires_grad_(False)
    # an untrained network predicts nearly the same class for all images
    head.bias -= target(torch.rand(32, 1, 32, 32)).mean(dim=0)
    return target
