"""Cost of a prediction against hand counts, torch's FlopCounterMode and the values that torchvision publishes."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model, get_model_weights

from tasks.defences.preprocessing import AdditiveGaussianNoise, TotalVariationDenoiser
from tasks.defences.purified import Purified
from tasks.models.autoencoder import ARCHITECTURES, build_autoencoder
from tasks.models.classifier import build_classifier
from tasks.models.cost import prediction_cost

IMAGE = np.zeros((1, 1, 32, 32), dtype=np.float32)


def test_a_layer_costs_one_multiply_add_for_each_weight_and_position() -> None:
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)]
    layers += [nn.ConvTranspose2d(6, 2, 2, stride=2, groups=2), nn.Flatten(), nn.Linear(2048, 3)]
    expected = [32 * 32 * 4 * 9, 16 * 16 * 6 * 2 * 9, 16 * 16 * 6 * 1 * 4, 2048 * 3]
    assert prediction_cost(nn.Sequential(*layers), IMAGE) == {
        "n_parameters": 4 * 10 + 6 * 19 + 2 * 13 + 3 * 2049,
        "multiply_adds": sum(expected),
        "n_eot_samples": 1,
    }


def test_all_eot_samples_count_and_transforms_without_matrix_products_count_as_0() -> None:
    classifier = build_classifier("cnn", 2, 0.5, 0.25).eval()
    cost = prediction_cost(classifier, IMAGE)
    purifier = nn.Sequential(AdditiveGaussianNoise(0.1), TotalVariationDenoiser(0.1, 2))
    expected = cost | {"multiply_adds": 3 * cost["multiply_adds"], "n_eot_samples": 3}
    assert prediction_cost(Purified(purifier, classifier, n_eot_samples=3), IMAGE) == expected


@pytest.mark.parametrize("architecture", ["cnn", *ARCHITECTURES])
def test_counts_of_our_networks_equal_those_of_torch(architecture: str) -> None:
    model = build_classifier("cnn", 2, 0.5, 0.25) if architecture == "cnn" else build_autoencoder(architecture)
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.from_numpy(IMAGE))
    assert prediction_cost(model, IMAGE)["multiply_adds"] == counter.get_total_flops() // 2 > 0


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "vit_b_32", "swin_t"])
def test_counts_of_torchvision_networks_equal_the_published_values(architecture: str) -> None:
    model = get_model(architecture, weights=None).eval()
    published = get_model_weights(architecture).DEFAULT.meta["_ops"]
    image = np.zeros((1, 3, 224, 224), dtype=np.float32)
    assert round(prediction_cost(model, image)["multiply_adds"] / 1e9, 3) == published
