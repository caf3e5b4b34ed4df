from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.attacks.batch import AttackBatch
from tasks.attacks.diagnostics import GRADIENT_EPS, UNBOUNDED_EPS, Diagnostics, run_diagnostics, run_positive_control
from tasks.defences.preprocessing import BPDA, AdditiveGaussianNoise
from tasks.defences.purified import Purified
from tasks.defences.randomness import as_attacked
from tests.nets import linear_batch, linear_case

EPS = (1.0, 8.0, 64.0)


def linear() -> tuple[AttackBatch, np.ndarray]:
    """Images of a linear classifier, and the L-infinity distance of each from the boundary.

    The distance is negative where the image is misclassified.
    """
    model, _, _, margins = linear_case()
    batch, _ = linear_batch("linf", np.array(EPS))
    return batch, margins / model.dual("linf")


class Wrapped(nn.Module):
    """A classifier whose input or output is changed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class Probabilities(Wrapped):
    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).softmax(dim=1)


class RandomLogits(Wrapped):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits + 0.1 * torch.randn(logits.shape, generator=self.generator)


class NormalisedBatch(Wrapped):
    """Computes with all images of a batch, as a batch norm in training mode does."""

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images - images.mean(dim=0) if len(images) > 1 else images)


class RoundedInput(Wrapped):
    """Fewer grey levels without BPDA: the gradient is zero."""

    def forward(self, images: Tensor) -> Tensor:
        return self.model((images * 15).round() / 15)


def diagnosed(batch: AttackBatch) -> Diagnostics:
    return run_diagnostics(batch, EPS, UNBOUNDED_EPS / 255)


def test_an_unbounded_attack_breaks_a_classifier_without_masked_gradients_and_noise_does_not() -> None:
    batch, distance = linear()
    found = diagnosed(batch)
    assert set(found) == {
        ("unbounded_attack", UNBOUNDED_EPS),
        *(("random_noise", eps) for eps in EPS),
        *(
            (name, 0.0)
            for name in (
                "zero_gradient",
                "finite_gradient",
                "max_logit_difference",
                "batch_difference",
                "repeatable_prediction",
                "outputs_are_probabilities",
            )
        ),
        *((name, eps) for name in ("margin_drop", "margin_drop_by_gradient") for eps in GRADIENT_EPS),
    }
    assert all(values.shape == (40,) for values in found.values())
    assert not found["unbounded_attack", UNBOUNDED_EPS].any()
    # noise on 64 pixels changes the margin far less than the worst perturbation of the same size
    assert (found["random_noise", 1.0] >= (distance > 1 / 255)).all()
    assert found["random_noise", 64.0].mean() > (distance > 64 / 255).mean() + 0.3
    assert not found["random_noise", 64.0][distance < -0.05].any()
    assert not found["zero_gradient", 0.0].any()
    assert found["finite_gradient", 0.0].all()
    assert not found["max_logit_difference", 0.0].any()
    assert (found["batch_difference", 0.0] < 1e-5).all()
    assert found["repeatable_prediction", 0.0].all()
    assert not found["outputs_are_probabilities", 0.0].any()


def test_an_attack_in_a_tiny_ball_breaks_only_images_next_to_the_boundary() -> None:
    batch, distance = linear()
    found = run_diagnostics(batch, EPS, 1e-6)
    assert (found["unbounded_attack", UNBOUNDED_EPS] == (distance > 1e-6)).all()


def test_outputs_that_are_probabilities_are_detected() -> None:
    batch, _ = linear()
    assert diagnosed(replace(batch, model=Probabilities(batch.model)))["outputs_are_probabilities", 0.0].all()


def test_random_outputs_are_detected() -> None:
    batch, distance = linear()
    found = diagnosed(replace(batch, model=RandomLogits(batch.model)))
    assert (found["max_logit_difference", 0.0] > 0.01).all()
    # only predictions near the decision boundary change between passes
    margin = np.abs(distance)
    changing = found["repeatable_prediction", 0.0] == 0
    assert changing.any()
    assert margin[changing].mean() < margin[~changing].mean()


def test_outputs_that_depend_on_the_other_images_are_detected() -> None:
    batch, _ = linear()
    found = diagnosed(replace(batch, model=NormalisedBatch(batch.model)))
    assert found["batch_difference", 0.0].max() > 0.1
    assert not found["max_logit_difference", 0.0].any()


def test_single_images_are_not_predicted_for_a_random_target() -> None:
    batch, _ = linear()
    target = as_attacked(Purified(AdditiveGaussianNoise(0.1), batch.model).eval())
    sizes: list[int] = []
    target.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    found = diagnosed(replace(batch, model=target))
    assert ("batch_difference", 0.0) not in found
    assert 1 not in sizes


def test_masked_gradients_are_detected() -> None:
    batch, _ = linear()
    assert (diagnosed(replace(batch, model=RoundedInput(batch.model)))["zero_gradient", 0.0] == 1).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_gradient_of_a_linear_classifier_predicts_the_decrease_of_the_margin(norm: str) -> None:
    batch, _ = linear_batch(norm, np.array(EPS))
    found = diagnosed(batch)
    for eps in GRADIENT_EPS:
        assert found["margin_drop", eps].min() > 0
        np.testing.assert_allclose(found["margin_drop", eps], found["margin_drop_by_gradient", eps], rtol=1e-3)


@pytest.mark.parametrize(("knows_the_filter", "low", "high"), [(False, -0.1, 0.4), (True, 0.95, 1.05)])
def test_a_backward_pass_that_does_not_match_a_transform_is_detected(
    knows_the_filter: bool, low: float, high: float
) -> None:
    mean = nn.AvgPool2d(5, 1, 2)
    transform = BPDA(
        lambda images: (mean(torch.from_numpy(images)).numpy(), None), "mean", mean if knows_the_filter else None
    )
    batch, _ = linear()
    found = diagnosed(replace(batch, model=Purified(transform, batch.model).eval()))
    for eps in GRADIENT_EPS:
        agreement = found["margin_drop", eps].sum() / found["margin_drop_by_gradient", eps].sum()
        assert low < agreement < high


@pytest.mark.parametrize("batch_size", [7, 40])
def test_the_batch_size_does_not_change_the_diagnostics(batch_size: int) -> None:
    batch, _ = linear()
    values, others = diagnosed(batch), diagnosed(replace(batch, batch_size=batch_size))
    for key, value in values.items():
        # a batched matrix product rounds its sums by the size of the batch
        tolerance = 1e-5 if key[0].startswith(("margin_drop", "batch_difference")) else 0
        np.testing.assert_allclose(value, others[key], rtol=tolerance, atol=tolerance)


def test_the_positive_control_is_broken_by_bpda_and_not_without() -> None:
    batch, _ = linear()
    found = run_positive_control(batch, 64.0, 64 / 255)
    assert list(found) == [("positive_control", 64.0)]
    assert not found["positive_control", 64.0].any()
    # without BPDA the attack has no gradient to follow, and its random start breaks about half of the images
    without_bpda = run_diagnostics(replace(batch, model=RoundedInput(batch.model)), EPS, 64 / 255)
    assert without_bpda["unbounded_attack", UNBOUNDED_EPS].mean() > 0.25
