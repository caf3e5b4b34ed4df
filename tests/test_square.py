from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.attacks.square import run_square, square
from tasks.attacks.sweep import run_sweep
from tasks.defences.randomness import as_attacked
from tests.nets import SIDE, Linear, RandomLabels, ThreeClasses, assert_adversarial, linear_batch, linear_case

EPS = np.array([0.25, 0.5, 1, 2, 4, 8, 16, 32])


def run(
    model: nn.Module, images: Tensor, labels: Tensor, radius: float, n_queries: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    radii = torch.full((len(images), 1, 1, 1), radius)
    return square(model, images, labels, radii, (0.0, 1.0), n_queries, seed, np.arange(len(images)))


@pytest.fixture(scope="module")
def three() -> tuple[nn.Module, Tensor, Tensor]:
    model = ThreeClasses()
    images = torch.from_numpy(np.random.default_rng(0).uniform(size=(60, 1, SIDE, SIDE)).astype(np.float32))
    return model, images, model(images).argmax(dim=1)


def test_adversarial_images_lie_in_the_ball_and_are_misclassified(three: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, images, labels = three
    adversarial, broken = run(model, images, labels, 0.2, 100)
    assert (adversarial - images).abs().max() <= 0.2 + 1e-6
    assert 0 <= adversarial.min() <= adversarial.max() <= 1
    assert (model(adversarial).argmax(dim=1) != labels).tolist() == broken.tolist()
    assert 5 < int(broken.sum()) < 60


def test_no_image_breaks_whose_distance_from_the_boundary_is_above_the_radius() -> None:
    model, images, labels, margins = linear_case()
    radius = float(np.median(margins[margins > 0]) / model.dual("linf"))
    _, broken = run(model, torch.from_numpy(images), torch.from_numpy(labels), radius, 400)
    assert not broken[margins > model.dual("linf") * radius].any()
    # images well within the radius break: the last squares are single pixels
    assert broken[margins < 0.5 * model.dual("linf") * radius].all()


def test_more_queries_break_at_least_as_many_images(three: tuple[nn.Module, Tensor, Tensor]) -> None:
    n_broken = [int(run(*three, 0.1, n)[1].sum()) for n in (1, 20, 300)]
    assert n_broken == sorted(n_broken)
    assert n_broken[0] < n_broken[2]


def test_at_least_as_many_images_break_as_with_art(three: tuple[nn.Module, Tensor, Tensor]) -> None:
    from art.attacks.evasion import SquareAttack
    from art.estimators.classification import PyTorchClassifier

    model, images, labels = three
    estimator = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, SIDE, SIDE), 3, clip_values=(0.0, 1.0), device_type="cpu"
    )
    np.random.seed(0)
    theirs = SquareAttack(estimator, eps=0.1, max_iter=200, verbose=False).generate(images.numpy(), labels.numpy())
    broken_by_art = model(torch.from_numpy(theirs)).argmax(dim=1) != labels
    assert int(run(*three, 0.1, 200)[1].sum()) >= int(broken_by_art.sum()) - 1
    assert int(broken_by_art.sum()) > 5


def test_the_squares_of_an_image_depend_on_its_id_and_the_seed_alone(three: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, images, labels = three
    together, _ = run(model, images, labels, 0.05, 30)
    one = slice(7, 8)
    radii = torch.full((1, 1, 1, 1), 0.05)
    alone, _ = square(model, images[one], labels[one], radii, (0.0, 1.0), 30, 0, np.array([7]))
    torch.testing.assert_close(alone[0], together[7])
    assert not torch.equal(run(model, images, labels, 0.05, 30, seed=1)[0], together)


@pytest.mark.parametrize("begin", [0, 3, 7])
def test_the_search_over_radii_gives_the_same_result_from_any_first_radius(begin: int) -> None:
    batch, expected = linear_batch("linf", EPS)
    found = run_square(batch, np.where(expected < 0, -1, begin), 300)
    assert (found.index >= expected).all()
    assert ((found.index - expected)[(expected >= 0) & (expected < len(EPS) - 1)] <= 1).all()
    assert ((found.index == -1) == (expected == -1)).all()
    assert_adversarial(batch, found)


def test_only_the_given_rows_are_attacked() -> None:
    batch, expected = linear_batch("linf", EPS)
    rows = np.arange(0, 40, 3)
    some, every = (run_square(batch, np.where(expected < 0, -1, 3), 100, chosen) for chosen in (rows, None))
    assert some.index[rows].tolist() == every.index[rows].tolist()
    others = np.setdiff1d(np.arange(40), rows)
    assert set(some.index[others & (expected[others] >= 0)]) <= {-1, len(EPS)}
    assert (some.index[others] == np.where(expected[others] < 0, -1, len(EPS))).all()
    assert_adversarial(batch, some)


def test_one_wrong_draw_of_a_random_model_does_not_count_as_a_success() -> None:
    batch, expected = linear_batch("linf", EPS)
    one_radius = replace(batch, model=as_attacked(RandomLabels(batch.model)), radii=batch.radii[:1])
    robust = expected > 0
    assert robust.sum() > 25
    found_by_sweep = run_sweep(one_radius, 20, 0.25, 1).index
    found_by_square = run_square(one_radius, np.zeros(40, dtype=int), 40).index
    assert (found_by_sweep[robust] == 1).mean() > 0.9
    assert (found_by_square[robust] == 1).mean() > 0.9

    # by single predictions, nearly all images count as broken
    unconfirmed = run_sweep(replace(one_radius, model=RandomLabels(batch.model)), 20, 0.25, 1).index
    assert (unconfirmed[robust] == 1).mean() < 0.2


def test_the_channels_of_colours_change_in_directions_of_their_own() -> None:
    """A change of all channels in one direction never moves red minus blue."""
    weights = np.zeros((3, SIDE, SIDE))
    weights[0], weights[2] = 1.0, -1.0
    model, images = Linear(weights.ravel(), -0.5), torch.full((4, 3, SIDE, SIDE), 0.5)
    _, broken = run(model, images, model(images).argmax(dim=1), 0.2, 100)
    assert broken.all()
