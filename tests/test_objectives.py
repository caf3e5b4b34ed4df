import pytest
import torch
from torch import Tensor

from tasks.attacks.objectives import (
    cross_entropy,
    dlr,
    loss_and_gradient,
    negative_margin,
    other_class,
    targeted,
    targeted_dlr,
    targeted_negative_margin,
    untargeted,
)
from tests.nets import SIDE, ThreeClasses


def test_the_difference_of_logits_ratio_does_not_depend_on_the_scale_of_the_logits() -> None:
    logits, labels = torch.tensor([[3.0, 1.0, 0.5], [0.2, 0.1, 0.9]]), torch.tensor([0, 1])
    expected = [(1.0 - 3.0) / (3.0 - 0.5), (0.9 - 0.1) / (0.9 - 0.1)]
    assert dlr(logits, labels).tolist() == pytest.approx(expected)
    assert dlr(100 * logits, labels).tolist() == pytest.approx(expected)


def test_the_targeted_ratio_is_the_one_of_the_paper() -> None:
    logits, labels, targets = torch.tensor([[5.0, 1.0, 3.0, 2.0]]), torch.tensor([0]), torch.tensor([3])
    assert targeted_dlr(logits, labels, targets).item() == pytest.approx((2.0 - 5.0) / (5.0 - (2.0 + 1.0) / 2))
    assert targeted_dlr(100 * logits, labels, targets).item() == pytest.approx((2.0 - 5.0) / (5.0 - (2.0 + 1.0) / 2))


def test_other_classes_are_ranked_by_their_logits_without_the_true_class() -> None:
    class Fixed(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([[5.0, 1.0, 3.0, 2.0], [5.0, 1.0, 3.0, 2.0]])

    images, labels = torch.zeros(2, 1, 2, 2), torch.tensor([0, 2])
    ranked = [other_class(Fixed(), images, labels, rank).tolist() for rank in range(3)]
    assert ranked == [[2, 0], [3, 3], [1, 1]]


def test_with_two_classes_cross_entropy_and_margin_have_the_same_gradient_direction() -> None:
    logits, labels = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2
    directions = []
    for loss in (cross_entropy, negative_margin):
        variable = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(variable, labels).sum(), variable)
        directions.append(torch.nn.functional.normalize(gradient))
    torch.testing.assert_close(*directions)


def test_objectives_of_some_rows_use_their_labels_and_targets() -> None:
    model, images = ThreeClasses(), torch.rand(6, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    labels, targets, rows = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([1, 2, 0, 2, 0, 1]), torch.tensor([4, 1])
    logits = model(images)
    losses, gradient, found = loss_and_gradient(untargeted(model, labels, negative_margin), images[rows], rows)
    torch.testing.assert_close(losses, negative_margin(logits, labels)[rows])
    torch.testing.assert_close(found, logits[rows])
    assert gradient.shape == images[rows].shape
    losses, _, _ = loss_and_gradient(targeted(model, labels, targets, targeted_negative_margin), images[rows], rows)
    torch.testing.assert_close(losses, logits[rows, targets[rows]] - logits[rows, labels[rows]])
