from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from tasks.attacks.batch import AttackBatch
from tasks.attacks.feature_loss import FeatureTargets
from tasks.attacks.gradient.norm_ball import NormBall
from tests.nets import Linear, linear_batch

EPS = np.array([1.0, 2.0])


class OnePixel(nn.Module):
    """Features are the first two pixels; the class is 1 where their sum is above 1."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2).requires_grad_(False)
        self.head.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        self.head.bias.copy_(torch.tensor([0.0, -1.0]))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.flatten(1)[:, :2])
        return logits


def batch_of(features: list[list[float]], labels: list[int]) -> AttackBatch:
    images = np.zeros((len(features), 1, 2, 2), dtype=np.float32)
    images[:, 0, 0] = features
    ids = np.arange(len(images))
    return AttackBatch(
        OnePixel().eval(), images, np.array(labels), 2, EPS / 255, NormBall("linf", (0.0, 1.0)), 2, 0, ids
    )


def test_guides_are_the_nearest_images_that_are_predicted_as_another_class() -> None:
    batch = batch_of([[0.1, 0.1], [0.6, 0.6], [0.9, 0.9], [0.4, 0.4]], [0, 1, 1, 1])
    targets = FeatureTargets.of(batch)
    assert targets is not None
    # image 3 is of class 1 but predicted as 0, so it guides images of class 1
    assert targets.guides[0, :2].tolist() == [1, 2]
    assert targets.guides[1, :2].tolist() == [3, 0]
    assert targets.guides[2, :2].tolist() == [3, 0]
    np.testing.assert_allclose(targets.features, batch.images[:, 0, 0])


def test_the_loss_is_the_projection_on_the_line_to_the_guide() -> None:
    batch = batch_of([[0.1, 0.1], [0.6, 0.8], [0.9, 0.9]], [0, 1, 1])
    targets = FeatureTargets.of(batch)
    assert targets is not None
    nearest, second, third = (targets.objective(np.array([0]), rank) for rank in range(3))
    images, positions = torch.from_numpy(batch.images), torch.zeros(3, dtype=torch.int64)
    losses, logits = nearest(images, positions)
    # the directions are (0.5, 0.7) and (0.8, 0.8)
    torch.testing.assert_close(losses, torch.tensor([0.0, 0.5 * 0.5 + 0.7 * 0.7, 0.5 * 0.8 + 0.7 * 0.8]))
    torch.testing.assert_close(second(images, positions)[0], torch.tensor([0.0, 0.8 * 0.5 + 0.8 * 0.7, 1.28]))
    # there are two guides
    torch.testing.assert_close(third(images, positions)[0], losses)
    torch.testing.assert_close(logits, batch.model(images))


def test_models_without_a_head_and_batches_of_one_class_are_left_out() -> None:
    batch, _ = linear_batch("linf", EPS)
    assert isinstance(batch.model, Linear)
    assert FeatureTargets.of(batch) is None
    one_class = batch_of([[0.1, 0.1], [0.2, 0.2]], [0, 0])
    assert FeatureTargets.of(one_class) is None
    assert FeatureTargets.of(replace(one_class, labels=np.array([1, 1]))) is not None
