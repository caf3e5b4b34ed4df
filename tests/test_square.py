import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.attacks.square import square
from tests.nets import SIDE, ThreeClasses, linear_case


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


def test_what_it_finds_lies_in_the_ball_and_is_misclassified(three: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, images, labels = three
    adversarial, is_broken = run(model, images, labels, 0.2, 100)
    assert (adversarial - images).abs().max() <= 0.2 + 1e-6
    assert 0 <= adversarial.min() <= adversarial.max() <= 1
    assert (model(adversarial).argmax(dim=1) != labels).tolist() == is_broken.tolist()
    assert 5 < int(is_broken.sum()) < 60


def test_it_never_breaks_what_the_ball_does_not_hold() -> None:
    model, images, labels, margins = linear_case()
    radius = float(np.median(margins[margins > 0]) / model.dual("linf"))
    _, is_broken = run(model, torch.from_numpy(images), torch.from_numpy(labels), radius, 400)
    assert not is_broken[margins > model.dual("linf") * radius].any()
    # and most of what it holds: every pixel on its own is a square of side 1
    assert is_broken[margins < 0.5 * model.dual("linf") * radius].all()


def test_more_queries_break_no_less(three: tuple[nn.Module, Tensor, Tensor]) -> None:
    n_broken = [int(run(*three, 0.1, n)[1].sum()) for n in (1, 20, 300)]
    assert n_broken == sorted(n_broken)
    assert n_broken[0] < n_broken[2]


def test_it_breaks_what_arts_own_breaks(three: tuple[nn.Module, Tensor, Tensor]) -> None:
    from art.attacks.evasion import SquareAttack
    from art.estimators.classification import PyTorchClassifier

    model, images, labels = three
    estimator = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, SIDE, SIDE), 3, clip_values=(0.0, 1.0), device_type="cpu"
    )
    np.random.seed(0)
    theirs = SquareAttack(estimator, eps=0.1, max_iter=200, verbose=False).generate(images.numpy(), labels.numpy())
    broken_by_them = model(torch.from_numpy(theirs)).argmax(dim=1) != labels
    assert int(run(*three, 0.1, 200)[1].sum()) >= int(broken_by_them.sum()) - 1
    assert int(broken_by_them.sum()) > 5


def test_an_images_squares_depend_on_its_number_and_the_seed_alone(three: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, images, labels = three
    together, _ = run(model, images, labels, 0.05, 30)
    one = slice(7, 8)
    radii = torch.full((1, 1, 1, 1), 0.05)
    alone, _ = square(model, images[one], labels[one], radii, (0.0, 1.0), 30, 0, np.array([7]))
    torch.testing.assert_close(alone[0], together[7])
    assert not torch.equal(run(model, images, labels, 0.05, 30, seed=1)[0], together)
