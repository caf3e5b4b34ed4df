from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.attacks.hop_skip_jump import hop_skip_jump, run_hop_skip_jump
from tasks.defences.preprocessing import AdditiveGaussianNoise
from tasks.defences.randomness import as_attacked
from tests.nets import Linear, assert_adversarial, linear_batch

EPS = np.array([0.25, 0.5, 1, 2, 4, 8, 16, 32])


class FewGreyLevels(nn.Module):
    """A classifier behind 16 grey levels, so that its decision boundary is a staircase."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.n_queries = model, 0

    def forward(self, images: Tensor) -> Tensor:
        self.n_queries += len(images)
        logits: Tensor = self.model((images * 15).round() / 15)
        return logits


def noisy_input(model: nn.Module) -> nn.Module:
    """The model on noisy images: it is random only near its decision boundary."""
    return nn.Sequential(AdditiveGaussianNoise(0.002), model)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_results_are_at_most_one_radius_above_the_smallest(norm: str) -> None:
    batch, expected = linear_batch(norm, EPS)
    chosen = np.arange(0, 40, 3)
    found = run_hop_skip_jump(batch, chosen, expected < 0, 800)
    assert (found.index >= expected).all()
    attacked = np.isin(np.arange(40), chosen) & (expected >= 0)
    assert ((found.index - expected)[attacked] <= 1).all()
    assert (found.index[~np.isin(np.arange(40), chosen) & (expected >= 0)] == len(EPS)).all()
    assert_adversarial(batch, found)


def test_the_number_of_queries_is_bounded_where_the_boundary_is_a_staircase() -> None:
    batch, expected = linear_batch("linf", EPS)
    model = FewGreyLevels(batch.model).eval()
    predicted = model(torch.from_numpy(batch.images)).argmax(dim=1).numpy()
    rows = np.flatnonzero((expected >= 0) & (predicted == batch.labels))[:3]
    starts = batch.images[[np.flatnonzero(predicted != batch.labels[row])[0] for row in rows]]
    model.n_queries = 0
    found = hop_skip_jump(model, batch.images[rows], batch.labels[rows], starts, 2, "linf", (0.0, 1.0), 150, 0)
    assert model.n_queries <= 3 * 150
    before, after = (np.abs(each - batch.images[rows]).max(axis=(1, 2, 3)) for each in (starts, found))
    assert (after < before).all()
    assert (model(torch.from_numpy(found)).argmax(dim=1).numpy() != batch.labels[rows]).all()


def test_a_start_that_is_not_misclassified_is_returned_unchanged() -> None:
    batch, _ = linear_batch("linf", EPS)
    model = FewGreyLevels(batch.model).eval()
    row, other = np.flatnonzero(model(torch.from_numpy(batch.images)).argmax(dim=1).numpy() == 1)[:2]
    image, start, label = batch.images[[row]], batch.images[[other]], np.ones(1, dtype=np.int64)
    model.n_queries = 0
    assert np.array_equal(hop_skip_jump(model, image, label, start, 2, "linf", (0.0, 1.0), 150, 0), start)
    assert model.n_queries <= 150


def test_no_image_breaks_where_all_images_are_of_one_class() -> None:
    batch, expected = linear_batch("linf", EPS)
    rows = np.flatnonzero((expected >= 0) & (batch.labels == 1))
    one_class = replace(batch, images=batch.images[rows], labels=batch.labels[rows], image_ids=rows)
    found = run_hop_skip_jump(one_class, np.arange(len(rows)), np.zeros(len(rows), dtype=bool), 100)
    assert (found.index == len(EPS)).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_results_on_a_random_model_are_near_the_smallest_radius_and_reproducible(norm: str) -> None:
    batch, expected = linear_batch(norm, EPS)
    model = batch.model
    assert isinstance(model, Linear)
    chosen = np.flatnonzero(expected > 0)[:12]
    found, again = (
        run_hop_skip_jump(replace(batch, model=as_attacked(noisy_input(model))), chosen, expected < 0, 800)
        for _ in range(2)
    )
    assert np.array_equal(found.adversarial, again.adversarial)
    assert found.index.tolist() == again.index.tolist()
    assert (found.index[chosen] < len(EPS)).all()
    assert np.median(found.index[chosen] - expected[chosen]) <= 1
    # the majority of 20 predictions decides, so about half of the fresh draws at the boundary misclassify, not one
    labels, adversarial = torch.from_numpy(batch.labels[chosen]), torch.from_numpy(found.adversarial[chosen])
    target = noisy_input(model)
    draws = torch.stack([target(adversarial).argmax(dim=1) != labels for _ in range(20)])
    assert draws.float().mean() > 0.45
