import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.analysis.heatmaps import Heatmaps, heatmap_agreement, heatmap_correlation, is_blank, top_iou, upsample
from tasks.models.classifier import build_classifier
from tasks.models.features import LogitsAndFeatures, classification_head, last_feature_map_layer
from tasks.statistics.groups import GroupJackknife


class OneMapPerClass(nn.Module):
    """One feature map for each of two classes: the image, and its negative. The logits are the means of the maps."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(1, 2, 1)
        self.maps.weight = nn.Parameter(torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1), requires_grad=False)
        self.maps.bias = nn.Parameter(torch.tensor([0.0, 1.0]), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.maps(images).mean(dim=(2, 3))
        return logits


def test_heat_maps_are_positive_where_the_image_shows_the_class() -> None:
    images = torch.zeros(2, 1, 8, 8)
    images[:, :, 1:3, 5:7] = 1
    model = OneMapPerClass().eval()
    bright, dark = Heatmaps(model, model.maps)(images, torch.tensor([0, 1]))
    assert bright[1:3, 5:7].min() > 0
    assert bright.sum() == pytest.approx(bright[1:3, 5:7].sum())
    assert dark[1:3, 5:7].max() == 0
    assert dark[0, 0] > 0


def test_heat_maps_of_a_frozen_classifier_equal_the_definition_of_grad_cam() -> None:
    torch.manual_seed(0)
    model = build_classifier("cnn", 2, 0.5, 0.2).eval().requires_grad_(False)
    layer = last_feature_map_layer(model, (1, 64, 64))
    images = torch.rand(3, 1, 64, 64)
    classes = torch.tensor([0, 1, 1])
    maps = Heatmaps(model, layer)(images, classes)

    activations = model.network.features((images - model.mean) / model.std).requires_grad_()
    logits = model.network.head(activations.mean(dim=(2, 3)))
    (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), activations)
    by_definition = (gradient.mean(dim=(2, 3), keepdim=True) * activations).sum(dim=1).relu().detach()
    assert maps == pytest.approx(by_definition.numpy(), abs=1e-6)
    assert maps.shape == (3, 2, 2)


@pytest.mark.parametrize("architecture", ["cnn", "resnet18", "squeezenet1_1", "densenet121"])
def test_features_are_the_input_of_the_head(architecture: str) -> None:
    model = build_classifier(architecture, 3, 0.5, 0.2).eval().requires_grad_(False)
    images = torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        logits, features = LogitsAndFeatures(model)(images)
        assert torch.equal(logits, model(images))
        assert features.ndim == 2
        head = classification_head(model)
        if isinstance(head, nn.Linear):
            assert torch.allclose(head(features), logits, atol=1e-5)
    layer = last_feature_map_layer(model, (1, 64, 64))
    assert Heatmaps(model, layer)(images, torch.tensor([0, 2])).shape[0] == 2


def test_a_network_without_a_head_or_a_feature_map_raises_an_error() -> None:
    with pytest.raises(ValueError, match="no linear or convolutional layer"):
        classification_head(nn.Flatten())
    with pytest.raises(ValueError, match="no feature map"):
        last_feature_map_layer(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), (1, 8, 8))


def test_agreement_is_largest_for_equal_and_smallest_for_opposite_maps() -> None:
    maps = np.arange(2 * 100, dtype=np.float32).reshape(2, 10, 10)
    assert heatmap_correlation(maps, 3 * maps + 1) == pytest.approx([1, 1])
    assert top_iou(maps, 3 * maps + 1).tolist() == [1, 1]
    assert heatmap_correlation(maps, -maps) == pytest.approx([-1, -1])
    assert top_iou(maps, -maps).tolist() == [0, 0]


def test_sharing_half_of_the_top_positions_gives_an_iou_of_one_third() -> None:
    first, second = np.zeros((2, 1, 10, 10), dtype=np.float32)
    first[0, 0] = np.arange(10, 20)
    second[0, 0, 5:] = second[0, 1, :5] = 10
    assert top_iou(first, second).tolist() == pytest.approx([1 / 3])


def test_agreement_with_a_blank_map_is_zero_and_undefined_for_two_blank_maps() -> None:
    blank, other = np.zeros((1, 4, 4)), np.arange(16.0).reshape(1, 4, 4)
    assert is_blank(np.concatenate([blank, other])).tolist() == [True, False]
    for agreement in (heatmap_correlation, top_iou):
        assert agreement(blank, other).tolist() == agreement(other, blank).tolist() == [0]
        assert np.isnan(agreement(blank, blank)).all()


def test_upsampled_maps_have_the_size_of_the_image_and_a_maximum_of_one() -> None:
    maps = np.array([[[0, 0], [0, 4.0]], [[0, 0], [0, 0]]], dtype=np.float32)
    fine = upsample(maps, (8, 12))
    assert fine.shape == (2, 8, 12)
    assert fine[0].max() == 1
    assert fine[0, -1, -1] == 1
    assert (fine[1] == 0).all()


def test_images_without_a_reference_map_do_not_count() -> None:
    maps, reference = np.zeros((2, 3, 4, 4))
    reference[:2] = maps[0] = np.arange(16.0).reshape(4, 4)
    table = heatmap_agreement(maps, reference, GroupJackknife(np.arange(3))).set_index("metric")
    assert table.loc["correlation", ["value", "n", "n_blank"]].tolist() == pytest.approx([0.5, 2, 1])
    assert table.loc["iou", "value"] == 0.5
