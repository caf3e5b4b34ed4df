import math
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.attacks.campaign import seed_random_defences
from tasks.attacks.crafting import craft, observe
from tasks.attacks.gradient.balls import radius
from tasks.defences.purified import Purified
from tasks.models.autoencoder import ARCHITECTURES
from tasks.params import Attack, Params, Step
from tasks.records.perturbation_norms import check_adversarial, perturbation_norms
from tasks.records.scores import margin
from tests.every_target import METHODS, TARGETS, build_target
from tests.nets import N_PIXELS, SIDE, Linear, ThreeClasses, linear_case

MODES = ["fast", "reference"]


def attacked(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    attack: str,
    eps: float,
    settings: Attack,
    seed: int,
) -> np.ndarray:
    """Adversarial examples at one eps."""
    settings = settings.model_copy(update={"eps": (eps,)})
    (adversarial,) = craft(model, images, labels, n_classes, attack, settings, (0.0, 1.0), seed, np.arange(len(images)))
    return adversarial


@pytest.fixture
def linear() -> tuple[Linear, np.ndarray, np.ndarray, np.ndarray]:
    return linear_case()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_accuracy_on_a_linear_classifier_is_what_the_hand_computes(
    mode: str, attack: str, norm: str, linear: tuple, params_with: Callable[..., Params]
) -> None:
    model, images, labels, margins = linear
    settings = params_with(
        {
            "attack.mode": mode,
            "attack.norm": norm,
            "attack.suite.n_queries": 0,
            "attack.batch_size": 16,
            "attack.pgd.n_steps": 40,
            "attack.sweep.n_steps": 40,
        }
    ).attack
    survivors = []
    for eps in (0.5, 2.0, 8.0):
        expected = margins - radius(eps, norm, N_PIXELS) * model.dual(norm)
        adversarial = attacked(model, images, labels, 2, attack, eps, settings, seed=0)
        observed = margin(observe(model, adversarial).logits, labels)
        assert observed == pytest.approx(expected, abs=2e-4)
        survivors.append(int((expected > 0).sum()))
        assert (observed > 0).sum() == survivors[-1]
    assert 36 > survivors[0] > survivors[1] > survivors[2]


@pytest.mark.parametrize("mode", MODES)
def test_true_labels_are_attacked_so_that_a_wrong_prediction_is_not_turned_right(
    mode: str, linear: tuple, params_with: Callable[..., Params]
) -> None:
    model, images, labels, margins = linear
    wrong = margins < 0
    assert wrong.sum() == 4
    for attack in ("fgsm", "pgd"):
        adversarial = attacked(model, images, labels, 2, attack, 4.0, params_with({"attack.mode": mode}).attack, seed=0)
        logits = observe(model, adversarial).logits
        assert (margin(logits, labels)[wrong] < margins[wrong]).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_perturbations_stay_in_the_ball_and_the_range_at_the_border(
    mode: str, attack: str, norm: str, linear: tuple, params_with: Callable[..., Params]
) -> None:
    model = linear[0]
    rng = np.random.default_rng(1)
    images = rng.choice(np.array([0, 1 / 255, 254 / 255, 1], dtype=np.float32), (20, 1, SIDE, SIDE))
    settings = params_with(
        {"attack.mode": mode, "attack.norm": norm, "attack.suite.n_queries": 0, "attack.pgd.n_restarts": 2}
    ).attack
    for eps in (0.25, 2.0, 128.0):
        adversarial = attacked(model, images, rng.integers(0, 2, 20), 2, attack, eps, settings, seed=3)
        assert adversarial.dtype == np.float32
        assert adversarial.shape == images.shape
        norms = perturbation_norms(images, adversarial)
        check_adversarial(adversarial, norms[norm], eps, radius(eps, norm, N_PIXELS), (0.0, 1.0))
        assert (norms[norm] > 0).all()


def test_random_starts_follow_the_seed_and_the_image_alone(linear: tuple, params_with: Callable[..., Params]) -> None:
    model, images, labels, _ = linear

    def after_one_small_step(seed: int, n_restarts: int, rows: np.ndarray) -> np.ndarray:
        numbers = {"n_steps": 1, "relative_step": 0.1, "n_restarts": n_restarts}
        settings = params_with({f"attack.pgd.{name}": value for name, value in numbers.items()}).attack
        (adversarial, *_) = craft(model, images[rows], labels[rows], 2, "pgd", settings, (0.0, 1.0), seed, rows)
        return adversarial

    everything, some = np.arange(40), np.array([3, 17, 38])
    first = after_one_small_step(5, 1, everything)
    np.random.seed(99)
    torch.manual_seed(99)
    assert (first == after_one_small_step(5, 1, everything)).all()
    assert first[some] == pytest.approx(after_one_small_step(5, 1, some), abs=1e-6)
    size = params_with().attack.eps[0] / 255
    assert np.abs(first - after_one_small_step(6, 1, everything)).max() > 0.5 * size
    # without a random start, a small step is a small FGSM
    still = after_one_small_step(5, 0, everything)
    assert np.abs(still - images) == pytest.approx(np.full(images.shape, 0.1 * size), abs=1e-6)


def test_random_starts_of_the_reference_follow_the_seed(linear: tuple, params_with: Callable[..., Params]) -> None:
    model, images, labels, _ = linear
    settings = params_with({"attack.mode": "reference", "attack.pgd.n_steps": 1}).attack
    first = attacked(model, images, labels, 2, "pgd", 4.0, settings, seed=5)
    np.random.seed(99)
    assert (first == attacked(model, images, labels, 2, "pgd", 4.0, settings, seed=5)).all()
    assert (first != attacked(model, images, labels, 2, "pgd", 4.0, settings, seed=6)).any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
@pytest.mark.parametrize("target", TARGETS)
def test_fast_and_reference_mode_craft_the_same_examples(
    target: str, attack: str, norm: str, params_with: Callable[..., Params]
) -> None:
    model = build_target(target)
    images = np.random.default_rng(0).uniform(size=(12, 1, 32, 32)).astype(np.float32)
    labels = np.arange(12) % 3
    numbers = {
        "attack.norm": norm,
        "attack.suite.n_queries": 0,
        "attack.eps": [0.5, 2, 8],
        "analyze.eps": 8,
        "analyze.evasion.eps": [],
        "attack.pgd.n_restarts": 0,
    }

    def all_eps(mode: str) -> list[np.ndarray]:
        settings = params_with(numbers | {"attack.mode": mode}).attack
        seed_random_defences(model, 0)
        return list(craft(model, images, labels, 3, attack, settings, (0.0, 1.0), 0, np.arange(12)))

    def margins(of: np.ndarray) -> np.ndarray:
        seed_random_defences(model, 1)
        return margin(observe(model, of).logits, labels)

    fast, reference = all_eps("fast"), all_eps("reference")
    # the sign of a gradient next to zero may turn by rounding; ART adds 1e-7 to the norm that it divides by
    assert np.abs(fast[0] - reference[0]).mean() < 0.005 * 0.5 / 255
    # from one eps to the next, draws differ; and on the way to the largest, what rounds images drifts apart
    alike = 0.2 if "noise" in target else 0.05
    for ours, arts in zip(fast, reference, strict=True):
        gained = margins(images) - margins(arts)
        assert gained.min() > 0
        assert margins(ours) == pytest.approx(margins(arts), abs=alike * gained.max())


def test_fast_and_reference_mode_are_compared_on_every_kind_of_purifier() -> None:
    known = {step.model_fields["method"].annotation.__args__[0] for step in get_args(get_args(Step)[0])}
    assert set(METHODS) == known
    assert set(TARGETS) >= known | set(ARCHITECTURES)


@pytest.mark.parametrize("mode", MODES)
def test_more_restarts_never_leave_an_image_with_a_larger_margin(mode: str, params_with: Callable[..., Params]) -> None:
    model = ThreeClasses()
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(30, 1, SIDE, SIDE)).astype(np.float32)
    labels = rng.integers(0, 3, 30)
    margins = []
    for n_restarts in (1, 2, 5):
        settings = params_with(
            {"attack.mode": mode, "attack.pgd.n_steps": 2, "attack.pgd.n_restarts": n_restarts}
        ).attack
        adversarial = attacked(model, images, labels, 3, "pgd", 8.0, settings, seed=1)
        margins.append(margin(observe(model, adversarial).logits, labels))
    assert (margins[1] <= margins[0] + 1e-5).all()
    assert (margins[2] <= margins[1] + 1e-5).all()
    assert (margins[2] < margins[0] - 1e-3).any()


@pytest.mark.parametrize("mode", MODES)
def test_pgd_beats_fgsm_on_three_classes(mode: str, params_with: Callable[..., Params]) -> None:
    model = ThreeClasses()
    images = np.random.default_rng(0).uniform(size=(60, 1, SIDE, SIDE)).astype(np.float32)
    labels = observe(model, images).logits.argmax(axis=1)
    correct = {}
    for attack in ("fgsm", "pgd"):
        adversarial = attacked(model, images, labels, 3, attack, 4.0, params_with({"attack.mode": mode}).attack, seed=1)
        correct[attack] = (observe(model, adversarial).logits.argmax(axis=1) == labels).sum()
    assert correct["pgd"] <= correct["fgsm"] < 60


@pytest.mark.parametrize("mode", MODES)
def test_an_adaptive_attack_goes_through_the_purifier(
    mode: str, linear: tuple, params_with: Callable[..., Params]
) -> None:
    class Inverted(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return 1 - images

    model, images, labels, _ = linear
    defended = Purified(Inverted(), model)
    settings = params_with({"attack.mode": mode}).attack
    through = attacked(defended, images, labels, 2, "fgsm", 4.0, settings, seed=0)
    past = attacked(model, images, labels, 2, "fgsm", 4.0, settings, seed=0)
    assert np.sign(through - images) == pytest.approx(-np.sign(past - images))


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_l2_examples_stay_in_the_ball_where_the_gradient_nearly_vanishes(
    attack: str, linear: tuple, params_with: Callable[..., Params]
) -> None:
    model, images, labels, margins = linear
    # of class 1 nothing is left of the gradient itself, which comes through its logit alone
    right = (margins > 0) & (labels == 0)
    # margins of 45 to 85: the cross-entropy's gradient is there, its squares are not
    scale = 60 / np.median(margins[right])
    sure = Linear(model.weights.numpy() * scale, float(model.bias) * scale)
    settings = params_with({"attack.norm": "l2", "attack.suite.n_queries": 0}).attack
    adversarial = attacked(sure, images[right], labels[right], 2, attack, 8.0, settings, seed=0)
    norms = perturbation_norms(images[right], adversarial)["l2"]
    assert (norms <= radius(8.0, "l2", N_PIXELS) * (1 + 1e-5)).all()
    sure_margins = margin(observe(sure, images[right]).logits, labels[right])
    small = (sure_margins > 45) & (sure_margins < 85)
    assert small.sum() >= 3
    assert norms[small].min() > 0.5 * radius(8.0, "l2", N_PIXELS)


def test_radius_of_l2_is_the_root_mean_square_over_the_pixels() -> None:
    assert radius(2, "linf", 224 * 224) == pytest.approx(2 / 255)
    assert radius(2, "l2", 224 * 224) == pytest.approx(2 / 255 * 224)
    everywhere = np.full((1, 1, 224, 224), 2 / 255)
    assert perturbation_norms(np.zeros_like(everywhere), everywhere)["l2"][0] == pytest.approx(radius(2, "l2", 224**2))


def test_observation_measures_what_the_purifier_changes(linear: tuple) -> None:
    class Brighter(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images + 0.1

    model, images, _, _ = linear
    bare, defended = observe(model, images), observe(Purified(Brighter(), model), images)
    assert bare.reconstruction_error is None
    assert defended.reconstruction_error == pytest.approx(np.full(40, 0.01), abs=1e-6)
    assert defended.logits == pytest.approx(observe(model, images + np.float32(0.1)).logits, abs=1e-5)
    assert math.isclose(bare.logits[0, 0], 0)
