from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.attacks.gradient.balls import Balls
from tasks.attacks.probes import HUGE_EPS, probe, probe_broken_defence
from tasks.attacks.suite import Case
from tests.nets import linear_case

EPS = (1.0, 8.0, 64.0)


def linear() -> tuple[Case, np.ndarray]:
    """Images of a linear classifier, and the L-infinity distance of each from the boundary; negative if wrong."""
    model, images, labels, margins = linear_case()
    radii = np.array(EPS) / 255
    case = Case(model, images, labels, 2, radii, Balls("linf", (0.0, 1.0)), 16, 0, np.arange(40))
    return case, margins / model.dual("linf")


class Behind(nn.Module):
    """A classifier whose logits are changed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class Probabilities(Behind):
    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).softmax(dim=1)


class Restless(Behind):
    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits + 0.1 * torch.from_numpy(np.random.normal(size=logits.shape).astype(np.float32))


class Rounded(Behind):
    """Fewer grey levels, and no way around the gradients that they lack."""

    def forward(self, images: Tensor) -> Tensor:
        return self.model((images * 15).round() / 15)


def probed(case: Case) -> dict[tuple[str, float], np.ndarray]:
    return probe(case, EPS, HUGE_EPS / 255)


def test_a_sound_classifier_falls_to_a_huge_perturbation_and_withstands_most_noise() -> None:
    case, distance = linear()
    found = probed(case)
    assert set(found) == {
        ("huge", HUGE_EPS),
        *(("noise", eps) for eps in EPS),
        *((name, 0.0) for name in ("zero_gradient", "finite_gradient", "spread", "steady", "probabilities")),
    }
    assert all(values.shape == (40,) for values in found.values())
    assert not found["huge", HUGE_EPS].any()
    # noise of 64 random signs moves the margin by far less than the worst perturbation of the same size
    assert (found["noise", 1.0] >= (distance > 1 / 255)).all()
    assert found["noise", 64.0].mean() > (distance > 64 / 255).mean() + 0.3
    assert not found["noise", 64.0][distance < -0.05].any()
    assert not found["zero_gradient", 0.0].any()
    assert found["finite_gradient", 0.0].all()
    assert not found["spread", 0.0].any()
    assert found["steady", 0.0].all()
    assert not found["probabilities", 0.0].any()


def test_a_ball_that_is_no_larger_than_the_margin_breaks_nothing() -> None:
    case, distance = linear()
    found = probe(case, EPS, 1e-6)
    assert (found["huge", HUGE_EPS] == (distance > 1e-6)).all()


def test_probabilities_are_told_from_logits() -> None:
    case, _ = linear()
    assert probed(replace(case, target=Probabilities(case.target)))["probabilities", 0.0].all()


def test_a_target_that_draws_at_random_is_found_out() -> None:
    case, distance = linear()
    found = probed(replace(case, target=Restless(case.target)))
    assert (found["spread", 0.0] > 0.01).all()
    # those near the boundary change sides
    margin = np.abs(distance)
    unsteady = found["steady", 0.0] == 0
    assert unsteady.any()
    assert margin[unsteady].mean() < margin[~unsteady].mean()


def test_masked_gradients_are_found() -> None:
    case, _ = linear()
    assert (probed(replace(case, target=Rounded(case.target)))["zero_gradient", 0.0] == 1).all()


@pytest.mark.parametrize("batch_size", [7, 40])
def test_the_size_of_a_batch_changes_nothing(batch_size: int) -> None:
    case, _ = linear()
    some, others = probed(case), probed(replace(case, batch_size=batch_size))
    assert all((some[name] == others[name]).all() for name in some)


def test_a_broken_defence_falls_once_the_attacker_goes_around_it() -> None:
    case, _ = linear()
    found = probe_broken_defence(case, 64.0, 64 / 255)
    assert list(found) == [("broken_defence", 64.0)]
    assert not found["broken_defence", 64.0].any()
    # with the gradients that it has, none is found
    naive = probe(replace(case, target=Rounded(case.target)), EPS, 64 / 255)
    assert naive["huge", HUGE_EPS].mean() > 0.5
