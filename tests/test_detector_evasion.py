from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from tasks.analysis.detector_evasion import distance_from_median, evade
from tasks.attacks.gradient.norm_ball import NormBall, radius
from tasks.attacks.gradient.pgd import pgd
from tasks.params import Pgd
from tasks.records.perturbation_norms import check_adversarial, perturbation_norms
from tests.nets import N_PIXELS, SIDE, ThreeClasses, linear_case

DIRECTION = np.random.default_rng(3).normal(size=N_PIXELS).astype(np.float32)


def evade_from_random_starts(
    forward: Callable[[Tensor], tuple[Tensor, Tensor]],
    images: Tensor,
    labels: Tensor,
    size: float,
    ball: NormBall,
    settings: Pgd,
    seed: int = 0,
) -> Tensor:
    """From ``n_random_starts`` random points of each ball, or from the images if it is 0."""
    starts = [
        ball.random_starts(images, size, seed, "evasion", np.arange(len(images)), np.full(len(images), restart))
        for restart in range(settings.n_random_starts)
    ]
    return evade(forward, images, labels, size, ball, settings, starts or [images.clone()])


def logits_and_score(model: nn.Module, score: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return lambda images: (model(images), score(images))


def linear_score(images: Tensor) -> Tensor:
    return images.flatten(1) @ torch.from_numpy(DIRECTION)


def curved_score(images: Tensor) -> Tensor:
    return (images.flatten(1) @ torch.from_numpy(DIRECTION)).sin() + images.square().mean(dim=(1, 2, 3))


def settings_with(n_random_starts: int = 0, n_steps: int = 40) -> Pgd:
    return Pgd(n_steps=n_steps, relative_step_size=0.25, n_random_starts=n_random_starts)


def smallest_change_of_score(weights: np.ndarray, needed: float, size: float, norm: str) -> float:
    """Minimum of ``DIRECTION . d`` over the changes d in the ball with ``weights . d <= -needed``."""
    direction = DIRECTION.astype(np.float64)
    if norm == "linf":
        return float(linprog(direction, A_ub=weights[None], b_ub=[-needed], bounds=(-size, size)).fun)
    along = weights / np.linalg.norm(weights)
    unconstrained = -size * direction / np.linalg.norm(direction)
    if weights @ unconstrained <= -needed:
        return float(direction @ unconstrained)
    across = direction - along * (along @ direction)
    depth = needed / np.linalg.norm(weights)
    return float(-depth * (along @ direction) - np.sqrt(size**2 - depth**2) * np.linalg.norm(across))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_score_of_misclassified_images_is_near_its_minimum_for_linear_networks(norm: str) -> None:
    model, images, labels, margins = linear_case()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    size, ball = radius(2, norm, N_PIXELS), NormBall(norm, (0, 1))
    (plain,) = pgd(model, x, y, [size], ball, settings_with(), 0, np.arange(len(x)))
    evading = evade_from_random_starts(logits_and_score(model, linear_score), x, y, size, ball, settings_with())

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


@pytest.mark.parametrize("n_random_starts", [0, 2])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_adversarial_images_are_in_the_ball_and_the_value_range(norm: str, n_random_starts: int) -> None:
    model = linear_case()[0]
    rng = np.random.default_rng(1)
    images = rng.choice(np.array([0, 1 / 255, 254 / 255, 1], dtype=np.float32), (20, 1, SIDE, SIDE))
    x, y = torch.from_numpy(images), torch.from_numpy(rng.integers(0, 2, 20))
    outcomes = set()
    for eps in (0.25, 16, 128):
        size = radius(eps, norm, N_PIXELS)
        forward, settings = logits_and_score(model, linear_score), settings_with(n_random_starts, 5)
        adversarial = evade_from_random_starts(forward, x, y, size, NormBall(norm, (0, 1)), settings, seed=3)
        norms = perturbation_norms(images, adversarial.numpy())
        check_adversarial(adversarial.numpy(), norms[norm], eps, size, (0, 1))
        outcomes |= set((model(adversarial).argmax(dim=1) != y).tolist())
    assert outcomes == {False, True}
    assert (x.numpy() == images).all()


def test_the_result_for_an_image_without_adversarial_examples_is_that_of_pgd() -> None:
    model, images, labels, margins = linear_case()
    size = 0.5 / 255
    robust = margins > size * model.dual("linf")
    assert robust.sum() > 5
    x, y = torch.from_numpy(images[robust]), torch.from_numpy(labels[robust])
    ball = NormBall("linf", (0, 1))
    ends = evade_from_random_starts(logits_and_score(model, linear_score), x, y, size, ball, settings_with())
    towards = np.where(labels[robust] == 1, -1, 1)[:, None] * np.sign(model.weights.numpy())
    assert (ends - x).flatten(1).numpy() == pytest.approx(size * towards, abs=1e-6)


def test_more_restarts_never_leave_a_larger_score() -> None:
    model = ThreeClasses()
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.uniform(size=(40, 1, SIDE, SIDE)).astype(np.float32)), torch.arange(40) % 3
    found = []
    for n_random_starts in (1, 2, 5):
        forward, settings = logits_and_score(model, curved_score), settings_with(n_random_starts, 4)
        ends = evade_from_random_starts(forward, x, y, 4 / 255, NormBall("linf", (0, 1)), settings, seed=1)
        found.append(torch.where(model(ends).argmax(dim=1) != y, curved_score(ends), torch.inf))
    assert (found[1] <= found[0]).all()
    assert (found[2] <= found[1]).all()
    assert (found[2] < found[0]).any()


def test_scores_that_are_not_finite_raise_an_error() -> None:
    model, images, labels, _ = linear_case()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    forward = logits_and_score(model, lambda batch: linear_score(batch) / 0)
    with pytest.raises(ValueError, match="40 of 40 images have logits or scores that are not finite"):
        evade_from_random_starts(forward, x, y, 0.1, NormBall("l2", (0, 1)), settings_with())


def test_started_from_another_attack_it_keeps_the_successes_and_never_leaves_a_larger_score() -> None:
    model = ThreeClasses()
    rng = np.random.default_rng(2)
    x, y = torch.from_numpy(rng.uniform(size=(40, 1, SIDE, SIDE)).astype(np.float32)), torch.arange(40) % 3
    ball = NormBall("linf", (0, 1))
    (found,) = pgd(model, x, y, [2 / 255], ball, settings_with(), 0, np.arange(40))
    ends = evade(logits_and_score(model, curved_score), x, y, 2 / 255, ball, settings_with(0, 6), [found.clone()])
    before, after = (model(each).argmax(dim=1) != y for each in (found, ends))
    assert 0 < before.sum() < 40
    assert (after >= before).all()
    assert (curved_score(ends) <= curved_score(found))[before].all()
    assert (curved_score(ends) < curved_score(found))[before].any()


def largest_score(images: Tensor, directions: np.ndarray) -> Tensor:
    """Largest of two linear scores, ``(N,)``."""
    return (images.flatten(1) @ torch.from_numpy(directions.astype(np.float32)).T).amax(dim=1)


def smallest_largest_score(
    image: np.ndarray, directions: np.ndarray, weights: np.ndarray, needed: float, size: float
) -> float:
    """Minimum of the largest score over the ball, with ``weights . d <= -needed``: a linear program."""
    scores_below = np.column_stack([directions, -np.ones(len(directions))])
    program = linprog(
        np.append(np.zeros(N_PIXELS), 1.0),
        A_ub=np.vstack([scores_below, np.append(weights, 0.0)]),
        b_ub=np.append(-directions @ image.ravel().astype(np.float64), -needed),
        bounds=[(-size, size)] * N_PIXELS + [(None, None)],
    )
    return float(program.fun)


def test_the_joint_attack_is_near_the_optimum_and_evades_detectors_that_each_stop_the_attack_on_the_other() -> None:
    model, images, labels, margins = linear_case()
    images = (0.3 + 0.4 * images).astype(np.float32)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    margins = (model(x)[:, 1] - model(x)[:, 0]).numpy() * np.where(labels == 1, 1, -1)
    directions = np.random.default_rng(5).normal(size=(2, N_PIXELS))
    size, ball = radius(6, "linf", N_PIXELS), NormBall("linf", (0, 1))
    breakable = np.flatnonzero((margins > 0) & (margins < 0.7 * size * model.dual("linf")))[:12]
    assert len(breakable) == 12
    x, y = x[breakable], y[breakable]
    found = {
        name: evade(
            logits_and_score(model, partial(largest_score, directions=chosen)),
            *(x, y, size, ball, settings_with(0, 100), [x.clone()]),
        )
        for name, chosen in {"first": directions[:1], "second": directions[1:], "joint": directions}.items()
    }
    assert all((model(ends).argmax(dim=1) != y).all() for ends in found.values())
    reached = {name: largest_score(ends, directions).numpy() for name, ends in found.items()}
    clean = largest_score(x, directions).numpy()
    weights, n_only_joint = model.weights.numpy().astype(np.float64), 0
    for row, image in enumerate(breakable):
        towards = weights * (1 if labels[image] == 1 else -1)
        least = smallest_largest_score(images[image], directions, towards, float(margins[image]), size)
        assert least - 1e-3 <= reached["joint"][row]
        assert reached["joint"][row] - least < 0.1 * (clean[row] - least)
        alone = min(reached["first"][row], reached["second"][row])
        # so at some thresholds, attacks on one of the detectors are flagged by the other
        assert reached["joint"][row] < alone
        n_only_joint += reached["joint"][row] < least + 0.1 * (clean[row] - least) < alone
    assert n_only_joint > len(breakable) / 2


def test_a_path_ends_at_the_goal_and_images_that_evade_get_no_further_starts() -> None:
    model, images, labels, _ = linear_case()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    size, ball = radius(4, "linf", N_PIXELS), NormBall("linf", (0, 1))
    n_forward: list[int] = []

    def forward(batch: Tensor) -> tuple[Tensor, Tensor]:
        n_forward.append(len(batch))
        return model(batch), torch.zeros(len(batch)) + 0 * batch.sum(dim=(1, 2, 3))

    starts = [x.clone(), x.clone()]
    ends = evade(forward, x, y, size, ball, settings_with(0, 30), starts, goal=0.5, enough=0.5)
    wrong = (model(ends).argmax(dim=1) != y).numpy()
    assert 0 < wrong.sum() < len(x)
    # images leave the batch when they are misclassified; the others use all steps of both starts
    assert n_forward[0] == len(x)
    assert n_forward[30] == n_forward[31] == (~wrong).sum()
    assert len(n_forward) == 2 * 31


def test_the_distance_from_the_median_is_below_that_of_the_threshold_for_low_scores() -> None:
    excess = torch.tensor([-1e6, -1.0, 0.0, 0.5, 1.0, 2.0], requires_grad=True)
    distance = distance_from_median(excess)
    assert distance.tolist() == pytest.approx([1, 0.5, 0, 0.5, 1, 2], abs=1e-5)
    (gradient,) = torch.autograd.grad(distance.sum(), excess)
    assert gradient.isfinite().all()
    assert (gradient[:2] < 0).all()
    assert (gradient[3:] > 0).all()
