from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from tasks.analysis.detector_evasion import evade
from tasks.attacks.gradient.balls import Balls, radius
from tasks.attacks.gradient.descent import pgd, starts
from tasks.params import Pgd
from tasks.records.perturbation_norms import check_adversarial, perturbation_norms
from tests.nets import N_PIXELS, SIDE, ThreeClasses, linear_case

DIRECTION = np.random.default_rng(3).normal(size=N_PIXELS).astype(np.float32)


def evade_randomly(
    look: Callable[[Tensor], tuple[Tensor, Tensor]],
    images: Tensor,
    labels: Tensor,
    size: float,
    balls: Balls,
    settings: Pgd,
    seed: int,
    rows: np.ndarray,
) -> Tensor:
    return evade(look, images, labels, size, balls, settings, starts(images, size, balls, settings, seed, rows))


def both(model: nn.Module, score: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return lambda images: (model(images), score(images))


def linear_score(images: Tensor) -> Tensor:
    return images.flatten(1) @ torch.from_numpy(DIRECTION)


def curved_score(images: Tensor) -> Tensor:
    return (images.flatten(1) @ torch.from_numpy(DIRECTION)).sin() + images.square().mean(dim=(1, 2, 3))


def numbers(n_restarts: int = 0, n_steps: int = 40) -> Pgd:
    return Pgd(n_steps=n_steps, relative_step=0.25, n_restarts=n_restarts)


def smallest_change_of_score(weights: np.ndarray, needed: float, size: float, norm: str) -> float:
    """The least that ``DIRECTION . d`` can be for a change d in the ball with ``weights . d <= -needed``."""
    direction = DIRECTION.astype(np.float64)
    if norm == "linf":
        return float(linprog(direction, A_ub=weights[None], b_ub=[-needed], bounds=(-size, size)).fun)
    along = weights / np.linalg.norm(weights)
    freely = -size * direction / np.linalg.norm(direction)
    if weights @ freely <= -needed:
        return float(direction @ freely)
    across = direction - along * (along @ direction)
    depth = needed / np.linalg.norm(weights)
    return float(-depth * (along @ direction) - np.sqrt(size**2 - depth**2) * np.linalg.norm(across))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_linear_networks_the_score_comes_near_the_least_at_which_images_are_misclassified(norm: str) -> None:
    model, images, labels, margins = linear_case()
    x, y, size, balls = (
        torch.from_numpy(images),
        torch.from_numpy(labels),
        radius(2, norm, N_PIXELS),
        Balls(norm, (0, 1)),
    )
    (plain,) = pgd(model, x, y, [size], balls, numbers(), 0, np.arange(len(x)))
    evading = evade_randomly(both(model, linear_score), x, y, size, balls, numbers(), 0, np.arange(len(x)))

    breakable = margins < 0.95 * size * model.dual(norm)
    assert 10 < breakable.sum() < len(x)
    wrong = (model(evading).argmax(dim=1) != y).numpy()
    assert wrong[breakable].all()
    clean, by_pgd, by_evasion = (linear_score(each).numpy() for each in (x, plain, evading))
    weights = model.weights.numpy().astype(np.float64)
    for row in np.flatnonzero(breakable):
        towards = weights * (1 if labels[row] == 1 else -1)
        least = clean[row] + smallest_change_of_score(towards, float(margins[row]), size, norm)
        assert least - 1e-3 <= by_evasion[row] < by_pgd[row]
        assert by_evasion[row] - least < 0.03 * (by_pgd[row] - least)


@pytest.mark.parametrize("n_restarts", [0, 2])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_images_stay_in_the_ball_and_the_range_whether_they_break_or_not(norm: str, n_restarts: int) -> None:
    model = linear_case()[0]
    rng = np.random.default_rng(1)
    images = rng.choice(np.array([0, 1 / 255, 254 / 255, 1], dtype=np.float32), (20, 1, SIDE, SIDE))
    x, y = torch.from_numpy(images), torch.from_numpy(rng.integers(0, 2, 20))
    fates = set()
    for eps in (0.25, 16, 128):
        size = radius(eps, norm, N_PIXELS)
        moved = evade_randomly(
            both(model, linear_score), x, y, size, Balls(norm, (0, 1)), numbers(n_restarts, 5), 3, np.arange(20)
        )
        norms = perturbation_norms(images, moved.numpy())
        check_adversarial(moved.numpy(), norms[norm], eps, size, (0, 1))
        fates |= set((model(moved).argmax(dim=1) != y).tolist())
    assert fates == {False, True}
    assert (x.numpy() == images).all()


def test_an_image_that_cannot_be_broken_ends_where_pgd_ends() -> None:
    model, images, labels, margins = linear_case()
    size = 0.5 / 255
    holds = margins > size * model.dual("linf")
    assert holds.sum() > 5
    x, y = torch.from_numpy(images[holds]), torch.from_numpy(labels[holds])
    ends = evade_randomly(both(model, linear_score), x, y, size, Balls("linf", (0, 1)), numbers(), 0, np.arange(len(x)))
    towards = np.where(labels[holds] == 1, -1, 1)[:, None] * np.sign(model.weights.numpy())
    assert (ends - x).flatten(1).numpy() == pytest.approx(size * towards, abs=1e-6)


def test_more_restarts_break_no_less_and_leave_no_larger_score() -> None:
    model = ThreeClasses()
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.uniform(size=(40, 1, SIDE, SIDE)).astype(np.float32)), torch.arange(40) % 3
    found = []
    for n_restarts in (1, 2, 5):
        ends = evade_randomly(
            both(model, curved_score), x, y, 4 / 255, Balls("linf", (0, 1)), numbers(n_restarts, 4), 1, np.arange(40)
        )
        found.append(torch.where(model(ends).argmax(dim=1) != y, curved_score(ends), torch.inf))
    assert (found[1] <= found[0]).all()
    assert (found[2] <= found[1]).all()
    assert (found[2] < found[0]).any()


def test_scores_that_are_not_finite_are_an_error() -> None:
    model, images, labels, _ = linear_case()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    with pytest.raises(ValueError, match="40 of 40 images have logits or scores that are not finite"):
        evade_randomly(
            both(model, lambda moved: linear_score(moved) / 0),
            x,
            y,
            0.1,
            Balls("l2", (0, 1)),
            numbers(),
            0,
            np.arange(40),
        )


def test_from_where_another_attack_ended_it_breaks_no_less_and_leaves_no_larger_score() -> None:
    model = ThreeClasses()
    rng = np.random.default_rng(2)
    x, y = torch.from_numpy(rng.uniform(size=(40, 1, SIDE, SIDE)).astype(np.float32)), torch.arange(40) % 3
    balls = Balls("linf", (0, 1))
    (found,) = pgd(model, x, y, [2 / 255], balls, numbers(), 0, np.arange(40))
    ends = evade(both(model, curved_score), x, y, 2 / 255, balls, numbers(0, 6), [found.clone()])
    before, after = (model(each).argmax(dim=1) != y for each in (found, ends))
    assert 0 < before.sum() < 40
    assert (after >= before).all()
    assert (curved_score(ends) <= curved_score(found))[before].all()
    assert (curved_score(ends) < curved_score(found))[before].any()
