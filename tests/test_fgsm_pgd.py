from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.attacks.gradient.norm_ball import NormBall, radius
from tasks.attacks.gradient.pgd import pgd
from tasks.attacks.predictions import predict, seed_random_defences
from tasks.defences.purified import Purified
from tasks.models.autoencoder import ARCHITECTURES
from tasks.params import Attack, ImageTransform, Params
from tasks.records.perturbation_norms import check_adversarial, perturbation_norms
from tasks.records.scores import margin
from tests.art_reference import IMPLEMENTATIONS, Craft, craft, craft_by_art
from tests.every_target import TARGETS, TRANSFORMS, build_target
from tests.nets import N_PIXELS, SIDE, Linear, ThreeClasses, linear_case

by_both = pytest.mark.parametrize("implementation", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)


def attacked(
    implementation: Craft,
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    attack: str,
    eps: float,
    settings: Attack,
    seed: int = 0,
) -> np.ndarray:
    """Adversarial examples at one eps."""
    radii = [radius(eps, settings.norm, images[0].size)]
    (adversarial,) = implementation(model, images, labels, n_classes, attack, radii, settings, (0.0, 1.0), seed)
    return adversarial


def margins_of(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return margin(predict(model, images).logits, labels)


@pytest.fixture
def linear() -> tuple[Linear, np.ndarray, np.ndarray, np.ndarray]:
    return linear_case()


@by_both
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_margins_on_a_linear_classifier_equal_the_closed_form(
    implementation: Craft, attack: str, norm: str, linear: tuple, params_with: Callable[..., Params]
) -> None:
    model, images, labels, margins = linear
    settings = params_with({"attack.norm": norm, "attack.batch_size": 16, "attack.pgd.n_steps": 40}).attack
    n_correct = []
    for eps in (0.5, 2.0, 8.0):
        expected = margins - radius(eps, norm, N_PIXELS) * model.dual(norm)
        adversarial = attacked(implementation, model, images, labels, 2, attack, eps, settings)
        observed = margins_of(model, adversarial, labels)
        assert observed == pytest.approx(expected, abs=2e-4)
        n_correct.append(int((expected > 0).sum()))
        assert (observed > 0).sum() == n_correct[-1]
    assert 36 > n_correct[0] > n_correct[1] > n_correct[2]


@by_both
@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_attacks_use_true_labels_and_do_not_correct_a_misclassified_image(
    attack: str, implementation: Craft, linear: tuple, params_with: Callable[..., Params]
) -> None:
    model, images, labels, margins = linear
    wrong = margins < 0
    assert wrong.sum() == 4
    adversarial = attacked(implementation, model, images, labels, 2, attack, 4.0, params_with().attack)
    assert (margins_of(model, adversarial, labels)[wrong] < margins[wrong]).all()


@by_both
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_perturbations_of_images_at_the_border_of_the_value_range_stay_in_the_ball_and_the_range(
    implementation: Craft, attack: str, norm: str, linear: tuple, params_with: Callable[..., Params]
) -> None:
    model = linear[0]
    rng = np.random.default_rng(1)
    images = rng.choice(np.array([0, 1 / 255, 254 / 255, 1], dtype=np.float32), (20, 1, SIDE, SIDE))
    labels = rng.integers(0, 2, 20)
    overrides = {"attack.norm": norm, "attack.pgd.n_random_starts": 2}
    settings = params_with(overrides).attack
    for eps in (0.25, 2.0, 128.0):
        adversarial = attacked(implementation, model, images, labels, 2, attack, eps, settings, seed=3)
        assert adversarial.dtype == np.float32
        assert adversarial.shape == images.shape
        norms = perturbation_norms(images, adversarial)
        check_adversarial(adversarial, norms[norm], eps, radius(eps, norm, N_PIXELS), (0.0, 1.0))
        assert (norms[norm] > 0).all()


def test_random_starts_depend_on_the_seed_and_the_image_alone(
    linear: tuple, params_with: Callable[..., Params]
) -> None:
    model, images, labels, _ = linear
    size = 0.25 / 255

    def after_one_small_step(seed: int, n_random_starts: int, rows: np.ndarray) -> np.ndarray:
        overrides = {"n_steps": 1, "relative_step_size": 0.1, "n_random_starts": n_random_starts}
        settings = params_with({f"attack.pgd.{name}": value for name, value in overrides.items()}).attack.pgd
        batch, ball = (torch.from_numpy(of[rows]) for of in (images, labels)), NormBall("linf", (0.0, 1.0))
        (adversarial,) = pgd(model, *batch, [size], ball, settings, seed, rows)
        return adversarial.numpy()

    everything, some = np.arange(40), np.array([3, 17, 38])
    first = after_one_small_step(5, 1, everything)
    np.random.seed(99)
    torch.manual_seed(99)
    assert (first == after_one_small_step(5, 1, everything)).all()
    assert first[some] == pytest.approx(after_one_small_step(5, 1, some), abs=1e-6)
    assert np.abs(first - after_one_small_step(6, 1, everything)).max() > 0.5 * size
    # without a random start, one small step of PGD is a small FGSM
    still = after_one_small_step(5, 0, everything)
    assert np.abs(still - images) == pytest.approx(np.full(images.shape, 0.1 * size), abs=1e-6)


def test_random_starts_of_art_depend_on_the_seed_alone(linear: tuple, params_with: Callable[..., Params]) -> None:
    model, images, labels, _ = linear
    settings = params_with({"attack.pgd.n_steps": 1}).attack

    def by_seed(seed: int) -> np.ndarray:
        return attacked(craft_by_art, model, images, labels, 2, "pgd", 4.0, settings, seed)

    first = by_seed(5)
    np.random.seed(99)
    assert (first == by_seed(5)).all()
    assert (first != by_seed(6)).any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
@pytest.mark.parametrize("target", TARGETS)
def test_adversarial_examples_equal_those_of_art_on_every_kind_of_target(
    target: str, attack: str, norm: str, params_with: Callable[..., Params]
) -> None:
    model = build_target(target)
    images = np.random.default_rng(0).uniform(size=(12, 1, 32, 32)).astype(np.float32)
    labels = np.arange(12) % 3
    overrides = {"attack.norm": norm, "attack.pgd.n_random_starts": 0}
    settings = params_with(overrides).attack
    radii = [radius(eps, norm, images[0].size) for eps in (0.5, 2, 8)]

    def at_every_eps(implementation: Craft) -> list[np.ndarray]:
        seed_random_defences(model, 0)
        return list(implementation(model, images, labels, 3, attack, radii, settings, (0.0, 1.0), 0))

    def margins(of: np.ndarray) -> np.ndarray:
        seed_random_defences(model, 1)
        return margins_of(model, of, labels)

    ours, arts = at_every_eps(craft), at_every_eps(craft_by_art)
    # rounding may change the sign of a gradient near zero; ART adds 1e-7 to the norm that it divides by
    assert np.abs(ours[0] - arts[0]).mean() < 0.005 * 0.5 / 255
    # random defences draw other samples from one eps to the next; JPEG's rounding amplifies differences in the seventh
    # digit (this attack alone changes by 0.08 if noise of 1e-7 is added to the images)
    tolerance = 0.2 if "noise" in target else 0.1 if "jpeg" in target else 0.05
    for our, art in zip(ours, arts, strict=True):
        gained = margins(images) - margins(art)
        assert gained.min() > 0
        assert margins(our) == pytest.approx(margins(art), abs=tolerance * gained.max())


def test_the_comparison_with_art_covers_every_kind_of_purifier() -> None:
    known = {kind.model_fields["kind"].annotation.__args__[0] for kind in get_args(get_args(ImageTransform)[0])}
    assert set(TRANSFORMS) == known
    assert set(TARGETS) >= known | set(ARCHITECTURES)


@by_both
def test_more_restarts_never_leave_a_larger_margin(implementation: Craft, params_with: Callable[..., Params]) -> None:
    model = ThreeClasses()
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(30, 1, SIDE, SIDE)).astype(np.float32)
    labels = rng.integers(0, 3, 30)
    margins = []
    for n_random_starts in (1, 2, 5):
        settings = params_with({"attack.pgd.n_steps": 2, "attack.pgd.n_random_starts": n_random_starts}).attack
        adversarial = attacked(implementation, model, images, labels, 3, "pgd", 8.0, settings, seed=1)
        margins.append(margins_of(model, adversarial, labels))
    assert (margins[1] <= margins[0] + 1e-5).all()
    assert (margins[2] <= margins[1] + 1e-5).all()
    assert (margins[2] < margins[0] - 1e-3).any()


@by_both
def test_pgd_is_at_least_as_strong_as_fgsm_on_three_classes(
    implementation: Craft, params_with: Callable[..., Params]
) -> None:
    model = ThreeClasses()
    images = np.random.default_rng(0).uniform(size=(60, 1, SIDE, SIDE)).astype(np.float32)
    labels = predict(model, images).logits.argmax(axis=1)
    n_correct = {}
    for attack in ("fgsm", "pgd"):
        adversarial = attacked(implementation, model, images, labels, 3, attack, 4.0, params_with().attack, seed=1)
        n_correct[attack] = (predict(model, adversarial).logits.argmax(axis=1) == labels).sum()
    assert n_correct["pgd"] <= n_correct["fgsm"] < 60


@by_both
def test_an_adaptive_attack_follows_the_gradient_through_the_purifier(
    implementation: Craft, linear: tuple, params_with: Callable[..., Params]
) -> None:
    class Inverted(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return 1 - images

    model, images, labels, _ = linear
    settings = params_with().attack
    adaptive, transfer = (
        attacked(implementation, target, images, labels, 2, "fgsm", 4.0, settings)
        for target in (Purified(Inverted(), model), model)
    )
    assert np.sign(adaptive - images) == pytest.approx(-np.sign(transfer - images))


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_l2_examples_stay_in_the_ball_where_the_gradient_nearly_vanishes(
    attack: str, linear: tuple, params_with: Callable[..., Params]
) -> None:
    model, images, labels, margins = linear
    # for class 1 the gradient itself vanishes, since it comes through the logit of that class alone
    correct = (margins > 0) & (labels == 0)
    # with margins of 45 to 85 the gradient of the cross-entropy is above zero, but its square underflows
    scale = 60 / np.median(margins[correct])
    confident = Linear(model.weights.numpy() * scale, float(model.bias) * scale)
    settings = params_with({"attack.norm": "l2"}).attack
    adversarial = attacked(craft, confident, images[correct], labels[correct], 2, attack, 8.0, settings)
    norms = perturbation_norms(images[correct], adversarial)["l2"]
    assert (norms <= radius(8.0, "l2", N_PIXELS) * (1 + 1e-5)).all()
    confident_margins = margins_of(confident, images[correct], labels[correct])
    small = (confident_margins > 45) & (confident_margins < 85)
    assert small.sum() >= 3
    assert norms[small].min() > 0.5 * radius(8.0, "l2", N_PIXELS)


def test_the_eps_of_an_l2_ball_is_the_root_mean_square_over_the_pixels() -> None:
    assert radius(2, "linf", 224 * 224) == pytest.approx(2 / 255)
    assert radius(2, "l2", 224 * 224) == pytest.approx(2 / 255 * 224)
    everywhere = np.full((1, 1, 224, 224), 2 / 255)
    assert perturbation_norms(np.zeros_like(everywhere), everywhere)["l2"][0] == pytest.approx(radius(2, "l2", 224**2))
