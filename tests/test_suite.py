import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.attacks.suite import craft, observe, radius, seed_of
from tasks.defences.purified import Purified
from tasks.evaluation.perturbations import check_adversarial, perturbation_norms
from tasks.evaluation.scores import margin
from tasks.params import Params

SIDE = 8
N_PIXELS = SIDE * SIDE


class Linear(nn.Module):
    """Logits ``(0, w . x + b)`` over the pixels: FGSM and PGD are exactly optimal on it."""

    def __init__(self, weights: np.ndarray, bias: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.from_numpy(weights.astype(np.float32)), requires_grad=False)
        self.bias = nn.Parameter(torch.tensor(bias), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        score = images.flatten(1) @ self.weights + self.bias
        return torch.stack([torch.zeros_like(score), score], dim=1)


class ThreeClasses(nn.Module):
    """A small network with ReLU and three logits."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(N_PIXELS, 16), nn.Linear(16, 3)])
        for parameter in self.parameters():
            parameter.requires_grad_(False).normal_(0, 0.3, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers[1](self.layers[0](images.flatten(1)).relu())
        return logits


@pytest.fixture
def linear() -> tuple[Linear, np.ndarray, np.ndarray, np.ndarray]:
    """A linear model, images well inside [0, 1], true labels (some unlike the prediction), clean margins."""
    rng = np.random.default_rng(7)
    weights = rng.normal(size=N_PIXELS) + 0.2
    images = rng.uniform(0.4, 0.6, (40, 1, SIDE, SIDE)).astype(np.float32)
    score = images.reshape(40, -1) @ weights
    bias = -float(np.median(score))
    labels = (score + bias > 0).astype(np.int64)
    labels[:4] = 1 - labels[:4]
    return Linear(weights, bias), images, labels, np.where(labels == 1, 1, -1) * (score + bias)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_accuracy_on_a_linear_classifier_is_what_the_hand_computes(
    attack: str, norm: str, linear: tuple, params_with: Callable[..., Params]
) -> None:
    model, images, labels, margins = linear
    settings = params_with({"attack.norm": norm, "attack.batch_size": 16, "attack.pgd.n_steps": 40}).attack
    weights = model.weights.numpy().astype(np.float64)
    # the most that a perturbation of size 1 changes w . x: the dual norm of w
    dual = np.abs(weights).sum() if norm == "linf" else np.linalg.norm(weights)
    survivors = []
    for eps in (0.5, 2.0, 8.0):
        expected = margins - radius(eps, norm, N_PIXELS) * dual
        adversarial = craft(model, images, labels, 2, attack, eps, settings, (0.0, 1.0), seed=0)
        observed = margin(observe(model, adversarial, 16).logits, labels)
        assert observed == pytest.approx(expected, abs=2e-4)
        survivors.append(int((expected > 0).sum()))
        assert (observed > 0).sum() == survivors[-1]
    assert 36 > survivors[0] > survivors[1] > survivors[2]


def test_true_labels_are_attacked_so_that_a_wrong_prediction_is_not_turned_right(
    linear: tuple, params_with: Callable[..., Params]
) -> None:
    model, images, labels, margins = linear
    wrong = margins < 0
    assert wrong.sum() == 4
    for attack in ("fgsm", "pgd"):
        adversarial = craft(model, images, labels, 2, attack, 4.0, params_with().attack, (0.0, 1.0), seed=0)
        logits = observe(model, adversarial, 64).logits
        assert (margin(logits, labels)[wrong] < margins[wrong]).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_perturbations_stay_in_the_ball_and_the_range_at_the_border(
    attack: str, norm: str, linear: tuple, params_with: Callable[..., Params]
) -> None:
    model = linear[0]
    rng = np.random.default_rng(1)
    images = rng.choice(np.array([0, 1 / 255, 254 / 255, 1], dtype=np.float32), (20, 1, SIDE, SIDE))
    settings = params_with({"attack.norm": norm, "attack.pgd.n_restarts": 2}).attack
    for eps in (0.25, 2.0, 128.0):
        adversarial = craft(model, images, rng.integers(0, 2, 20), 2, attack, eps, settings, (0.0, 1.0), seed=3)
        assert adversarial.dtype == np.float32
        assert adversarial.shape == images.shape
        norms = perturbation_norms(images, adversarial)
        check_adversarial(adversarial, norms[norm], eps, radius(eps, norm, N_PIXELS), (0.0, 1.0))
        assert (norms[norm] > 0).all()


def test_random_starts_follow_the_seed_and_not_the_batch_size(
    linear: tuple, params_with: Callable[..., Params]
) -> None:
    model, images, labels, _ = linear

    def after_one_small_step(seed: int, batch_size: int, n_restarts: int) -> np.ndarray:
        settings = params_with(
            {
                "attack.batch_size": batch_size,
                "attack.pgd.n_steps": 1,
                "attack.pgd.relative_step": 0.1,
                "attack.pgd.n_restarts": n_restarts,
            }
        ).attack
        return craft(model, images, labels, 2, "pgd", 4.0, settings, (0.0, 1.0), seed)

    np.random.seed(99)
    first = after_one_small_step(seed=5, batch_size=64, n_restarts=1)
    assert (first == after_one_small_step(seed=5, batch_size=64, n_restarts=1)).all()
    assert first == pytest.approx(after_one_small_step(seed=5, batch_size=7, n_restarts=1), abs=1e-6)
    assert np.abs(first - after_one_small_step(seed=6, batch_size=64, n_restarts=1)).max() > 0.5 * 4 / 255
    # without a random start, a small step is a small FGSM
    still = after_one_small_step(seed=5, batch_size=64, n_restarts=0)
    assert np.abs(still - images) == pytest.approx(np.full(images.shape, 0.1 * 4 / 255), abs=1e-6)


def test_more_restarts_never_leave_an_image_with_a_larger_margin(params_with: Callable[..., Params]) -> None:
    model = ThreeClasses()
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(30, 1, SIDE, SIDE)).astype(np.float32)
    labels = rng.integers(0, 3, 30)
    margins = []
    for n_restarts in (1, 2, 5):
        settings = params_with({"attack.pgd.n_steps": 2, "attack.pgd.n_restarts": n_restarts}).attack
        adversarial = craft(model, images, labels, 3, "pgd", 8.0, settings, (0.0, 1.0), seed=1)
        margins.append(margin(observe(model, adversarial, 64).logits, labels))
    assert (margins[1] <= margins[0] + 1e-5).all()
    assert (margins[2] <= margins[1] + 1e-5).all()
    assert (margins[2] < margins[0] - 1e-3).any()


def test_pgd_beats_fgsm_on_three_classes(params_with: Callable[..., Params]) -> None:
    model = ThreeClasses()
    images = np.random.default_rng(0).uniform(size=(60, 1, SIDE, SIDE)).astype(np.float32)
    labels = observe(model, images, 64).logits.argmax(axis=1)
    correct = {}
    for attack in ("fgsm", "pgd"):
        adversarial = craft(model, images, labels, 3, attack, 4.0, params_with().attack, (0.0, 1.0), seed=1)
        correct[attack] = (observe(model, adversarial, 64).logits.argmax(axis=1) == labels).sum()
    assert correct["pgd"] <= correct["fgsm"] < 60


def test_an_adaptive_attack_goes_through_the_purifier(linear: tuple, params_with: Callable[..., Params]) -> None:
    class Inverted(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return 1 - images

    model, images, labels, _ = linear
    defended = Purified(Inverted(), model)
    settings = params_with().attack
    through = craft(defended, images, labels, 2, "fgsm", 4.0, settings, (0.0, 1.0), seed=0)
    past = craft(model, images, labels, 2, "fgsm", 4.0, settings, (0.0, 1.0), seed=0)
    assert np.sign(through - images) == pytest.approx(-np.sign(past - images))


def test_radius_of_l2_is_the_root_mean_square_over_the_pixels() -> None:
    assert radius(2, "linf", 224 * 224) == pytest.approx(2 / 255)
    assert radius(2, "l2", 224 * 224) == pytest.approx(2 / 255 * 224)
    everywhere = np.full((1, 1, 224, 224), 2 / 255)
    assert perturbation_norms(np.zeros_like(everywhere), everywhere)["l2"][0] == pytest.approx(radius(2, "l2", 224**2))


def test_seeds_differ_between_craftings_and_fit_numpy() -> None:
    craftings = [(0, "undefended", "pgd", 1.0), (0, "undefended", "pgd", 2.0), (0, "autoencoder", "pgd", 1.0)]
    seeds = {seed_of(*crafting) for crafting in [*craftings, (1, "undefended", "pgd", 1.0)]}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert seed_of(0, "undefended", "pgd", 1) == seed_of(0, "undefended", "pgd", 1.0)


def test_observation_measures_what_the_purifier_changes(linear: tuple) -> None:
    class Brighter(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images + 0.1

    model, images, _, _ = linear
    bare, defended = observe(model, images, 16), observe(Purified(Brighter(), model), images, 16)
    assert bare.reconstruction_error is None
    assert defended.reconstruction_error == pytest.approx(np.full(40, 0.01), abs=1e-6)
    assert defended.logits == pytest.approx(observe(model, images + np.float32(0.1), 16).logits, abs=1e-5)
    assert math.isclose(bare.logits[0, 0], 0)
