import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.analysis.activations import Activations
from tasks.analysis.detectors import FeatureDistance, build_detectors
from tasks.models.autoencoder import build_autoencoder
from tasks.models.classifier import build_classifier
from tasks.models.features import LogitsAndFeatures
from tasks.records.scores import entropy


class HalvingAutoencoder(nn.Module):
    """An autoencoder that halves every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(images) / 2


class TwoPixels(nn.Module):
    """Classifier with logits of twice the first and twice the second pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2, bias=False)
        self.head.weight = nn.Parameter(2 * torch.eye(2), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.flatten(1))
        return logits


IMAGES = torch.tensor([[0.0, 1.0], [0.5, 0.5], [0.2, 0.8]]).reshape(3, 1, 1, 2)


def scores_of(images: Tensor) -> dict[str, np.ndarray]:
    """Scores of detectors that are fitted to two noisy clusters of features at (0, 1) and (1, 0)."""
    rng = np.random.default_rng(0)
    labels = np.arange(2000) % 2
    features = np.stack([labels, 1 - labels], axis=1) + rng.normal(0, 0.1, (2000, 2))
    activations = Activations(images, LogitsAndFeatures(TwoPixels()), HalvingAutoencoder())
    return {name: detector(activations).numpy() for name, detector in build_detectors(features, labels).items()}


def test_reconstruction_error_is_the_mean_squared_change() -> None:
    assert scores_of(IMAGES)["reconstruction error"] == pytest.approx([0.125, 0.0625, 0.085])


def test_entropy_is_largest_for_equal_probabilities() -> None:
    scores = scores_of(IMAGES)["entropy"]
    assert scores == pytest.approx(entropy(2 * IMAGES.flatten(1).numpy()), abs=1e-6)
    assert scores[1] == pytest.approx(np.log(2))


def test_prediction_change_is_the_l1_distance_of_the_probabilities() -> None:
    scores = scores_of(IMAGES)["prediction change"]
    sigmoid = 1 / (1 + np.exp(-np.array([2.0, 0.0, 1.2])))
    halved = 1 / (1 + np.exp(-np.array([1.0, 0.0, 0.6])))
    assert scores == pytest.approx(2 * np.abs(sigmoid - halved), abs=1e-6)


def test_feature_distance_is_the_squared_distance_to_the_nearest_class_in_standard_deviations() -> None:
    scores = scores_of(IMAGES)["feature distance"]
    assert scores[0] == pytest.approx(0, abs=0.01)
    # five standard deviations away from both classes, in each of two features
    assert scores[1] == pytest.approx(25, rel=0.15)


def test_feature_distance_can_be_fitted_to_fewer_images_than_features() -> None:
    rng = np.random.default_rng(0)
    distance = FeatureDistance(rng.normal(size=(20, 192)), np.arange(20) % 2)
    model = build_classifier("cnn", 2, 0.5, 0.2).eval()
    activations = Activations(torch.rand(2, 1, 64, 64), LogitsAndFeatures(model), build_autoencoder("plain").eval())
    assert torch.isfinite(distance(activations)).all()


def test_every_score_has_a_gradient_with_respect_to_the_image() -> None:
    torch.manual_seed(0)
    model = build_classifier("cnn", 2, 0.5, 0.2).eval().requires_grad_(False)
    purifier = build_autoencoder("plain").eval().requires_grad_(False)
    rng = np.random.default_rng(0)
    for name, detector in build_detectors(rng.normal(size=(40, 192)), np.arange(40) % 2).items():
        images = torch.rand(2, 1, 64, 64, requires_grad=True)
        (gradient,) = torch.autograd.grad(
            detector(Activations(images, LogitsAndFeatures(model), purifier)).sum(), images
        )
        assert gradient.abs().amax(dim=(1, 2, 3)).min() > 0, name


def test_activations_are_the_outputs_of_the_networks() -> None:
    torch.manual_seed(0)
    model = build_classifier("cnn", 2, 0.5, 0.2).eval().requires_grad_(False)
    purifier = build_autoencoder("plain").eval().requires_grad_(False)
    images = torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        activations = Activations(images, LogitsAndFeatures(model), purifier)
        assert torch.equal(activations.logits, model(images))
        assert torch.equal(activations.purified, purifier(images))
        assert torch.equal(activations.purified_logits, model(purifier(images)))
        assert torch.equal(activations.bottleneck, purifier.encoder(images).flatten(1))
        assert torch.allclose(model.network.head(activations.purified_features), activations.purified_logits, atol=1e-5)
