"""What a prediction takes: counted by hand, by torch's own counter, and as torchvision publishes it."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model, get_model_weights

from tasks.defences.preprocessing import Noise, TotalVariationDenoiser
from tasks.defences.purified import Purified
from tasks.models.autoencoder import ARCHITECTURES, build_autoencoder
from tasks.models.classifier import build_classifier
from tasks.models.cost import cost_of
from tests.conftest import ROOT

IMAGE = np.zeros((1, 1, 32, 32), dtype=np.float32)


def test_a_layer_takes_a_product_for_each_weight_and_place() -> None:
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)]
    layers += [nn.ConvTranspose2d(6, 2, 2, stride=2, groups=2), nn.Flatten(), nn.Linear(2048, 3)]
    by_hand = [32 * 32 * 4 * 9, 16 * 16 * 6 * 2 * 9, 16 * 16 * 6 * 1 * 4, 2048 * 3]
    assert cost_of(nn.Sequential(*layers), IMAGE) == {
        "parameters": 4 * 10 + 6 * 19 + 2 * 13 + 3 * 2049,
        "multiply_adds": sum(by_hand),
        "looks": 1,
    }


def test_all_looks_count_and_processing_without_products_does_not() -> None:
    classifier = build_classifier("cnn", 2, 0.5, 0.25).eval()
    bare = cost_of(classifier, IMAGE)
    processed = Purified(nn.Sequential(Noise(0.1), TotalVariationDenoiser(0.1, 2)), classifier, n_draws=3)
    assert cost_of(processed, IMAGE) == bare | {"multiply_adds": 3 * bare["multiply_adds"], "looks": 3}


@pytest.mark.parametrize("architecture", ["cnn", *ARCHITECTURES])
def test_our_networks_take_what_torch_counts(architecture: str) -> None:
    model = build_classifier("cnn", 2, 0.5, 0.25) if architecture == "cnn" else build_autoencoder(architecture)
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.from_numpy(IMAGE))
    assert cost_of(model, IMAGE)["multiply_adds"] == counter.get_total_flops() // 2 > 0


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "vit_b_32", "swin_t"])
def test_networks_of_torchvision_take_what_it_publishes(architecture: str) -> None:
    model = get_model(architecture, weights=None).eval()
    published = get_model_weights(architecture).DEFAULT.meta["_ops"]
    image = np.zeros((1, 3, 224, 224), dtype=np.float32)
    assert round(cost_of(model, image)["multiply_adds"] / 1e9, 3) == published


def test_counting_imports_no_compiler() -> None:
    count = (
        "import sys, numpy as np; from tasks.models.classifier import build_classifier; "
        "from tasks.models.cost import cost_of; "
        "print(cost_of(build_classifier('cnn', 2, 0.5, 0.25).eval(), np.zeros((1, 1, 32, 32), np.float32))); "
        "sys.exit('torch._dynamo' in sys.modules or 'triton' in sys.modules)"
    )
    counted = subprocess.run([sys.executable, "-c", count], cwd=ROOT, capture_output=True, text=True, check=False)
    assert counted.returncode == 0, counted.stderr
    assert "multiply_adds" in counted.stdout
