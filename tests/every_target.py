"""Small untrained targets: the same classifier without a purifier and with a purifier of every kind."""

from typing import Any

import torch
from torch import nn

from tasks.defences.preprocessing import PreprocessingPipeline, build_purifier
from tasks.defences.purified import Purified
from tasks.models.autoencoder import ARCHITECTURES
from tasks.models.classifier import build_classifier

TRANSFORMS: dict[str, dict[str, Any]] = {
    "jpeg": {"kind": "jpeg", "quality": 60},
    "bit_depth": {"kind": "bit_depth", "bits": 5},
    "median": {"kind": "median", "window_size": 3},
    "total_variation": {"kind": "total_variation", "weight": 0.05, "n_iterations": 10},
    "gaussian_noise": {"kind": "gaussian_noise", "std": 0.05},
}
"""Every image transform."""

PURIFIERS: dict[str, dict[str, Any]] = {
    **{architecture: {"architecture": architecture} for architecture in ARCHITECTURES},
    **{kind: {"steps": [transform]} for kind, transform in TRANSFORMS.items()},
    "averaged_noise": {"steps": [TRANSFORMS["gaussian_noise"]], "n_eot_samples": 2},
    "median_jpeg_plain": {"architecture": "plain", "steps": [TRANSFORMS["median"], TRANSFORMS["jpeg"]]},
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
        target = Purified(
            purifier, target, purifier.n_eot_samples if isinstance(purifier, PreprocessingPipeline) else 1
        )
    target.eval().requires_grad_(False)
    # an untrained network predicts nearly the same class for all images
    head.bias -= target(torch.rand(32, 1, 32, 32)).mean(dim=0)
    return target
