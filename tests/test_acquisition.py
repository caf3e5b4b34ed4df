"""Acquisition functions: known answers, determinism and ranking."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.attacks.gradient.norm_ball import NormBall
from tasks.labelling.acquisition import (
    SCORE_FUNCTIONS,
    Pool,
    entropy,
    k_center_greedy,
    least_confidence,
    mutual_information,
    predict_probabilities,
    select_query,
    smallest_margin,
)
from tasks.labelling.dropout import Dropout
from tests.nets import SIDE, Linear, ThreeClasses, linear_case

FUNCTIONS = [*SCORE_FUNCTIONS, "core_set"]


def pool_of(model: nn.Module, images: np.ndarray, norm: str = "linf", seed: int = 0, batch_size: int = 16) -> Pool:
    """The first four images are labelled, the others are not."""
    return Pool(model.eval(), images[4:], images[:4], NormBall(norm, (0.0, 1.0)), 0.01, 4, batch_size, seed)


class WithDropout(nn.Module):
    """Three logits after dropout of the pixels."""

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
def test_a_query_has_distinct_images_with_descending_scores_and_is_reproducible(
    acquisition: str, images: np.ndarray
) -> None:
    pool = pool_of(WithDropout(), images)
    chosen, scores = select_query(acquisition, pool, 7)
    assert len(set(chosen)) == 7
    assert chosen.min() >= 0
    assert chosen.max() < 40
    assert (np.diff(scores) <= 0).all()
    again, _ = select_query(acquisition, pool, 7)
    assert (chosen == again).all()


@pytest.mark.parametrize("acquisition", [name for name in FUNCTIONS if name not in {"random", "bald"}])
def test_the_query_does_not_depend_on_the_batch_size(acquisition: str, images: np.ndarray) -> None:
    whole, _ = select_query(acquisition, pool_of(ThreeClasses(), images, batch_size=64), 10)
    parts, _ = select_query(acquisition, pool_of(ThreeClasses(), images, batch_size=7), 10)
    assert (whole == parts).all()


def test_the_seed_changes_a_random_query_and_no_entropy_query(images: np.ndarray) -> None:
    first, second = (pool_of(ThreeClasses(), images, seed=seed) for seed in (0, 1))
    assert (select_query("random", first, 10)[0] != select_query("random", second, 10)[0]).any()
    assert (select_query("entropy", first, 10)[0] == select_query("entropy", second, 10)[0]).all()


def test_uncertainty_scores_have_their_known_values() -> None:
    probabilities = np.array([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.1, 0.7, 0.2], [1 / 3, 1 / 3, 1 / 3]])
    expected = [1.5 * np.log(2), 0, -(0.1 * np.log(0.1) + 0.7 * np.log(0.7) + 0.2 * np.log(0.2)), np.log(3)]
    assert entropy(probabilities) == pytest.approx(expected, abs=1e-12)
    assert smallest_margin(probabilities) == pytest.approx([0.75, 0, 0.5, 1], abs=1e-12)
    assert least_confidence(probabilities) == pytest.approx([0.5, 0, 0.3, 2 / 3], abs=1e-12)


def test_mutual_information_has_its_known_values() -> None:
    """Equal passes: 0. Opposite certain passes: log 2. Otherwise: entropy of the mean minus mean of the entropies."""
    passes = np.array(
        [[[0.3, 0.7], [1.0, 0.0], [0.2, 0.8], [0.5, 0.5]], [[0.3, 0.7], [0.0, 1.0], [0.6, 0.4], [0.9, 0.1]]]
    )
    scores = mutual_information(passes)
    # certain passes are clipped to a probability of 1e-7
    assert scores[:2] == pytest.approx([0, np.log(2)], abs=2e-6)
    assert scores[2:] == pytest.approx((entropy(passes.mean(axis=0)) - entropy_mean(passes))[2:], abs=1e-9)


def entropy_mean(passes: np.ndarray) -> np.ndarray:
    mean: np.ndarray = np.mean([entropy(probabilities) for probabilities in passes], axis=0)
    return mean


def test_k_center_greedy_takes_the_image_farthest_from_all_labelled_and_chosen_ones() -> None:
    """On a line with 0 labelled, 10 comes first, then 5 in the middle of both, then 2."""
    line = np.array([[1], [2], [10], [5], [9]], dtype=np.float32)
    chosen, distances = k_center_greedy(line, np.zeros((1, 1), dtype=np.float32), 3, seed=0)
    assert line[chosen, 0].tolist() == [10, 5, 2]
    assert distances.tolist() == [10, 5, 2]


def test_k_center_greedy_chooses_at_random_among_equal_distances_and_never_twice() -> None:
    features, labelled = np.ones((20, 2), dtype=np.float32), np.zeros((1, 2), dtype=np.float32)
    orders = [k_center_greedy(features, labelled, 20, seed)[0] for seed in (0, 1, 0)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert (orders[0] != orders[1]).any()
    assert (orders[0] == orders[2]).all()


def test_core_set_uses_penultimate_features() -> None:
    class FirstPixel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(1, 2)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.head(images[:, 0, 0, :1])
            return logits

    line = np.array([0, 1, 2, 10, 5, 9], dtype=np.float32)
    images = np.broadcast_to(line[:, None, None, None], (6, 1, 2, 2)).copy()
    pool = replace(pool_of(FirstPixel(), images), images=images[1:], labelled=images[:1])
    chosen, _ = select_query("core_set", pool, 3)
    assert line[1:][chosen].tolist() == [10, 5, 2]


def test_with_two_classes_all_uncertainty_scores_select_the_predictions_nearest_to_one_half() -> None:
    model, images, _, _ = linear_case()
    pool = pool_of(model, images)
    distances = np.abs(predict_probabilities(model, images[4:], 16)[:, 0] - 0.5)
    nearest = np.argsort(distances)[:9]
    for acquisition in ("entropy", "margin", "least_confidence"):
        assert (select_query(acquisition, pool, 9)[0] == nearest).all(), acquisition


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("acquisition", ["adversarial_margin", "deepfool"])
def test_on_a_linear_classifier_adversarial_scores_are_minus_the_distance_to_the_boundary(
    acquisition: str, norm: str
) -> None:
    model, images, _, margins = linear_case()
    pool = pool_of(model, images, norm)
    chosen, scores = select_query(acquisition, pool, 36)
    distances = np.abs(margins[4:]) / model.dual(norm)
    # DeepFool overshoots the boundary a little and then bisects; images are float32
    assert -scores == pytest.approx(distances[chosen], rel=0.03, abs=1e-6)
    assert (np.diff(scores) <= 0).all()


def test_the_deepfool_score_of_an_unchangeable_prediction_is_minus_infinity() -> None:
    class Constant(Linear):
        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([torch.ones(len(images)), images.flatten(1).sum(dim=1) * 0], dim=1)

    _, images, _, _ = linear_case()
    _, scores = select_query("deepfool", pool_of(Constant(np.ones(SIDE * SIDE), 0.0), images), 3)
    assert (scores == -np.inf).all()


def test_bald_scores_are_positive_with_dropout_and_zero_without(images: np.ndarray) -> None:
    model = WithDropout()
    pool = pool_of(model, images)
    assert (SCORE_FUNCTIONS["bald"](pool) > 0).all()
    model.dropout.p = 1e-12
    assert SCORE_FUNCTIONS["bald"](pool) == pytest.approx(np.zeros(40), abs=1e-12)


def test_bald_restores_evaluation_mode_and_does_not_depend_on_torchs_global_generator(images: np.ndarray) -> None:
    model = WithDropout()
    pool = pool_of(model, images)
    scores = SCORE_FUNCTIONS["bald"](pool)
    assert not any(module.training for module in model.modules())
    torch.manual_seed(5)
    assert (SCORE_FUNCTIONS["bald"](pool) == scores).all()


def test_adversarial_entropy_selects_images_whose_adversarial_example_is_near_the_boundary() -> None:
    """On a linear classifier FGSM reduces every margin by the same amount."""
    model, images, _, margins = linear_case()
    pool = pool_of(model, images)
    chosen, _ = select_query("adversarial_entropy", pool, 5)
    margins_under_attack = np.abs(np.abs(margins[4:]) - 0.01 * model.dual("linf"))
    assert (chosen == np.argsort(margins_under_attack)[:5]).all()
