from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from art.defences.preprocessor import JpegCompression, SpatialSmoothing
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.attacks.apgd import apgd
from tasks.attacks.gradient.norm_ball import NormBall
from tasks.attacks.objectives import negative_margin, untargeted
from tasks.core.digests import digest_of_model
from tasks.core.workspace import Workspace
from tasks.defences.preprocessing import (
    BPDA,
    AdditiveGaussianNoise,
    DifferentiableJpeg,
    TotalVariationDenoiser,
    build_purifier,
)
from tasks.defences.purified import Purified
from tasks.defences.targets import load_target
from tasks.models.autoencoder import build_autoencoder
from tasks.models.classifier import build_classifier
from tasks.models.files import load_model
from tasks.params import Params
from tasks.tracking import Tracker
from tasks.train_defence import train_defence
from tests.small_workspace import SMALL

TRANSFORMS = {
    "jpeg": {"kind": "jpeg", "quality": 60},
    "bit_depth": {"kind": "bit_depth", "bits": 2},
    "median": {"kind": "median", "window_size": 3},
    "total_variation": {"kind": "total_variation", "weight": 0.1, "n_iterations": 20},
    "gaussian_noise": {"kind": "gaussian_noise", "std": 0.1},
}


def noisy(n: int = 3, side: int = 32) -> Tensor:
    return torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_a_step_changes_images_and_keeps_their_shape_and_range(kind: str) -> None:
    images = noisy()
    processed = build_purifier(steps=[TRANSFORMS[kind]])(images)
    assert processed.shape == images.shape
    assert processed.dtype == torch.float32
    assert 0 <= processed.min() <= processed.max() <= 1
    assert (processed - images).abs().max() > 0.01


def test_bit_depth_reduces_the_number_of_grey_levels() -> None:
    processed = build_purifier(steps=[TRANSFORMS["bit_depth"]])(torch.tensor([[[[0.0, 0.1, 0.3, 1.0]]]]))
    assert processed.flatten().tolist() == pytest.approx([0, 0, 1 / 3, 1])


def test_the_median_removes_a_single_bright_pixel() -> None:
    images = torch.full((1, 1, 9, 9), 0.5)
    images[..., 4, 4] = 1
    assert build_purifier(steps=[TRANSFORMS["median"]])(images).unique().tolist() == [0.5]


@pytest.mark.parametrize("window", [3, 5, 7])
def test_the_median_equals_that_of_art(window: int) -> None:
    by_art, _ = SpatialSmoothing(window, channels_first=True, clip_values=(0.0, 1.0))(noisy().numpy())
    ours = build_purifier(steps=[{"kind": "median", "window_size": window}])(noisy())
    torch.testing.assert_close(ours, torch.from_numpy(by_art))


def test_the_gradient_of_the_median_goes_to_the_median_pixel() -> None:
    images = noisy(1, 7).double().requires_grad_()
    median = build_purifier(steps=[TRANSFORMS["median"]])
    assert torch.autograd.gradcheck(median, images, eps=1e-7)
    median(images)[0, 0, 3, 3].backward()
    assert images.grad is not None
    (row, column) = images.grad[0, 0].nonzero()[0].tolist()
    assert images[0, 0, row, column].item() == median(images)[0, 0, 3, 3].item()


@pytest.mark.parametrize("window", [3, 5, 7])
def test_the_median_with_a_gradient_equals_the_median_without_also_for_ties_and_nan(window: int) -> None:
    few_levels = (noisy(3, 20)[..., :13] * 4).round() / 4
    few_levels[0, 0, 9, 9] = torch.nan
    median = build_purifier(steps=[{"kind": "median", "window_size": window}])
    predicted, attacked = median(few_levels), median(few_levels.clone().requires_grad_()).detach()
    assert torch.equal(predicted.isnan(), attacked.isnan())
    assert int(predicted.isnan().sum()) == window**2
    assert torch.equal(predicted.nan_to_num(), attacked.nan_to_num())


def test_noise_has_its_standard_deviation_and_is_drawn_anew_for_every_forward_pass() -> None:
    images, purifier = torch.full((4, 1, 64, 64), 0.5), build_purifier(steps=[TRANSFORMS["gaussian_noise"]])
    first, second = purifier(images), purifier(images)
    assert float((first - images).std()) == pytest.approx(0.1, rel=0.05)
    assert not torch.equal(first, second)


def test_the_gradient_of_bit_depth_is_that_of_the_identity() -> None:
    images, weights = noisy().requires_grad_(), noisy(3)
    (build_purifier(steps=[TRANSFORMS["bit_depth"]])(images) * weights).sum().backward()
    torch.testing.assert_close(images.grad, weights)


@pytest.mark.parametrize("quality", [20, 60, 95])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (21, 35)])
def test_soft_jpeg_does_not_change_images_whose_coefficients_are_on_its_levels(
    quality: int, height: int, width: int
) -> None:
    compress = build_purifier(steps=[{"kind": "jpeg", "quality": quality}])
    smooth = F.interpolate(noisy(2, 6), (height, width), mode="bicubic").clamp(0.2, 0.8)
    compressed = compress(smooth)
    assert (compressed - smooth).abs().max() > 2 / 255
    whole = slice(height // 8 * 8), slice(width // 8 * 8)
    # decoders round to whole grey levels, so coefficients are near their levels, not on them
    difference = (DifferentiableJpeg(quality)(compressed) - compressed)[..., *whole]
    assert difference.abs().max() < 1 / 255


def test_the_gradient_of_soft_jpeg_is_exact() -> None:
    assert torch.autograd.gradcheck(DifferentiableJpeg(60).double(), noisy(1, 16).double().requires_grad_())


def test_jpeg_has_the_values_of_the_file_and_the_gradient_of_soft_jpeg() -> None:
    images, weights, files = noisy().requires_grad_(), noisy(3), JpegCompression((0.0, 1.0), 60, channels_first=True)
    compressed = build_purifier(steps=[TRANSFORMS["jpeg"]])(images)
    assert torch.equal(compressed, torch.from_numpy(files(images.detach().numpy())[0]))
    (found,) = torch.autograd.grad((compressed * weights).sum(), images)
    (expected,) = torch.autograd.grad((DifferentiableJpeg(60)(images) * weights).sum(), images)
    assert torch.equal(found, expected)


def test_the_gradient_of_soft_jpeg_makes_stronger_attacks_than_that_of_the_identity() -> None:
    weights = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    images = F.interpolate(noisy(8, 6), (32, 32), mode="bicubic").clamp(0.2, 0.8)

    def gain_with(backward: nn.Module | None) -> Tensor:
        files = JpegCompression((0.0, 1.0), 60, channels_first=True)
        target = nn.Sequential(BPDA(files, "jpeg", backward), WeightedSum(weights)).eval()
        labels, size = torch.zeros(len(images), dtype=torch.int64), torch.full((len(images), 1, 1, 1), 4 / 255)
        objective = untargeted(target, labels, negative_margin)
        found, _ = apgd(target, objective, images, labels, size, NormBall("linf", (0.0, 1.0)), 30, images)
        return (target(found) - target(images))[:, 1]

    assert (gain_with(DifferentiableJpeg(60)) > 1.5 * gain_with(None)).all()


def test_noise_passes_gradients_where_it_does_not_clip() -> None:
    images, weights = noisy().requires_grad_(), noisy(3)
    noisy_images = build_purifier(steps=[TRANSFORMS["gaussian_noise"]])(images)
    (noisy_images * weights).sum().backward()
    inside = (noisy_images > 0) & (noisy_images < 1)
    torch.testing.assert_close(images.grad, torch.where(inside, weights, 0))


def test_noise_depends_on_its_seed_and_not_on_the_global_generator_of_numpy() -> None:
    images, module = noisy(), AdditiveGaussianNoise(0.1)
    module.reseed([1, 2])
    first = module(images)
    np.random.seed(0)
    second = module(images)
    module.reseed([1, 2])
    assert torch.equal(module(images), first)
    np.random.seed(5)
    assert torch.equal(module(images), second)


def test_the_gradient_of_total_variation_is_exact() -> None:
    images = noisy(1, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(TotalVariationDenoiser(0.05, 10), images)


def test_total_variation_finds_the_minimum() -> None:
    image, strength = noisy(1, 8)[0, 0].double().numpy(), 0.1

    def energy(flat: np.ndarray) -> float:
        found = flat.reshape(image.shape)
        down, right = np.zeros_like(image), np.zeros_like(image)
        down[:-1], right[:, :-1] = np.diff(found, axis=0), np.diff(found, axis=1)
        return float(((found - image) ** 2).sum() / 2 + strength * np.sqrt(down**2 + right**2 + 1e-12).sum())

    denoised = TotalVariationDenoiser(strength, 2000)(torch.from_numpy(image)[None, None])[0, 0].numpy()
    best = minimize(energy, image.ravel(), method="L-BFGS-B", options={"maxiter": 2000, "maxfun": 10**6})
    assert energy(image.ravel()) > 1.5 * best.fun
    assert energy(denoised.ravel()) == pytest.approx(best.fun, rel=1e-3)


def test_total_variation_keeps_constant_images_and_the_mean() -> None:
    denoise = TotalVariationDenoiser(0.1, 50)
    flat = torch.full((1, 1, 8, 8), 0.3)
    torch.testing.assert_close(denoise(flat), flat)
    assert float(denoise(noisy()).mean()) == pytest.approx(float(noisy().mean()), abs=1e-5)


def test_steps_run_in_their_order_and_before_the_autoencoder() -> None:
    torch.manual_seed(0)
    chain = build_purifier("plain", [TRANSFORMS["median"], TRANSFORMS["bit_depth"]])
    images = noisy()
    by_hand = build_purifier(steps=[TRANSFORMS["bit_depth"]])(build_purifier(steps=[TRANSFORMS["median"]])(images))
    torch.testing.assert_close(chain(images), chain.get_submodule("2")(by_hand))


def test_digests_of_different_steps_without_weights_differ() -> None:
    chains = [[TRANSFORMS["jpeg"]], [TRANSFORMS["jpeg"] | {"quality": 61}], [TRANSFORMS["total_variation"]]]
    assert len({digest_of_model(build_purifier(steps=steps)) for steps in chains}) == 3


@pytest.mark.parametrize("before", ["classifier", "autoencoder"])
def test_the_target_of_attacks_applies_the_steps_of_the_parameters(
    before: str, small_folder: Path, params_with: Callable[..., Params]
) -> None:
    params = params_with(SMALL | {"defences.jpeg.applied_before": before})
    Workspace().purifier("jpeg").parent.mkdir()
    train_defence(Workspace(), params, Tracker(), "jpeg")
    images = noisy()
    expected = build_purifier(steps=[params.defences["jpeg"].model_dump()["transforms"][0]])(images)
    if before == "autoencoder":
        expected = load_model(Workspace().autoencoder, build_autoencoder)(expected)
    classifier = load_model(Workspace().classifier, build_classifier)
    torch.testing.assert_close(load_target(Workspace(), "jpeg", torch.device("cpu"))(images), classifier(expected))


class WeightedSum(nn.Module):
    """Logits 100, which no perturbation reaches, and a weighted sum of the pixels."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, images: Tensor) -> Tensor:
        score = (images * self.weights).sum(dim=(1, 2, 3))
        return torch.stack([torch.full_like(score, 100), score], dim=1)


class Shifted(nn.Module):
    """The first forward pass brightens by 0.1, the second by 0.3, and so on."""

    def __init__(self) -> None:
        super().__init__()
        self.n_passes = 0

    def forward(self, images: Tensor) -> Tensor:
        self.n_passes += 1
        return images + 0.1 * (2 * self.n_passes - 1)


class Linear(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([images.mean(dim=(1, 2, 3)), images.square().mean(dim=(1, 2, 3)) * 3], dim=1)


def test_predictions_and_gradients_are_averaged_over_samples() -> None:
    images, classifier = noisy(2).requires_grad_(), Linear()
    logits = Purified(Shifted(), classifier, n_eot_samples=2)(images)
    probabilities = (classifier(images + 0.1).softmax(dim=1) + classifier(images + 0.3).softmax(dim=1)) / 2
    torch.testing.assert_close(logits.softmax(dim=1), probabilities)
    (found,) = torch.autograd.grad(logits[:, 0].sum(), images)
    (expected,) = torch.autograd.grad(probabilities.log()[:, 0].sum(), images)
    torch.testing.assert_close(found, expected)
