import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.attacks.apgd import _checkpoints, apgd
from tasks.attacks.gradient.norm_ball import NormBall
from tasks.attacks.objectives import Loss, cross_entropy, dlr, negative_margin, untargeted
from tests.nets import SIDE, ThreeClasses, linear_case

LOSSES = {"cross_entropy": cross_entropy, "margin": negative_margin, "dlr": dlr}


def attacked(
    model: nn.Module, images: Tensor, labels: Tensor, radius: float, loss: Loss, norm: str = "linf", n_steps: int = 20
) -> tuple[Tensor, Tensor]:
    ball, radii = NormBall(norm, (0.0, 1.0)), torch.full((len(images), 1, 1, 1), radius)
    image_ids = np.arange(len(images))
    starts = ball.random_starts(images, radii, 0, "apgd", image_ids, np.zeros_like(image_ids))
    return apgd(model, untargeted(model, labels, loss), images, labels, radii, ball, n_steps, starts)


@pytest.fixture(scope="module")
def three() -> tuple[nn.Module, Tensor, Tensor]:
    """A network of three classes, images, and its predictions."""
    model = ThreeClasses()
    images = torch.from_numpy(np.random.default_rng(0).uniform(size=(90, 1, SIDE, SIDE)).astype(np.float32))
    return model, images, model(images).argmax(dim=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_exactly_the_images_within_the_radius_break_on_a_linear_classifier(loss: str, norm: str) -> None:
    model, images, labels, margins = linear_case()
    radius = float(np.median(margins[margins > 0]) / model.dual(norm))
    given = torch.from_numpy(images), torch.from_numpy(labels)
    adversarial, broken = attacked(model, *given, radius, LOSSES[loss], norm)
    clear = np.abs(margins / model.dual(norm) - radius) > 0.02 * radius
    assert (broken.numpy() == (margins < model.dual(norm) * radius))[clear].all()
    assert (model(adversarial).argmax(dim=1) != given[1]).tolist() == broken.tolist()
    changes = (adversarial - given[0]).flatten(1)
    sizes = changes.abs().amax(dim=1) if norm == "linf" else changes.norm(dim=1)
    assert sizes.max() <= radius + 1e-5
    assert 0 <= adversarial.min() <= adversarial.max() <= 1


@pytest.mark.parametrize("loss", LOSSES)
def test_at_least_as_many_images_break_as_with_art_by_every_loss(
    loss: str, three: tuple[nn.Module, Tensor, Tensor]
) -> None:
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
    broken_by_art = model(torch.from_numpy(theirs)).argmax(dim=1) != labels
    _, broken = attacked(model, images, labels, radius, LOSSES[loss], n_steps=30)
    assert 10 < int(broken_by_art.sum()) < 80
    assert int(broken.sum()) >= int(broken_by_art.sum()) - 1


def test_each_image_has_a_radius_of_its_own(three: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, images, labels = three
    radii = torch.linspace(0.001, 0.01, len(images))[:, None, None, None]
    ball = NormBall("linf", (0.0, 1.0))
    objective = untargeted(model, labels, negative_margin)
    adversarial, _ = apgd(model, objective, images, labels, radii, ball, 10, images)
    changes = (adversarial - images).abs().amax(dim=(1, 2, 3))
    assert (changes <= radii.flatten() + 1e-6).all()
    assert float(changes[-1]) == pytest.approx(0.01, rel=1e-3)


def test_the_result_of_an_image_does_not_depend_on_the_other_images(three: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, images, labels = three
    together, broken = attacked(model, images, labels, 0.08, negative_margin)
    assert 5 < int(broken.sum()) < 85
    ball, radii = NormBall("linf", (0.0, 1.0)), torch.full((1, 1, 1, 1), 0.08)
    for row in range(0, 90, 15):
        one = images[row : row + 1], labels[row : row + 1]
        start = ball.random_starts(one[0], radii, 0, "apgd", np.array([row]), np.array([0]))
        objective = untargeted(model, one[1], negative_margin)
        alone, broken_alone = apgd(model, objective, *one, radii, ball, 20, start)
        assert bool(broken_alone) == bool(broken[row])
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)


def test_more_steps_break_at_least_as_many_images(three: tuple[nn.Module, Tensor, Tensor]) -> None:
    n_broken = [int(attacked(*three, 0.08, negative_margin, n_steps=n)[1].sum()) for n in (0, 1, 40)]
    assert n_broken == sorted(n_broken)
    assert n_broken[0] < n_broken[2]


def test_the_intervals_between_checkpoints_shrink_as_in_the_paper() -> None:
    assert _checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]


def test_non_finite_logits_raise_an_error() -> None:
    class NaN(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :2] * torch.nan

    with pytest.raises(ValueError, match="2 of 2 images have logits that are not finite"):
        attacked(NaN(), torch.rand(2, 1, SIDE, SIDE), torch.tensor([0, 1]), 0.1, negative_margin)
