import numpy as np
import pytest
import torch
from torch import nn

from tasks.attacks.deepfool import deepfool
from tasks.attacks.gradient.norm_ball import NormBall
from tests.nets import SIDE, Flat, ThreeClasses, linear_case


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_perturbation_of_a_linear_classifier_is_the_smallest(norm: str) -> None:
    model, images, labels, margins = linear_case()
    given = torch.from_numpy(images), torch.from_numpy(labels)
    adversarial, broken = deepfool(model, *given, NormBall(norm, (0.0, 1.0)), 10)
    assert broken.all()
    changes = (adversarial - given[0]).flatten(1)
    sizes = (changes.abs().amax(dim=1) if norm == "linf" else changes.norm(dim=1)).numpy()
    assert (sizes[margins < 0] == 0).all()
    needed = margins[margins > 0] / model.dual(norm)
    assert sizes[margins > 0] == pytest.approx(needed, rel=0.02)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_images_without_a_gradient_are_returned_unchanged(norm: str) -> None:
    images, labels = torch.rand(3, 1, SIDE, SIDE), torch.tensor([1, 1, 1])
    adversarial, broken = deepfool(Flat(), images, labels, NormBall(norm, (0.0, 1.0)), 5)
    assert torch.equal(adversarial, images)
    assert not broken.any()


def test_perturbations_are_at_most_a_tenth_larger_than_those_of_art() -> None:
    from art.attacks.evasion import DeepFool
    from art.estimators.classification import PyTorchClassifier

    model = ThreeClasses()
    images = torch.from_numpy(np.random.default_rng(0).uniform(size=(90, 1, SIDE, SIDE)).astype(np.float32))
    labels = model(images).argmax(dim=1)
    estimator = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, SIDE, SIDE), 3, clip_values=(0.0, 1.0), device_type="cpu"
    )
    theirs = torch.from_numpy(DeepFool(estimator, max_iter=50, verbose=False).generate(images.numpy()))
    ours, broken = deepfool(model, images, labels, NormBall("l2", (0.0, 1.0)), 50)
    assert broken.all()
    assert (model(ours).argmax(dim=1) != labels).all()
    distances = [(each - images).flatten(1).norm(dim=1).median() for each in (ours, theirs)]
    assert distances[0] <= 1.1 * distances[1]
