from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from tasks.attacks.gradient.norm_ball import NormBall, radius
from tasks.attacks.predictions import predict, seed_random_defences
from tasks.attacks.sweep import SweepResult, fgsm_sweep, pgd_sweep
from tasks.params import Params, Precision
from tasks.records.perturbation_norms import check_adversarial, perturbation_norms
from tasks.records.scores import margin
from tests.art_reference import IMPLEMENTATIONS, Craft
from tests.every_target import TARGETS, build_target
from tests.nets import N_PIXELS, SIDE, ThreeClasses, linear_case

EPS = np.array([0.25, 0.5, 1, 2, 4, 8, 16])


def sweep(
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
) -> SweepResult:
    radii = np.array([radius(value, norm, images[0].size) for value in eps])
    common = (model, images, labels, radii, NormBall(norm, (0.0, 1.0)), batch_size)
    if attack == "fgsm":
        return fgsm_sweep(*common)
    return pgd_sweep(*common, n_steps, 0.25, n_restarts, seed, np.arange(len(images)), precision)


@pytest.fixture(scope="module")
def three() -> tuple[nn.Module, np.ndarray, np.ndarray]:
    """A network of three classes, images, and labels of which a fifth differs from the prediction."""
    model = ThreeClasses()
    images = np.random.default_rng(0).uniform(size=(90, 1, SIDE, SIDE)).astype(np.float32)
    labels = predict(model, images).logits.argmax(axis=1)
    labels[::5] = (labels[::5] + 1) % 3
    return model, images, labels


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_the_smallest_radius_of_a_linear_classifier_equals_the_closed_form(attack: str, norm: str) -> None:
    model, images, labels, margins = linear_case()
    found = sweep(attack, model, images, labels, norm, n_steps=40)
    needed = margins / model.dual(norm)
    radii = np.array([radius(eps, norm, N_PIXELS) for eps in EPS])
    expected = np.where(margins < 0, -1, np.searchsorted(radii, needed))
    assert found.index.tolist() == expected.tolist()
    assert set(found.index) >= {-1, 1, 2, 3}


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_adversarial_images_lie_in_the_ball_of_the_smallest_radius(
    attack: str, norm: str, three: tuple[nn.Module, np.ndarray, np.ndarray]
) -> None:
    model, images, labels = three
    found = sweep(attack, model, images, labels, norm)
    norms = perturbation_norms(images, found.adversarial)[norm]
    wrong = margin(predict(model, found.adversarial).logits, labels) < 0
    assert (wrong == (found.index < len(EPS))).all()
    assert (found.adversarial[found.index == -1] == images[found.index == -1]).all()
    for index in range(len(EPS)):
        if (at := found.index == index).any():
            size = radius(EPS[index], norm, N_PIXELS)
            check_adversarial(found.adversarial[at], norms[at], EPS[index], size, (0.0, 1.0))
    assert len(set(found.index)) > 3


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_bfloat16_gradients_without_rounding_errors_give_the_exact_radius(norm: str) -> None:
    model, images, labels, margins = linear_case()
    # powers of two are exact in bfloat16
    with torch.no_grad():
        score = model.bias + torch.from_numpy(images).flatten(1) @ model.weights
        model.weights.copy_(model.weights.sign() * 2.0 ** model.weights.abs().log2().round())
        model.bias += (score - model.bias - torch.from_numpy(images).flatten(1) @ model.weights).median()
    margins = margin(predict(model, images).logits, labels)
    radii = np.array([radius(eps, norm, N_PIXELS) for eps in EPS])
    expected = np.where(margins < 0, -1, np.searchsorted(radii, margins / model.dual(norm)))
    found = sweep("pgd", model, images, labels, norm, n_steps=40, precision="bfloat16")
    assert found.index.tolist() == expected.tolist()
    assert len(set(expected)) >= 4


@pytest.mark.parametrize("offset", [-100.0, 100.0])
def test_success_and_survival_are_decided_in_float32(offset: float) -> None:
    model, images, labels, _ = linear_case()

    class Misleading(nn.Module):
        """In bfloat16 the logit of class 1 is wrong by so much that all predictions are the same class."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, given: torch.Tensor) -> torch.Tensor:
            shift = offset * torch.is_autocast_enabled("cpu")
            logits: torch.Tensor = self.model(given) + shift * torch.tensor([0.0, 1.0])
            return logits

    true = sweep("pgd", model, images, labels, n_steps=5)
    misled = sweep("pgd", Misleading(), images, labels, n_steps=5, precision="bfloat16")
    assert misled.index.tolist() == true.index.tolist()
    assert true.n_forward == 0 < misled.n_forward


@pytest.mark.parametrize("target", TARGETS)
def test_bfloat16_gradients_are_as_strong_on_every_kind_of_target(target: str) -> None:
    model = build_target(target)
    images = np.random.default_rng(0).uniform(size=(24, 1, 32, 32)).astype(np.float32)
    labels = predict(model, images).logits.argmax(axis=1)
    radii = np.geomspace(2e-4, 0.1, 10)

    def by_precision(precision: Precision) -> SweepResult:
        seed_random_defences(model, 0)
        image_ids = np.arange(len(images))
        return pgd_sweep(
            model, images, labels, radii, NormBall("linf", (0, 1)), 8, 20, 0.25, 1, 0, image_ids, precision
        )

    exact, reduced = by_precision("float32"), by_precision("bfloat16")
    n_correct = [(each.index[:, None] > np.arange(len(radii))).sum(axis=0) for each in (exact, reduced)]
    by_chance = 4 if "noise" in target else 1
    assert (n_correct[1] <= n_correct[0] + by_chance).all()
    assert n_correct[0][0] > n_correct[0][-1] + 8
    if "noise" not in target:
        wrong = predict(model, reduced.adversarial).logits.argmax(axis=1) != labels
        assert wrong.tolist() == (reduced.index < len(radii)).tolist()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_a_sweep_is_at_least_as_strong_as_an_attack_at_every_eps(
    attack: str,
    implementation: Craft,
    three: tuple[nn.Module, np.ndarray, np.ndarray],
    params_with: Callable[..., Params],
) -> None:
    model, images, labels = three
    settings = params_with({"attack.pgd.n_steps": 20}).attack
    radii = (EPS / 255).tolist()
    crafted = implementation(model, images, labels, 3, attack, radii, settings, (0.0, 1.0), 0)
    found = sweep(attack, model, images, labels, n_steps=20, n_restarts=1)
    for index, adversarial in enumerate(crafted):
        n_correct = int((margin(predict(model, adversarial).logits, labels) >= 0).sum())
        assert (found.index > index).sum() <= n_correct + 1


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_images_with_equal_logits_count_as_their_argmax(attack: str) -> None:
    class EqualLogits(ThreeClasses):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) * 0

    images = np.random.default_rng(0).uniform(size=(6, 1, SIDE, SIDE)).astype(np.float32)
    found = sweep(attack, EqualLogits(), images, np.array([0, 1, 2, 0, 1, 2]))
    assert found.index.tolist() == [len(EPS), -1, -1, len(EPS), -1, -1]


def test_a_sweep_costs_a_fraction_of_an_attack_at_every_eps(three: tuple[nn.Module, np.ndarray, np.ndarray]) -> None:
    model, images, labels = three
    whole = 20 * len(EPS) * len(images)
    assert sweep("pgd", model, images, labels, n_steps=20).n_gradient < 0.2 * whole
    assert sweep("pgd", model, images, labels, n_steps=20, n_restarts=1).n_gradient < 0.35 * whole
    fgsm = sweep("fgsm", model, images, labels)
    assert fgsm.n_gradient == len(images)
    assert fgsm.n_forward < 3 * len(images)


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_results_do_not_depend_on_the_batch_size(attack: str, three: tuple[nn.Module, np.ndarray, np.ndarray]) -> None:
    model, images, labels = three
    whole = sweep(attack, model, images, labels, batch_size=200, n_restarts=2)
    for batch_size in (1, 7, 64):
        parts = sweep(attack, model, images, labels, batch_size=batch_size, n_restarts=2)
        assert parts.index.tolist() == whole.index.tolist()
        assert parts.adversarial == pytest.approx(whole.adversarial, abs=1e-5)


def test_restarts_depend_on_the_seed_and_break_at_least_as_many_images(
    three: tuple[nn.Module, np.ndarray, np.ndarray],
) -> None:
    model, images, labels = three
    once = sweep("pgd", model, images, labels, n_steps=1)
    often = [sweep("pgd", model, images, labels, n_steps=1, n_restarts=8, seed=seed) for seed in (0, 0, 1)]
    assert (often[0].adversarial == often[1].adversarial).all()
    assert (often[0].adversarial != often[2].adversarial).any()
    assert all((found.index <= once.index).all() for found in often)


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_a_grid_of_tiny_radii_keeps_the_last_attempt_and_a_grid_of_huge_radii_the_first(
    attack: str, three: tuple[nn.Module, np.ndarray, np.ndarray]
) -> None:
    model, images, labels = three
    correct = margin(predict(model, images).logits, labels) >= 0
    harmless = sweep(attack, model, images, labels, eps=np.array([1e-4, 1e-3]))
    assert set(harmless.index[correct]) == {2}
    changes = perturbation_norms(images, harmless.adversarial)["linf"][correct]
    assert changes == pytest.approx(np.full(correct.sum(), 1e-3 / 255), rel=0.05)
    model, images, labels, margins = linear_case()
    fatal = sweep(attack, model, images, labels, eps=np.array([60.0, 80.0]))
    assert fatal.index.tolist() == np.where(margins < 0, -1, 0).tolist()


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_non_finite_logits_raise_an_error(attack: str) -> None:
    model, images, labels, _ = linear_case()
    with torch.no_grad():
        model.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="16 of 16 images have logits that are not finite"):
        sweep(attack, model, images, labels)


def test_a_radius_below_one_that_survived_is_tried_if_asked_for() -> None:
    class Shell(nn.Module):
        """Wrong only where the mean has risen by 0.35 to 0.65 of 1/255; from there outwards the gradient is zero."""

        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1), requires_grad=False)

        def forward(self, given: torch.Tensor) -> torch.Tensor:
            rise = 255 * (given.mean(dim=(1, 2, 3)) - 0.5)
            margin = 1 - 0.1 * rise.clamp(max=0.5)
            inside = (rise > 0.35) & (rise < 0.65)
            return torch.stack([torch.where(inside, margin - 2, margin), torch.zeros_like(margin)], dim=1)

    images, labels = np.full((5, 1, SIDE, SIDE), 0.5, dtype=np.float32), np.zeros(5, dtype=np.int64)
    common = (Shell(), images, labels, EPS / 255, NormBall("linf", (0.0, 1.0)), 3, 10, 0.25, 0, 0, np.arange(5))
    # to first order the radius is 10 / 255, and the attacks in balls of 16 and more pass by
    assert (pgd_sweep(*common).index == len(EPS)).all()
    found = pgd_sweep(*common, try_smaller=True)
    assert (found.index == 1).all()
    assert (np.abs(found.adversarial - images).max(axis=(1, 2, 3)) <= 0.5 / 255 + 1e-6).all()
    assert (predict(Shell(), found.adversarial).logits.argmax(axis=1) == 1).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_trying_smaller_radii_changes_nothing_on_a_linear_classifier(norm: str) -> None:
    model, images, labels, _ = linear_case()
    radii = np.array([radius(value, norm, N_PIXELS) for value in EPS])
    common = (model, images, labels, radii, NormBall(norm, (0.0, 1.0)), 7, 10, 0.25, 1, 0, np.arange(len(images)))
    once, more = (pgd_sweep(*common, try_smaller=more) for more in (False, True))
    assert once.index.tolist() == more.index.tolist()
    assert np.array_equal(once.adversarial, more.adversarial)


def test_trying_smaller_radii_costs_one_start_for_each(three: tuple[nn.Module, np.ndarray, np.ndarray]) -> None:
    model, images, labels = three
    common = (model, images, labels, EPS / 255, NormBall("linf", (0.0, 1.0)), 16, 5, 0.25, 2, 0, np.arange(len(images)))
    once, more = (pgd_sweep(*common, try_smaller=more) for more in (False, True))
    assert (more.index <= once.index).all()
    assert once.n_gradient < more.n_gradient <= once.n_gradient + len(images) * (len(EPS) - 1) * 6
