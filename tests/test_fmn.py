import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.attacks.fmn import fmn
from tasks.attacks.gradient.norm_ball import NormBall, radius
from tasks.attacks.objectives import negative_margin, untargeted
from tests.nets import N_PIXELS, SIDE, Flat, ThreeClasses, linear_case


def attacked(
    model: nn.Module, images: Tensor, labels: Tensor, norm: str, n_steps: int, bound: float = 255.0
) -> tuple[Tensor, Tensor]:
    """Attack from the images themselves; the bound of the norms is an eps."""
    radii = torch.full((len(images), 1, 1, 1), radius(bound, norm, N_PIXELS))
    objective = untargeted(model, labels, negative_margin)
    return fmn(model, objective, images, labels, radii, NormBall(norm, (0.0, 1.0)), n_steps, images)


def sizes_of(changes: Tensor, norm: str) -> np.ndarray:
    flat = changes.flatten(1)
    sizes: np.ndarray = (flat.abs().amax(dim=1) if norm == "linf" else flat.norm(dim=1)).numpy()
    return sizes


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_perturbation_of_a_linear_classifier_is_the_smallest(norm: str) -> None:
    model, images, labels, margins = linear_case()
    given = torch.from_numpy(images), torch.from_numpy(labels)
    adversarial, found = attacked(model, *given, norm, 20)
    assert found.all()
    assert (model(adversarial).argmax(dim=1) != given[1]).all()
    sizes = sizes_of(adversarial - given[0], norm)
    assert (sizes[margins < 0] == 0).all()
    needed = margins[margins > 0] / model.dual(norm)
    assert (sizes[margins > 0] >= needed * (1 - 1e-4)).all()
    assert sizes[margins > 0] == pytest.approx(needed, rel=0.01)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_images_without_a_gradient_are_returned_unchanged(norm: str) -> None:
    images, labels = torch.rand(3, 1, SIDE, SIDE), torch.tensor([1, 1, 1])
    adversarial, found = attacked(Flat(), images, labels, norm, 5)
    assert torch.equal(adversarial, images)
    assert not found.any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_nothing_beyond_the_bound_is_returned(norm: str) -> None:
    model, images, labels, margins = linear_case()
    needed = margins / model.dual(norm)
    bound = float(np.median(needed[needed > 0]))
    eps = bound / radius(1, norm, N_PIXELS)
    given = torch.from_numpy(images), torch.from_numpy(labels)
    adversarial, found = attacked(model, *given, norm, 20, eps)
    assert (sizes_of(adversarial - given[0], norm) <= bound * (1 + 1e-5)).all()
    clear = np.abs(needed - bound) > 0.02 * bound
    assert (found.numpy() == (needed < bound))[clear].all()


def test_perturbations_are_not_larger_than_those_of_deepfool_in_art() -> None:
    from art.attacks.evasion import DeepFool
    from art.estimators.classification import PyTorchClassifier

    model, images, labels = three_classes()
    estimator = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, SIDE, SIDE), 3, clip_values=(0.0, 1.0), device_type="cpu"
    )
    theirs = torch.from_numpy(DeepFool(estimator, max_iter=50, verbose=False).generate(images.numpy()))
    ours, found = attacked(model, images, labels, "l2", 50)
    assert found.all()
    assert (model(ours).argmax(dim=1) != labels).all()
    sizes = [sizes_of(each - images, "l2") for each in (ours, theirs)]
    assert (sizes[0] <= sizes[1] * 1.01).mean() > 0.9


def test_more_steps_give_smaller_perturbations_on_a_curved_boundary() -> None:
    model, images, labels = three_classes()
    few, many = (attacked(model, images, labels, "linf", n_steps) for n_steps in (4, 40))
    assert many[1].all()
    both = few[1].numpy()
    assert both.mean() > 0.5
    sizes = [sizes_of(adversarial - images, "linf")[both] for adversarial, _ in (few, many)]
    assert (sizes[1] <= sizes[0] * 1.001).mean() > 0.9
    assert sizes[1].mean() < sizes[0].mean()


def three_classes() -> tuple[nn.Module, Tensor, Tensor]:
    """A network of three classes, images, and its predictions."""
    model = ThreeClasses()
    images = torch.from_numpy(np.random.default_rng(0).uniform(size=(60, 1, SIDE, SIDE)).astype(np.float32))
    return model, images, model(images).argmax(dim=1)
