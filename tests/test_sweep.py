from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from tasks.attacks.campaign import seed_random_defences
from tasks.attacks.crafting import craft, observe
from tasks.attacks.gradient.balls import Balls, radius
from tasks.attacks.sweep import Sweep, fgsm_sweep, pgd_sweep
from tasks.params import Params, Precision
from tasks.records.perturbation_norms import check_adversarial, perturbation_norms
from tasks.records.scores import margin
from tests.every_target import TARGETS, build_target
from tests.nets import N_PIXELS, SIDE, ThreeClasses, linear_case

EPS = np.array([0.25, 0.5, 1, 2, 4, 8, 16])


def swept(
    attack: str,
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    norm: str = "linf",
    batch_size: int = 16,
    n_steps: int = 10,
    n_restarts: int = 0,
    seed: int = 0,
    eps: np.ndarray = EPS,
    precision: Precision = "float32",
) -> Sweep:
    radii = np.array([radius(value, norm, images[0].size) for value in eps])
    common = (model, images, labels, radii, Balls(norm, (0.0, 1.0)), batch_size)
    if attack == "fgsm":
        return fgsm_sweep(*common)
    return pgd_sweep(*common, n_steps, 0.25, n_restarts, seed, np.arange(len(images)), precision)


@pytest.fixture(scope="module")
def three() -> tuple[nn.Module, np.ndarray, np.ndarray]:
    """A network of three classes, images, and labels of which a fifth is not what it predicts."""
    model = ThreeClasses()
    images = np.random.default_rng(0).uniform(size=(90, 1, SIDE, SIDE)).astype(np.float32)
    labels = observe(model, images).logits.argmax(axis=1)
    labels[::5] = (labels[::5] + 1) % 3
    return model, images, labels


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_on_a_linear_classifier_the_smallest_radius_is_what_the_hand_computes(attack: str, norm: str) -> None:
    model, images, labels, margins = linear_case()
    found = swept(attack, model, images, labels, norm, n_steps=40)
    needed = margins / model.dual(norm)
    radii = np.array([radius(eps, norm, N_PIXELS) for eps in EPS])
    expected = np.where(margins < 0, -1, np.searchsorted(radii, needed))
    assert found.broken_at.tolist() == expected.tolist()
    assert set(found.broken_at) >= {-1, 1, 2, 3}


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_breaks_an_image_lies_in_the_ball_that_it_stands_for(
    attack: str, norm: str, three: tuple[nn.Module, np.ndarray, np.ndarray]
) -> None:
    model, images, labels = three
    found = swept(attack, model, images, labels, norm)
    norms = perturbation_norms(images, found.adversarial)[norm]
    wrong = margin(observe(model, found.adversarial).logits, labels) < 0
    assert (wrong == (found.broken_at < len(EPS))).all()
    assert (found.adversarial[found.broken_at == -1] == images[found.broken_at == -1]).all()
    for index in range(len(EPS)):
        if (at := found.broken_at == index).any():
            size = radius(EPS[index], norm, N_PIXELS)
            check_adversarial(found.adversarial[at], norms[at], EPS[index], size, (0.0, 1.0))
    assert len(set(found.broken_at)) > 3


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_with_gradients_of_bfloat16_the_radius_is_still_exact_where_the_gradient_is(norm: str) -> None:
    model, images, labels, margins = linear_case()
    # powers of two have no rounding
    with torch.no_grad():
        score = model.bias + torch.from_numpy(images).flatten(1) @ model.weights
        model.weights.copy_(model.weights.sign() * 2.0 ** model.weights.abs().log2().round())
        model.bias += (score - model.bias - torch.from_numpy(images).flatten(1) @ model.weights).median()
    margins = margin(observe(model, images).logits, labels)
    radii = np.array([radius(eps, norm, N_PIXELS) for eps in EPS])
    expected = np.where(margins < 0, -1, np.searchsorted(radii, margins / model.dual(norm)))
    found = swept("pgd", model, images, labels, norm, n_steps=40, precision="bfloat16")
    assert found.broken_at.tolist() == expected.tolist()
    assert len(set(expected)) >= 4


@pytest.mark.parametrize("offset", [-100.0, 100.0])
def test_what_bfloat16_takes_for_broken_or_for_safe_is_not_believed(offset: float) -> None:
    model, images, labels, _ = linear_case()

    class Misleading(nn.Module):
        """In lower precision the logit of class 1 is far off, so that all images are of one class."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, given: torch.Tensor) -> torch.Tensor:
            shift = offset * torch.is_autocast_enabled("cpu")
            logits: torch.Tensor = self.model(given) + shift * torch.tensor([0.0, 1.0])
            return logits

    true = swept("pgd", model, images, labels, n_steps=5)
    misled = swept("pgd", Misleading(), images, labels, n_steps=5, precision="bfloat16")
    assert misled.broken_at.tolist() == true.broken_at.tolist()
    assert true.n_forward == 0 < misled.n_forward


@pytest.mark.parametrize("target", TARGETS)
def test_gradients_of_bfloat16_break_as_much_on_every_kind_of_target(target: str) -> None:
    model = build_target(target)
    images = np.random.default_rng(0).uniform(size=(24, 1, 32, 32)).astype(np.float32)
    labels = observe(model, images).logits.argmax(axis=1)
    radii = np.geomspace(2e-4, 0.1, 10)

    def found(precision: Precision) -> Sweep:
        seed_random_defences(model, 0)
        rows = np.arange(len(images))
        return pgd_sweep(model, images, labels, radii, Balls("linf", (0, 1)), 8, 20, 0.25, 1, 0, rows, precision)

    exact, reduced = found("float32"), found("bfloat16")
    n_correct = [(sweep.broken_at[:, None] > np.arange(len(radii))).sum(axis=0) for sweep in (exact, reduced)]
    by_luck = 4 if "noise" in target else 1
    assert (n_correct[1] <= n_correct[0] + by_luck).all()
    assert n_correct[0][0] > n_correct[0][-1] + 8
    if "noise" not in target:
        wrong = observe(model, reduced.adversarial).logits.argmax(axis=1) != labels
        assert wrong.tolist() == (reduced.broken_at < len(radii)).tolist()


@pytest.mark.parametrize("mode", ["fast", "reference"])
@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_a_sweep_is_no_weaker_than_an_attack_at_every_eps_on_every_image(
    attack: str, mode: str, three: tuple[nn.Module, np.ndarray, np.ndarray], params_with: Callable[..., Params]
) -> None:
    model, images, labels = three
    settings = params_with({"attack.mode": mode, "attack.eps": EPS.tolist(), "attack.pgd.n_steps": 20}).attack
    crafted = craft(model, images, labels, 3, attack, settings, (0.0, 1.0), 0, np.arange(len(images)))
    found = swept(attack, model, images, labels, n_steps=20, n_restarts=1)
    for index, adversarial in enumerate(crafted):
        n_correct = int((margin(observe(model, adversarial).logits, labels) >= 0).sum())
        assert (found.broken_at > index).sum() <= n_correct + 1


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_undecided_images_are_right_or_wrong_as_a_prediction_is(attack: str) -> None:
    class Undecided(ThreeClasses):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) * 0

    images = np.random.default_rng(0).uniform(size=(6, 1, SIDE, SIDE)).astype(np.float32)
    found = swept(attack, Undecided(), images, np.array([0, 1, 2, 0, 1, 2]))
    assert found.broken_at.tolist() == [len(EPS), -1, -1, len(EPS), -1, -1]


def test_a_sweep_costs_a_fraction_of_an_attack_at_every_eps(three: tuple[nn.Module, np.ndarray, np.ndarray]) -> None:
    model, images, labels = three
    whole = 20 * len(EPS) * len(images)
    assert swept("pgd", model, images, labels, n_steps=20).n_gradient < 0.2 * whole
    assert swept("pgd", model, images, labels, n_steps=20, n_restarts=1).n_gradient < 0.35 * whole
    fgsm = swept("fgsm", model, images, labels)
    assert fgsm.n_gradient == len(images)
    assert fgsm.n_forward < 3 * len(images)


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_results_do_not_depend_on_the_size_of_batches(
    attack: str, three: tuple[nn.Module, np.ndarray, np.ndarray]
) -> None:
    model, images, labels = three
    whole = swept(attack, model, images, labels, batch_size=200, n_restarts=2)
    for batch_size in (1, 7, 64):
        parts = swept(attack, model, images, labels, batch_size=batch_size, n_restarts=2)
        assert parts.broken_at.tolist() == whole.broken_at.tolist()
        assert parts.adversarial == pytest.approx(whole.adversarial, abs=1e-5)


def test_restarts_follow_the_seed_and_break_no_less(three: tuple[nn.Module, np.ndarray, np.ndarray]) -> None:
    model, images, labels = three
    once = swept("pgd", model, images, labels, n_steps=1)
    often = [swept("pgd", model, images, labels, n_steps=1, n_restarts=8, seed=seed) for seed in (0, 0, 1)]
    assert (often[0].adversarial == often[1].adversarial).all()
    assert (often[0].adversarial != often[2].adversarial).any()
    assert all((found.broken_at <= once.broken_at).all() for found in often)


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_a_grid_that_breaks_nothing_keeps_the_last_attempt_and_one_that_breaks_all_the_first(
    attack: str, three: tuple[nn.Module, np.ndarray, np.ndarray]
) -> None:
    model, images, labels = three
    right = margin(observe(model, images).logits, labels) >= 0
    harmless = swept(attack, model, images, labels, eps=np.array([1e-4, 1e-3]))
    assert set(harmless.broken_at[right]) == {2}
    changes = perturbation_norms(images, harmless.adversarial)["linf"][right]
    assert changes == pytest.approx(np.full(right.sum(), 1e-3 / 255), rel=0.05)
    model, images, labels, margins = linear_case()
    fatal = swept(attack, model, images, labels, eps=np.array([60.0, 80.0]))
    assert fatal.broken_at.tolist() == np.where(margins < 0, -1, 0).tolist()


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_logits_that_are_not_finite_are_an_error(attack: str) -> None:
    model, images, labels, _ = linear_case()
    with torch.no_grad():
        model.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="16 of 16 images have logits that are not finite"):
        swept(attack, model, images, labels)
