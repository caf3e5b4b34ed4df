"""Acquisition functions ask about what they say they ask about."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.attacks.gradient.balls import Balls
from tasks.labelling.acquisition import SCORES, Pool, choose, probabilities
from tasks.labelling.dropout import Dropout
from tests.nets import SIDE, Linear, ThreeClasses, linear_case

FUNCTIONS = [*SCORES, "core_set"]


def pool_of(model: nn.Module, images: np.ndarray, norm: str = "linf", seed: int = 0, batch_size: int = 16) -> Pool:
    return Pool(model.eval(), images[4:], images[:4], Balls(norm, (0.0, 1.0)), 0.01, 4, batch_size, seed)


class Dropping(nn.Module):
    """Three logits behind dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = Dropout(0.5)
        self.inner = ThreeClasses()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(self.dropout(images))
        return logits


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(3).uniform(0, 1, (44, 1, SIDE, SIDE)).astype(np.float32)


@pytest.mark.parametrize("acquisition", FUNCTIONS)
def test_as_many_different_images_are_chosen_as_were_asked_for_the_same_ones_twice(
    acquisition: str, images: np.ndarray
) -> None:
    pool = pool_of(Dropping(), images)
    chosen, scores = choose(acquisition, pool, 7)
    assert len(set(chosen)) == 7
    assert chosen.min() >= 0
    assert chosen.max() < 40
    assert (np.diff(scores) <= 0).all()
    again, _ = choose(acquisition, pool, 7)
    assert (chosen == again).all()


@pytest.mark.parametrize("acquisition", [name for name in FUNCTIONS if name not in {"random", "bald"}])
def test_choices_do_not_depend_on_the_size_of_batches(acquisition: str, images: np.ndarray) -> None:
    whole, _ = choose(acquisition, pool_of(ThreeClasses(), images, batch_size=64), 10)
    parts, _ = choose(acquisition, pool_of(ThreeClasses(), images, batch_size=7), 10)
    assert (whole == parts).all()


def test_another_seed_chooses_others_at_random_and_the_same_by_entropy(images: np.ndarray) -> None:
    first, second = (pool_of(ThreeClasses(), images, seed=seed) for seed in (0, 1))
    assert (choose("random", first, 10)[0] != choose("random", second, 10)[0]).any()
    assert (choose("entropy", first, 10)[0] == choose("entropy", second, 10)[0]).all()


def test_uncertain_images_come_first_and_of_two_classes_all_three_scores_ask_the_same() -> None:
    model, images, _, _ = linear_case()
    pool = pool_of(model, images)
    distance = np.abs(probabilities(model, images[4:], 16)[:, 0] - 0.5)
    nearest = np.argsort(distance)[:9]
    for acquisition in ("entropy", "margin", "least_confidence"):
        assert (choose(acquisition, pool, 9)[0] == nearest).all(), acquisition


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("acquisition", ["adversarial_margin", "deepfool"])
def test_on_a_linear_classifier_adversarial_scores_are_the_distance_to_the_boundary(
    acquisition: str, norm: str
) -> None:
    model, images, _, margins = linear_case()
    pool = pool_of(model, images, norm)
    chosen, scores = choose(acquisition, pool, 36)
    distances = np.abs(margins[4:]) / model.dual(norm)
    # DeepFool steps a little over the boundary and halves the way back; the last digits are float32's
    assert -scores == pytest.approx(distances[chosen], rel=0.03, abs=1e-6)
    assert (np.diff(scores) <= 0).all()


def test_deepfool_ranks_last_what_it_can_not_change() -> None:
    class Sure(Linear):
        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([torch.ones(len(images)), images.flatten(1).sum(dim=1) * 0], dim=1)

    _, images, _, _ = linear_case()
    _, scores = choose("deepfool", pool_of(Sure(np.ones(SIDE * SIDE), 0.0), images), 3)
    assert (scores == -np.inf).all()


def test_bald_asks_where_passes_with_dropout_disagree_and_leaves_the_model_as_it_was(images: np.ndarray) -> None:
    model = Dropping()
    pool = pool_of(model, images)
    scores = SCORES["bald"](pool)
    assert (scores > 0).all()
    assert not any(module.training for module in model.modules())
    torch.manual_seed(5)
    # whoever else draws from torch's global generator
    assert (SCORES["bald"](pool) == scores).all()
    model.dropout.p = 1e-12
    assert SCORES["bald"](pool) == pytest.approx(np.zeros(40), abs=1e-12)


def test_core_set_takes_what_is_farthest_from_all_that_is_labelled_or_chosen() -> None:
    """Features on a line: 0 is labelled, so 10 comes first, then 5, in the middle of both."""

    class Position(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(1, 2)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.head(images[:, 0, 0, :1])
            return logits

    at = np.array([0, 1, 2, 10, 5, 9], dtype=np.float32)
    images = np.broadcast_to(at[:, None, None, None], (6, 1, 2, 2)).copy()
    pool = replace(pool_of(Position(), images), images=images[1:], labelled=images[:1])
    chosen, scores = choose("core_set", pool, 3)
    assert at[1:][chosen].tolist() == [10, 5, 2]
    assert scores.tolist() == [10, 5, 2]


def test_attacked_entropy_asks_about_what_the_attack_makes_doubtful() -> None:
    """The attack takes a fixed amount off every margin, so what is left near zero is wanted most."""
    model, images, _, margins = linear_case()
    pool = pool_of(model, images)
    chosen, _ = choose("adversarial_entropy", pool, 5)
    left = np.abs(np.abs(margins[4:]) - 0.01 * model.dual("linf"))
    assert (chosen == np.argsort(left)[:5]).all()
