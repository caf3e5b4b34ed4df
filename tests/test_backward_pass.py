import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.defences.backward_pass import BackwardPass, other_backward_passes, with_backward_pass
from tasks.defences.purified import Purified
from tests.every_target import TARGETS, build_target

WITH_TRANSFORMS = {"jpeg", "median", "total_variation", "median_jpeg_plain"}
"""Targets with an image transform whose own backward pass is not the identity."""


def gradient_of(model: nn.Module, images: Tensor) -> Tensor:
    variable = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(variable)[:, 0].sum(), variable)
    return gradient


@pytest.fixture
def images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).uniform(size=(2, 1, 32, 32)).astype(np.float32))


@pytest.mark.parametrize("target", TARGETS)
def test_targets_without_such_a_transform_have_no_other_backward_pass(target: str) -> None:
    assert other_backward_passes(build_target(target)) == (("identity", "average") if target in WITH_TRANSFORMS else ())


@pytest.mark.parametrize("target", sorted(WITH_TRANSFORMS))
@pytest.mark.parametrize("name", ["identity", "average"])
def test_outputs_stay_the_same_and_gradients_change(target: str, name: BackwardPass, images: Tensor) -> None:
    model = build_target(target)
    before = gradient_of(model, images)
    changed = with_backward_pass(model, name)
    variable = images.clone().requires_grad_()
    torch.testing.assert_close(changed(variable), model(images))
    torch.testing.assert_close(changed(images), model(images))
    assert not torch.allclose(gradient_of(changed, images), before)
    # the target itself is unchanged
    torch.testing.assert_close(gradient_of(model, images), before)


@pytest.mark.parametrize("target", ["jpeg", "median", "total_variation"])
def test_identity_passes_the_gradient_of_the_classifier_through(target: str, images: Tensor) -> None:
    model = build_target(target)
    assert isinstance(model, Purified)
    own = gradient_of(model, images)
    identity = gradient_of(with_backward_pass(model, "identity"), images)
    with torch.no_grad():
        purified = model.purifier(images)
    torch.testing.assert_close(identity, gradient_of(model.classifier, purified))
    torch.testing.assert_close(gradient_of(with_backward_pass(model, "average"), images), (own + identity) / 2)
