import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.attacks.apgd import Loss, _checkpoints, apgd, cross_entropy, dlr, negative_margin
from tasks.attacks.deepfool import deepfool
from tasks.attacks.gradient.balls import Balls
from tests.nets import SIDE, ThreeClasses, linear_case

LOSSES = {"cross_entropy": cross_entropy, "margin": negative_margin, "dlr": dlr}


def attacked(
    model: nn.Module, images: Tensor, labels: Tensor, radius: float, loss: Loss, norm: str = "linf", n_steps: int = 20
) -> tuple[Tensor, Tensor]:
    balls, radii = Balls(norm, (0.0, 1.0)), torch.full((len(images), 1, 1, 1), radius)
    rows = np.arange(len(images))
    starts = balls.random_starts(images, radii, 0, rows, np.zeros_like(rows))
    return apgd(model, images, labels, radii, balls, loss, n_steps, starts)


@pytest.fixture(scope="module")
def three() -> tuple[nn.Module, Tensor, Tensor]:
    """A network of three classes, images, and what it predicts of them."""
    model = ThreeClasses()
    images = torch.from_numpy(np.random.default_rng(0).uniform(size=(90, 1, SIDE, SIDE)).astype(np.float32))
    return model, images, model(images).argmax(dim=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_on_a_linear_classifier_it_breaks_exactly_what_the_ball_can_break(loss: str, norm: str) -> None:
    model, images, labels, margins = linear_case()
    radius = float(np.median(margins[margins > 0]) / model.dual(norm))
    given = torch.from_numpy(images), torch.from_numpy(labels)
    adversarial, is_broken = attacked(model, *given, radius, LOSSES[loss], norm)
    clear = np.abs(margins / model.dual(norm) - radius) > 0.02 * radius
    assert (is_broken.numpy() == (margins < model.dual(norm) * radius))[clear].all()
    assert (model(adversarial).argmax(dim=1) != given[1]).tolist() == is_broken.tolist()
    changes = (adversarial - given[0]).flatten(1)
    sizes = changes.abs().amax(dim=1) if norm == "linf" else changes.norm(dim=1)
    assert sizes.max() <= radius + 1e-5
    assert 0 <= adversarial.min() <= adversarial.max() <= 1


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_breaks_what_arts_own_breaks(loss: str, three: tuple[nn.Module, Tensor, Tensor]) -> None:
    from art.attacks.evasion import AutoProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    model, images, labels = three
    radius = 0.08
    estimator = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, SIDE, SIDE), 3, clip_values=(0.0, 1.0), device_type="cpu"
    )
    np.random.seed(0)
    theirs = AutoProjectedGradientDescent(
        estimator,
        eps=radius,
        eps_step=2 * radius,
        max_iter=30,
        nb_random_init=3,
        loss_type="cross_entropy",
        verbose=False,
    ).generate(images.numpy(), labels.numpy())
    broken_by_them = model(torch.from_numpy(theirs)).argmax(dim=1) != labels
    _, is_broken = attacked(model, images, labels, radius, LOSSES[loss], n_steps=30)
    assert 10 < int(broken_by_them.sum()) < 80
    assert int(is_broken.sum()) >= int(broken_by_them.sum()) - 1


def test_radii_are_those_of_the_images(three: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, images, labels = three
    radii = torch.linspace(0.001, 0.01, len(images))[:, None, None, None]
    balls = Balls("linf", (0.0, 1.0))
    adversarial, _ = apgd(model, images, labels, radii, balls, negative_margin, 10, images)
    changes = (adversarial - images).abs().amax(dim=(1, 2, 3))
    assert (changes <= radii.flatten() + 1e-6).all()
    assert float(changes[-1]) == pytest.approx(0.01, rel=1e-3)


def test_results_do_not_depend_on_which_other_images_fall(three: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, images, labels = three
    together, broken = attacked(model, images, labels, 0.08, negative_margin)
    assert 5 < int(broken.sum()) < 85
    balls, radii = Balls("linf", (0.0, 1.0)), torch.full((1, 1, 1, 1), 0.08)
    for row in range(0, 90, 15):
        one = images[row : row + 1], labels[row : row + 1]
        start = balls.random_starts(one[0], radii, 0, np.array([row]), np.array([0]))
        alone, is_broken = apgd(model, *one, radii, balls, negative_margin, 20, start)
        assert bool(is_broken) == bool(broken[row])
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)


def test_more_steps_break_no_less(three: tuple[nn.Module, Tensor, Tensor]) -> None:
    n_broken = [int(attacked(*three, 0.08, negative_margin, n_steps=n)[1].sum()) for n in (0, 1, 40)]
    assert n_broken == sorted(n_broken)
    assert n_broken[0] < n_broken[2]


def test_checkpoints_come_closer_to_each_other_as_in_the_paper() -> None:
    assert _checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]


def test_the_difference_of_logits_ratios_does_not_change_with_the_scale_of_logits() -> None:
    logits, labels = torch.tensor([[3.0, 1.0, 0.5], [0.2, 0.1, 0.9]]), torch.tensor([0, 1])
    expected = [(1.0 - 3.0) / (3.0 - 0.5), (0.9 - 0.1) / (0.9 - 0.1)]
    assert dlr(logits, labels).tolist() == pytest.approx(expected)
    assert dlr(100 * logits, labels).tolist() == pytest.approx(expected)


def test_logits_that_are_not_finite_are_an_error() -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :2] * torch.nan

    with pytest.raises(ValueError, match="2 of 2 images have logits that are not finite"):
        attacked(Broken(), torch.rand(2, 1, SIDE, SIDE), torch.tensor([0, 1]), 0.1, negative_margin)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_deepfool_finds_the_smallest_perturbation_of_a_linear_classifier(norm: str) -> None:
    model, images, labels, margins = linear_case()
    given = torch.from_numpy(images), torch.from_numpy(labels)
    adversarial, is_broken = deepfool(model, *given, Balls(norm, (0.0, 1.0)), 10)
    assert is_broken.all()
    changes = (adversarial - given[0]).flatten(1)
    sizes = (changes.abs().amax(dim=1) if norm == "linf" else changes.norm(dim=1)).numpy()
    assert (sizes[margins < 0] == 0).all()
    needed = margins[margins > 0] / model.dual(norm)
    assert sizes[margins > 0] == pytest.approx(needed, rel=0.02)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_deepfool_leaves_images_without_a_gradient_as_they_are(norm: str) -> None:
    class Flat(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return 0 * images.flatten(1)[:, :2] + torch.tensor([0.0, 1.0])

    images, labels = torch.rand(3, 1, SIDE, SIDE), torch.tensor([1, 1, 1])
    adversarial, is_broken = deepfool(Flat(), images, labels, Balls(norm, (0.0, 1.0)), 5)
    assert torch.equal(adversarial, images)
    assert not is_broken.any()


def test_deepfool_is_as_near_as_arts(three: tuple[nn.Module, Tensor, Tensor]) -> None:
    from art.attacks.evasion import DeepFool
    from art.estimators.classification import PyTorchClassifier

    model, images, labels = three
    estimator = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, SIDE, SIDE), 3, clip_values=(0.0, 1.0), device_type="cpu"
    )
    theirs = torch.from_numpy(DeepFool(estimator, max_iter=50, verbose=False).generate(images.numpy()))
    ours, is_broken = deepfool(model, images, labels, Balls("l2", (0.0, 1.0)), 50)
    assert is_broken.all()
    assert (model(ours).argmax(dim=1) != labels).all()
    distances = [(each - images).flatten(1).norm(dim=1).median() for each in (ours, theirs)]
    assert distances[0] <= 1.1 * distances[1]
